package waiting

import (
	"errors"
	"net/netip"
	"sync"
	"testing"
)

func join(t *testing.T, h *Hub, owner string) *Waiter {
	t.Helper()
	w, err := h.Join(netip.MustParseAddr(owner))
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
	h := NewHub(10, 10)
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
	h := NewHub(10, 10)
	a := join(t, h, "10.0.0.1")
	a.Watch("k")
	h.Wake(other("k"))
	if woken(a) {
		t.Fatal("a key of another type must not wake")
	}
}

func TestLeaveLeavesNothing(t *testing.T) {
	h := NewHub(10, 10)
	a, b := join(t, h, "10.0.0.1"), join(t, h, "10.0.0.1")
	a.Watch("x", "y")
	b.Watch("y")
	a.Leave()
	if h.Waited("x") || !h.Waited("y") || h.Len() != 1 {
		t.Fatal("leaving must remove the waiter and nobody else")
	}
	b.Leave()
	if len(h.keys) != 0 || len(h.owners) != 0 || h.Len() != 0 {
		t.Fatalf("something is left: %v %v %d", h.keys, h.owners, h.Len())
	}
}

func TestLimits(t *testing.T) {
	h := NewHub(2, 3)
	a := join(t, h, "10.0.0.1")
	join(t, h, "10.0.0.1")
	if _, err := h.Join(netip.MustParseAddr("10.0.0.1")); !errors.Is(err, ErrTooMany) {
		t.Fatalf("third of one owner: %v", err)
	}
	join(t, h, "10.0.0.2")
	if _, err := h.Join(netip.MustParseAddr("10.0.0.3")); !errors.Is(err, ErrTooMany) {
		t.Fatalf("fourth of all: %v", err)
	}
	a.Leave()
	join(t, h, "10.0.0.3")
}

func TestConcurrentUse(t *testing.T) {
	h := NewHub(100, 100)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			w, err := h.Join(netip.MustParseAddr("10.0.0.1"))
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
