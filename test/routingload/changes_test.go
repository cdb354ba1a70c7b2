package routingload

import (
	"errors"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/netns"
	"github.com/iam4kube/iam4kube/test/node"
)

// 5,000 changes of the endpoints refuse no connection and let no packet go elsewhere, new
// connections go to endpoints that are ready, and those that there are go on while their
// endpoint is listed, and are reset when it is not any more.
func TestChangesOfEndpointsUnderLoad(t *testing.T) {
	netns.NewFarSide(t)
	addEndpoints(t, endpointCount)
	l := newLoad(t, podCount)
	k := watchKernel(t)
	s := newScript(t)
	s.service.StartReleased(t).WaitReady(t)
	l.start(t, visitPause, kept)
	const changes = 5000
	begin := time.Now()
	for range changes {
		s.next(t)
	}
	t.Logf("%d changes in %v", changes, time.Since(begin))
	s.settle(t, k)
	l.end()
	s.wantOurs(t)
	states, refused := s.check(t, k, l)
	if len(refused) > 0 {
		t.Errorf("%d connections failed, want none: %v", len(refused), refused[0])
	}
	reportDelays(t, s.done, states)
}

// New connections are spread evenly.
func TestEndpointsGetEqualShares(t *testing.T) {
	netns.NewFarSide(t)
	addresses := addEndpoints(t, 3)
	l := newLoad(t, podCount)
	service := cluster.NewService()
	service.Set(t, "all", node.Ready(addresses[0]), node.Ready(addresses[1]), node.Ready(addresses[2]))
	service.StartReleased(t).WaitReady(t)
	// Of so many, a third has a standard deviation of 0.96 % of itself, and one of three
	// is off by 5 % with a probability of 6e-7.
	const connections, most = 22_000, 0.05
	l.start(t, 0, 0)
	environment.Eventually(t, time.Minute, func() error {
		if l.visits.Load() < connections {
			return errors.New("not enough connections")
		}
		return nil
	})
	l.end()
	counts := map[byte]int{}
	for _, e := range l.fresh {
		if e.err != nil {
			t.Error(e.err)
		}
		counts[e.by]++
	}
	for _, name := range []byte("abc") {
		off := float64(counts[name])/(float64(len(l.fresh))/3) - 1
		t.Logf("%c got %d of %d connections, %+.1f %%", name, counts[name], len(l.fresh), 100*off)
		if off < -most || off > most {
			t.Errorf("want a third within %v %%", 100*most)
		}
	}
}
