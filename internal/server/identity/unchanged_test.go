package identity

import "testing"

// Whatever changes what Lookup answers, it is not taken for unchanged.
func TestChangesAreSeen(t *testing.T) {
	const ip = "10.0.0.1"
	w := newWorld()
	claim := from(ip)
	for i, change := range []func(){
		func() { w.setPod(pod("one", ip)) },
		func() { w.setAccount(serviceAccount("one", "role")) },
		func() { w.setAccount(serviceAccount("one", "other")) },
		func() { namespaceSink{w.Index}.Set(&Namespace{Name: "ns", TokensOnly: true}) },
		func() { namespaceSink{w.Index}.Set(&Namespace{Name: "ns"}) },
		func() { w.SetStale(true) },
		func() { w.SetStale(false) },
		func() { w.setPod(pod("two", ip)) },
		func() { w.deletePod(pod("one", ip)) },
	} {
		before := w.Lookup(claim)
		if !w.Unchanged(before) {
			t.Errorf("%d: something changed before", i)
		}
		change()
		if w.Unchanged(before) {
			t.Errorf("%d: nothing changed", i)
		}
	}
}
