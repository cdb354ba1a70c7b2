package waiting

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
)

func join(t *testing.T, h *Hub, caller string) *Waiter {
	t.Helper()
	w, err := h.Join(netip.MustParseAddr(caller), "")
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func woken(w *Waiter) bool {
	select {
	case <-w.C:
		return true
	default:
		return false
	}
}

func TestWakeReachesOnlyItsKey(t *testing.T) {
	h := NewHub(10, 100)
	a, b := join(t, h, "10.0.0.1"), join(t, h, "10.0.0.2")
	if !a.Watch("a", 1) || !b.Watch("b", 1) {
		t.Fatal("new keys must be reported as new")
	}
	if a.Watch("a") {
		t.Fatal("a known key must not be reported as new")
	}
	h.Wake("a")
	h.Wake("a")
	if !woken(a) || woken(a) || woken(b) {
		t.Fatal("waking a must wake a once, and not b")
	}
	h.Wake(1)
	if !woken(a) || !woken(b) {
		t.Fatal("waking a shared key must wake both")
	}
	if !h.Waited("b") || h.Waited("c") {
		t.Fatal("Waited is wrong")
	}
}

func TestKeysOfDifferentTypesDiffer(t *testing.T) {
	type other string
	h := NewHub(10, 100)
	a := join(t, h, "10.0.0.1")
	a.Watch("k")
	h.Wake(other("k"))
	if woken(a) {
		t.Fatal("a key of another type must not wake")
	}
}

func TestLeaveLeavesNothing(t *testing.T) {
	h := NewHub(10, 100)
	a, b := join(t, h, "10.0.0.1"), join(t, h, "10.0.0.1")
	a.Watch("x", "y")
	b.Watch("y")
	a.Leave()
	if h.Waited("x") || !h.Waited("y") || h.Len() != 1 {
		t.Fatal("leaving must remove the waiter and nobody else")
	}
	b.Leave()
	if len(h.keys) != 0 || len(h.callers) != 0 || h.Len() != 0 {
		t.Fatalf("something is left: %v %v %d", h.keys, h.callers, h.Len())
	}
}

func TestOneCallerIsLimited(t *testing.T) {
	h := NewHub(2, 100)
	a := join(t, h, "10.0.0.1")
	join(t, h, "10.0.0.1")
	if _, err := h.Join(netip.MustParseAddr("10.0.0.1"), "ns"); !errors.Is(err, ErrCaller) {
		t.Fatalf("third of one caller: %v", err)
	}
	join(t, h, "10.0.0.2")
	a.Leave()
	join(t, h, "10.0.0.1")
}

// asked is waiters and how many requests got no place.
type asked struct {
	waiters []*Waiter
	refused int
}

// ask joins as so many callers, each so often, in turns.
func ask(t *testing.T, h *Hub, first, callers, times int, namespace string, why error) *asked {
	t.Helper()
	a := &asked{}
	for range times {
		for i := range callers {
			w, err := h.Join(first+i, namespace)
			switch {
			case err == nil:
				a.waiters = append(a.waiters, w)
			case errors.Is(err, why), errors.Is(err, ErrCaller):
				a.refused++
			default:
				t.Fatal(err)
			}
		}
	}
	checkSums(t, h)
	return a
}

// still counts those who have their places. Who lost one was woken.
func (a *asked) still(t *testing.T, namespace string, why error) (n int) {
	t.Helper()
	for _, w := range a.waiters {
		switch err := w.Stay(namespace); {
		case err == nil:
			n++
		case !errors.Is(err, why) || !woken(w):
			t.Fatal("a place was lost, and nobody was told:", err)
		default:
			w.c <- struct{}{} // for the next time
		}
	}
	return n
}

// checkSums compares what a pool knows twice.
func checkSums(t *testing.T, h *Hub) {
	t.Helper()
	for _, p := range []*pool{&h.known, &h.unknown} {
		sum, most := 0, 0
		for id, holder := range p.holders {
			n := len(holder.waiters)
			sum, most = sum+n, max(most, n)
			if _, filed := p.byCount[n][holder]; !filed || n == 0 {
				t.Fatalf("%v has %d places and is not filed so", id, n)
			}
		}
		filed := 0
		for _, holders := range p.byCount {
			filed += len(holders)
		}
		if sum != p.taken || most != p.most || filed != len(p.holders) || p.taken > p.size {
			t.Fatalf("%d places are held, at most %d by one of %d: %+v", sum, most, filed, p)
		}
	}
}

// Whoever has many addresses, or many pods, takes none of the others' places: not those of
// new pods that are not known yet, nor those of other namespaces.
func TestNobodyTakesAllPlaces(t *testing.T) {
	h := NewHub(64, 16384)
	const half = 8192
	flood := ask(t, h, 0, 256, 64, "", ErrUnknown)
	if n := len(flood.waiters); n != half {
		t.Fatalf("256 unknown addresses have %d places of %d", n, half)
	}
	if a := ask(t, h, 1000, 500, 5, "", ErrUnknown); a.refused != 0 || a.still(t, "", ErrUnknown) != 2500 {
		t.Errorf("%d requests of 500 others were refused, %d wait", a.refused, a.still(t, "", ErrUnknown))
	}
	if n := flood.still(t, "", ErrUnknown); n != half-2500 {
		t.Errorf("the flood keeps %d", n)
	}
	hostile := ask(t, h, 2000, 10_000, 1, "hostile", ErrNamespace)
	if n := len(hostile.waiters); n != half {
		t.Fatalf("10,000 pods of one namespace have %d places of %d", n, half)
	}
	for _, other := range []struct {
		namespace            string
		pods, want, wantLeft int
	}{
		{"small", 10, 10, half - 10},
		{"large", 10_000, half/2 - 5, half/2 - 5},
		{"third", 10_000, half/3 - 3, half/3 - 3},
	} {
		a := ask(t, h, 20_000, other.pods, 1, other.namespace, ErrNamespace)
		got, left := a.still(t, other.namespace, ErrNamespace), hostile.still(t, "hostile", ErrNamespace)
		if got < other.want || left < other.wantLeft {
			t.Errorf("%s has %d places, hostile %d, want %d and %d", other.namespace, got, left, other.want, other.wantLeft)
		}
	}
	if h.Len() != 16384 {
		t.Errorf("%d wait", h.Len())
	}
}

func TestNoMorePlacesThanThereAre(t *testing.T) {
	h := NewHub(64, 101)
	unknown := ask(t, h, 0, 1000, 2, "", ErrUnknown)
	if len(unknown.waiters) != 51 || unknown.still(t, "", ErrUnknown) != 51 {
		t.Errorf("%d unknown", len(unknown.waiters))
	}
	known := ask(t, h, 2000, 1000, 2, "ns", ErrNamespace)
	if len(known.waiters) != 50 || h.Len() != 101 {
		t.Errorf("%d known, %d altogether", len(known.waiters), h.Len())
	}
	none := NewHub(64, 0)
	if a := ask(t, none, 0, 1, 1, "", ErrUnknown); a.refused != 1 || none.Len() != 0 {
		t.Error("there is no place, and somebody waits")
	}
}

// A waiter whose pod becomes known gives its place back, and takes one of its namespace.
func TestStayInAnotherNamespace(t *testing.T) {
	h := NewHub(64, 4) // 2 for each
	a, b := join(t, h, "10.0.0.1"), join(t, h, "10.0.0.1")
	if _, err := h.Join(netip.MustParseAddr("10.0.0.1"), ""); !errors.Is(err, ErrUnknown) {
		t.Fatalf("third of 2 places: %v", err)
	}
	for _, w := range []*Waiter{a, b} {
		if err := errors.Join(w.Stay("ns"), w.Stay("ns")); err != nil {
			t.Fatal(err)
		}
	}
	c, d := join(t, h, "10.0.0.2"), join(t, h, "10.0.0.3")
	if err := c.Stay("ns"); !errors.Is(err, ErrNamespace) {
		t.Fatalf("third of a namespace: %v", err)
	}
	if err := d.Stay("other"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(a.Stay("ns"), b.Stay("ns")); !errors.Is(err, ErrNamespace) {
		t.Fatal("all three have a place of two")
	}
	checkSums(t, h)
	if h.unknown.taken != 0 || h.known.taken != 2 {
		t.Errorf("unknown %+v, known %+v", h.unknown, h.known)
	}
	if err := d.Stay(""); err != nil || h.unknown.taken != 1 || h.known.taken != 1 {
		t.Errorf("%v, unknown %+v, known %+v", err, h.unknown, h.known)
	}
	for _, w := range []*Waiter{a, b, c, d} {
		w.Leave()
	}
	checkSums(t, h)
	if h.Len() != 0 || len(h.known.holders)+len(h.unknown.holders)+len(h.callers) != 0 {
		t.Errorf("something is left: %+v %+v %v", h.known, h.unknown, h.callers)
	}
}

// Places are taken, changed, lost and given up in any order.
func TestPlacesInAnyOrder(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	h := NewHub(4, 20)
	var all []*Waiter
	for range 20_000 {
		namespace := []string{"", "a", "b", "c"}[random.IntN(4)]
		switch i := random.IntN(max(1, len(all))); {
		case len(all) == 0 || random.IntN(3) == 0:
			if w, err := h.Join(random.IntN(20), namespace); err == nil {
				all = append(all, w)
			}
		case random.IntN(2) == 0 && all[i].Stay(namespace) == nil:
		default:
			all[i].Leave()
			all = slices.Delete(all, i, i+1)
		}
		checkSums(t, h)
	}
	for _, w := range all {
		w.Leave()
	}
	checkSums(t, h)
	if h.Len() != 0 || len(h.callers) != 0 {
		t.Errorf("%d places are taken, %v", h.Len(), h.callers)
	}
}

func TestConcurrentUse(t *testing.T) {
	h := NewHub(100, 400)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			w, err := h.Join(netip.MustParseAddr("10.0.0.1"), "")
			if err != nil {
				t.Error(err)
				return
			}
			defer w.Leave()
			w.Watch("k")
			h.Wake("k")
			<-w.C
		})
	}
	wg.Wait()
	if h.Len() != 0 || h.Waited("k") {
		t.Fatal("something is left")
	}
}
