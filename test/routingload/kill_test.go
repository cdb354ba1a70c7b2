package routingload

import (
	"slices"
	"syscall"
	"testing"

	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/netns"
	"github.com/iam4kube/iam4kube/test/node"
)

// Killed at any moment of its start, of a change or of its end, and started again, with
// and without an API server, ip2service leaves the way open at no moment, touches
// nobody else's rules, and in the end its own are what they should be.
func TestKilledAtAnyMoment(t *testing.T) {
	netns.NewFarSide(t)
	addEndpoints(t, endpointCount)
	addForeign(t)
	before := notOurs(t)
	k := watchKernel(t)
	l := newLoad(t, podCount)
	s := newScript(t)
	gate, err := controlplane.NewGate(cluster.Config().Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(gate.Close)
	flags := s.service.Flags(t, gate.Config)
	t.Cleanup(func() { node.Cleanup(t) })
	first := node.Launch(t, flags...)
	s.settle(t, k)
	l.start(t, visitPause, kept)
	first.Kill()
	const rounds, phases = 100, 4
	for round := range rounds {
		count, mode := k.count(), controlplane.Pass
		if round%phases == 3 {
			mode = []controlplane.GateMode{controlplane.Refuse, controlplane.BlackHole}[round/phases%2]
		}
		if err := gate.Set(mode); err != nil {
			t.Fatal(err)
		}
		i := node.Launch(t, flags...)
		switch round % phases {
		case 0, 3: // at the start, or soon after it
			s.some(t, 20)
		case 1: // while rules change
			s.settle(t, k)
			s.some(t, 5)
		case 2: // at the end
			s.settle(t, k)
			_ = i.Process.Signal(syscall.SIGTERM)
			s.some(t, 2)
		}
		i.Kill()
		if changed := k.after(count); mode != controlplane.Pass && len(changed) > 0 {
			t.Errorf("without an API server the rules were changed: %+v", changed)
		}
	}
	if err := gate.Set(controlplane.Pass); err != nil {
		t.Fatal(err)
	}
	node.Launch(t, flags...)
	s.settle(t, k)
	l.end()
	s.wantOurs(t)
	_, refused := s.check(t, k, l)
	t.Logf("%d connections failed: %v", len(refused), refused)
	// Of an endpoint that was removed while there was no ip2service, the next one knows
	// nothing, and refuses a packet that was on its way there in that very moment.
	if len(refused) > 2 {
		t.Error("want hardly any")
	}
	if after := notOurs(t); after != before {
		t.Errorf("the rules of others are\n%s\nwant\n%s", after, before)
	}
	if slices.ContainsFunc(k.after(0), func(x transaction) bool { return x.by == "ip2service" && x.foreign }) {
		t.Error("ip2service changed a table of others")
	}
}
