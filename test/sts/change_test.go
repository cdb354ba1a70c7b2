package sts

import (
	"context"
	"net/http"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/fakests"
)

// A changed annotation is in force within a second of its event, for new requests; and
// once it was in force for one request, no later one gets credentials of before.
func TestChangedAnnotationIsInForceAtOnce(t *testing.T) {
	s := start(t)
	namespace := newNamespace(t, "change")
	// One name in two accounts, so that the pods' path does not change.
	before, after := named(111111111111, "changing"), named(222222222222, "changing")
	createAccount(t, namespace, "app", annotations(before, role.AnnotationExternalID, "first"))
	c := &clients{s: s, path: path(before)}
	c.start(t, namespace, "app")
	changes := watchAccount(t, namespace, "app")

	for _, change := range []struct {
		name     string
		annotate map[string]any
		inForce  func(fakests.Issued) bool
	}{
		{"role", map[string]any{role.AnnotationARN: after}, func(i fakests.Issued) bool { return i.RoleARN == after }},
		{"external ID", map[string]any{role.AnnotationExternalID: "second"}, func(i fakests.Issued) bool { return i.ExternalID == "second" }},
		{"no external ID", map[string]any{role.AnnotationExternalID: nil}, func(i fakests.Issued) bool { return i.ExternalID == "" }},
		{"role back again", map[string]any{role.AnnotationARN: before}, func(i fakests.Issued) bool { return i.RoleARN == before }},
		{"both", map[string]any{role.AnnotationARN: after, role.AnnotationExternalID: "third"}, func(i fakests.Issued) bool { return i.RoleARN == after && i.ExternalID == "third" }},
	} {
		c.waitFor(t, func(answers []clientAnswer) bool { return len(answers) > 10 })
		annotate(t, namespace, "app", change.annotate)
		event := nextEvent(t, changes)
		c.waitFor(t, func(answers []clientAnswer) bool {
			seen := 0
			for _, a := range answers {
				if change.inForce(a.issued) {
					seen++
				}
			}
			return seen > 100
		})
		first := time.Time{}
		answers := c.take()
		for _, a := range answers {
			if change.inForce(a.issued) && (first.IsZero() || a.end.Before(first)) {
				first = a.end
			}
		}
		for _, a := range answers {
			if !change.inForce(a.issued) && (a.start.After(first) || a.start.After(event.Add(time.Second))) {
				t.Errorf("%s: %s with external ID %q, asked for %v after the event and %v after the first with the new annotation",
					change.name, a.issued.RoleARN, a.issued.ExternalID, a.start.Sub(event), a.start.Sub(first))
			}
		}
		t.Logf("%s: in force %v after the event, %d requests", change.name, first.Sub(event), len(answers))
	}
}

// clients are pods that ask for their credentials all the time.
type clients struct {
	s    *environment.Server
	path string

	mu      sync.Mutex
	answers []clientAnswer
	changed chan struct{}
}

type clientAnswer struct {
	start, end time.Time
	issued     fakests.Issued
}

func (c *clients) start(t *testing.T, namespace, account string) {
	t.Helper()
	c.changed = make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	t.Cleanup(func() { cancel(); running.Wait() })
	for _, name := range []string{"one", "two", "three", "four"} {
		client := c.s.Client(t, createPod(t, namespace, name, account))
		running.Go(func() {
			for ctx.Err() == nil {
				start := time.Now()
				response, body, err := c.s.Do(ctx, client, http.MethodGet, c.path, nil)
				end := time.Now()
				if ctx.Err() != nil {
					return
				}
				if err != nil || response.StatusCode != http.StatusOK {
					t.Errorf("%v %s", err, body)
					return
				}
				c.add(clientAnswer{start, end, parse(t, body).session(t)})
			}
		})
	}
}

func (c *clients) add(a clientAnswer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answers = append(c.answers, a)
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// waitFor waits until the answers since the last take satisfy the condition.
func (c *clients) waitFor(t *testing.T, condition func([]clientAnswer) bool) {
	t.Helper()
	timer := time.NewTimer(within)
	defer timer.Stop()
	for {
		c.mu.Lock()
		satisfied := condition(c.answers)
		c.mu.Unlock()
		if satisfied {
			return
		}
		select {
		case <-c.changed:
		case <-timer.C:
			t.Fatal("the answers do not change")
		}
	}
}

func (c *clients) take() (answers []clientAnswer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	answers, c.answers = c.answers, nil
	return answers
}

// watchAccount watches one ServiceAccount, as the server does.
func watchAccount(t *testing.T, namespace, name string) watch.Interface {
	t.Helper()
	accounts := env.Client.CoreV1().ServiceAccounts(namespace)
	account, err := accounts.Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	watching, err := accounts.Watch(t.Context(), metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String(), ResourceVersion: account.ResourceVersion,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(watching.Stop)
	return watching
}

// nextEvent is when the next change arrives here.
func nextEvent(t *testing.T, watching watch.Interface) time.Time {
	t.Helper()
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case event := <-watching.ResultChan():
		if event.Type != watch.Modified {
			t.Fatalf("%v", event)
		}
	case <-timer.C:
		t.Fatal("no event")
	}
	return time.Now()
}
