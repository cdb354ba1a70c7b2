package identity

import (
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func ofAccount(name string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.ServiceAccountName = name }
}

// The other replicas are found by what one has in common with them, and nobody else is.
func TestReplicas(t *testing.T) {
	w := newWorld()
	server := ofAccount("server")
	w.listPods(
		pod("self", "10.0.0.1", server), pod("ends", "10.0.0.2", server, terminating), pod("dual", "10.0.0.3", server, withAddresses("10.0.0.3", "fd00::3")),
		pod("ended", "10.0.0.4", server, inPhase(corev1.PodFailed)), pod("new", "", server), pod("host", "10.9.9.9", server, hostNetwork),
		pod("webhook", "10.0.0.5", ofAccount("webhook")), pod("elsewhere", "10.0.0.6", server, func(p *corev1.Pod) { p.Namespace = "tenant" }),
	)
	replicas := func(own ...string) (names []string) {
		var addresses []netip.Addr
		for _, a := range own {
			addresses = append(addresses, netip.MustParseAddr(a))
		}
		for _, a := range w.Replicas(addresses) {
			names = append(names, a.String())
		}
		slices.Sort(names)
		return names
	}
	if got, want := replicas("127.0.0.1", "10.0.0.1", "fe80::1"), []string{"10.0.0.2", "10.0.0.3"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got, want := replicas("fd00::3"), []string{"10.0.0.1", "10.0.0.2"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, own := range []string{"127.0.0.1", "10.9.9.9", "10.0.0.4"} {
		if got := replicas(own); got != nil {
			t.Errorf("%s has replicas %v", own, got)
		}
	}
}

// While the index is stale an address is nobody's.
func TestStale(t *testing.T) {
	w := newWorld()
	w.setPod(pod("a", "10.0.0.1", onHost("10.9.9.9")))
	w.setAccount(serviceAccount("a", "one"))
	for _, stale := range []bool{false, true, false} {
		w.SetStale(stale)
		for address, want := range map[string]string{"10.0.0.1": "one", "10.9.9.9": "node-address", "10.0.0.2": "pod"} {
			if stale {
				want = "stale"
			}
			if got := w.has(address); got != want {
				t.Errorf("stale %t: %s has %s, want %s", stale, address, got, want)
			}
		}
	}
}
