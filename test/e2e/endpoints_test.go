//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
)

// history of the server's endpoints, as their slices told them.
type history struct {
	mutex   sync.Mutex
	changes []change
}

// change: from then on these addresses were ready.
type change struct {
	at    time.Time
	ready []string
	all   string
}

func watchEndpoints(t *testing.T) *history {
	t.Helper()
	h := &history{}
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(own),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = discoveryv1.LabelServiceName + "=iam4kube" }))
	informer := factory.Discovery().V1().EndpointSlices().Informer()
	changed := func(any) {
		h.mutex.Lock()
		defer h.mutex.Unlock()
		now := change{at: time.Now()}
		for _, object := range informer.GetStore().List() {
			for _, e := range object.(*discoveryv1.EndpointSlice).Endpoints {
				state := "not ready"
				if *e.Conditions.Ready {
					state = "ready"
					now.ready = append(now.ready, e.Addresses[0])
				}
				if *e.Conditions.Terminating {
					state += ", terminating"
				}
				now.all += fmt.Sprintf(" %s on %s (%s)", e.Addresses[0], *e.NodeName, state)
			}
		}
		h.changes = append(h.changes, now)
	}
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: changed, UpdateFunc: func(_, now any) { changed(now) }, DeleteFunc: changed,
	}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	factory.Start(ctx.Done())
	t.Cleanup(func() {
		stop()
		factory.Shutdown()
	})
	factory.WaitForCacheSync(ctx.Done())
	return h
}

// gone is when an address was no longer ready for the first time after since, zero if never.
func (h *history) gone(address string, since time.Time) time.Time {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	for _, c := range h.changes {
		if c.at.After(since) && !slices.Contains(c.ready, address) {
			return c.at
		}
	}
	return time.Time{}
}

func (h *history) between(start, end time.Time) string {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	text := &strings.Builder{}
	for _, c := range h.changes {
		if !c.at.Before(start) && c.at.Before(end) {
			fmt.Fprintf(text, "  %s%s\n", clock(c.at), c.all)
		}
	}
	return text.String()
}
