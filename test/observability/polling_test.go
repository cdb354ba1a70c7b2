package observability

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/fakests"
)

// TestWaitingAsksNothing: while requests wait for each of the pieces, the server sends the
// API server no request at all. It has its watches, and they suffice.
func TestWaitingAsksNothing(t *testing.T) {
	ns := newNamespace(t, "polling")
	cfg := env.Config(t)
	cfg.MaxWait = time.Minute // no wait ends in the time that is looked at
	s := env.Start(t, cfg)
	s.WaitReady(t)
	hanging := env.NewRole()
	env.STS.SetFault(hanging, fakests.Fault{Effect: fakests.Hang})
	twin := newWorkload(ns, "twin", "").create(t)
	other := newWorkload(ns, "other", "").createAccount(t)
	other.IPs = twin.IPs
	other.createPod(t)
	waiters := map[diagnosis.Piece]workload{
		diagnosis.Pod:            newWorkload(ns, "nobody", ""),
		diagnosis.SinglePod:      twin,
		diagnosis.ServiceAccount: newWorkload(ns, "no-account", "").createPod(t),
		diagnosis.RoleAnnotation: newWorkload(ns, "no-role", "").create(t),
		diagnosis.Credentials:    newWorkload(ns, "hanging", hanging).create(t),
	}
	environment.Eventually(t, within, func() error {
		if pods, ambiguous := s.Metric(t, "iam4kube_pods", "served", "yes"), s.Metric(t, "iam4kube_ambiguous_addresses"); pods < 5 || ambiguous != 1 {
			return fmt.Errorf("%v pods, %v ambiguous addresses", pods, ambiguous)
		}
		return nil
	})

	const each = 20
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var clients sync.WaitGroup
	for piece, w := range waiters {
		for range each {
			clients.Go(func() {
				if _, body, err := s.Do(ctx, s.Client(t, w.from), http.MethodGet, w.path(), nil); !errors.Is(err, context.Canceled) {
					t.Errorf("%s: %v %s", piece, err, body)
				}
			})
		}
	}
	allWait := func() error {
		waiting := map[diagnosis.Piece]float64{}
		all := true
		for piece := range waiters {
			waiting[piece] = s.Metric(t, "iam4kube_waiting_requests", "missing", string(piece))
			all = all && waiting[piece] == each
		}
		if !all {
			return fmt.Errorf("requests wait for: %v", waiting)
		}
		return nil
	}
	environment.Eventually(t, within, allWait)
	from := time.Now()
	<-time.After(3 * time.Second) // in which nothing may be asked
	if err := allWait(); err != nil {
		t.Fatal(err)
	}
	until := time.Now()
	stop()
	clients.Wait()
	byServer := func(e auditEvent) bool {
		return e.User.Username == "system:serviceaccount:"+environment.Namespace+":"+environment.ServiceAccount
	}
	watched := map[string]bool{}
	for _, e := range audited(t, byServer) {
		if e.RequestReceivedTimestamp.After(from) && e.RequestReceivedTimestamp.Before(until) {
			t.Errorf("while requests waited: %+v", e)
		}
		if e.Verb == "watch" && e.RequestReceivedTimestamp.Before(from) {
			watched[e.ObjectRef.Resource] = true
		}
	}
	// So the audit log does show this server's requests.
	for _, resource := range []string{"pods", "serviceaccounts", "nodes", "secrets"} {
		if !watched[resource] {
			t.Errorf("no watch of %s", resource)
		}
	}
}
