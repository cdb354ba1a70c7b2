// Package waiting lets requests wait for something that the cluster or STS has
// not told yet, and wakes just those that wait for what has changed. It owns the
// list of who waits for what, and who may have how many of the places. It knows
// neither the state that is waited for nor how long a wait may take.
package waiting

import (
	"errors"
	"sync"
)

// Answers to a request that would be one waiter too many.
var (
	ErrCaller    = errors.New("too many requests of this address are waiting")
	ErrNamespace = errors.New("too many requests of the pod's namespace are waiting")
	ErrUnknown   = errors.New("too many requests of addresses that are no pod's are waiting")
)

// Hub is the list of waiters. Its methods may be called from any goroutine.
type Hub struct {
	perCaller int

	mu      sync.Mutex
	keys    map[any]map[*Waiter]struct{}
	callers map[any]int
	// known has the waiters of pods, held by their namespaces, unknown those of callers of
	// whom no pod is known, held by the callers.
	known, unknown pool
}

// NewHub returns a Hub that lets at most perCaller requests of one caller wait at the same
// time, and this many requests altogether: half of the places are for pods and half for
// callers of whom no pod is known, so that neither can take those of the others.
func NewHub(perCaller, places int) *Hub {
	return &Hub{
		perCaller: perCaller,
		keys:      map[any]map[*Waiter]struct{}{},
		callers:   map[any]int{},
		known:     newPool(places/2, ErrNamespace),
		unknown:   newPool(places-places/2, ErrUnknown),
	}
}

// Waiter is one waiting request. It belongs to one goroutine.
type Waiter struct {
	// C gets a value when one of the keys was woken since C was last read, or the place
	// was lost.
	C <-chan struct{}

	hub    *Hub
	caller any
	c      chan struct{}
	keys   []any

	// pool and holder are where the waiter has its place, and at is its index there.
	pool   *pool
	holder *holder
	at     int
	// lost is why it has none any more.
	lost error
}

// Join registers a waiter for a caller, who is whatever is equal, and for the namespace of
// his pod, empty if none is known, or fails with one of the errors above. Whoever joins has
// to Leave.
func (h *Hub) Join(caller any, namespace string) (*Waiter, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.callers[caller] >= h.perCaller {
		return nil, ErrCaller
	}
	c := make(chan struct{}, 1)
	w := &Waiter{C: c, hub: h, caller: caller, c: c}
	if err := h.enter(w, namespace); err != nil {
		return nil, err
	}
	h.callers[caller]++
	return w, nil
}

// Stay asks whether the waiter still has its place, now that its caller's pod is one of
// this namespace, or not known if that is empty. If not, it fails with one of the errors
// above, and the waiter has to Leave.
func (w *Waiter) Stay(namespace string) error {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	return w.hub.enter(w, namespace)
}

func (h *Hub) enter(w *Waiter, namespace string) error {
	if w.lost != nil {
		return w.lost
	}
	if namespace == "" {
		return h.unknown.enter(w, w.caller)
	}
	return h.known.enter(w, namespace)
}

// Watch lets the waiter be woken for these keys too. It reports whether one of
// them is new, in which case the caller has to look at the state once more before
// it reads C: what happened before the call wakes nobody.
func (w *Waiter) Watch(keys ...any) bool {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	added := false
	for _, key := range keys {
		waiters := w.hub.keys[key]
		if waiters == nil {
			waiters = map[*Waiter]struct{}{}
			w.hub.keys[key] = waiters
		}
		if _, known := waiters[w]; !known {
			waiters[w] = struct{}{}
			w.keys = append(w.keys, key)
			added = true
		}
	}
	return added
}

// Leave removes everything that Join, Stay and Watch have added.
func (w *Waiter) Leave() {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	for _, key := range w.keys {
		delete(w.hub.keys[key], w)
		if len(w.hub.keys[key]) == 0 {
			delete(w.hub.keys, key)
		}
	}
	w.keys = nil
	w.giveUp()
	if w.hub.callers[w.caller]--; w.hub.callers[w.caller] == 0 {
		delete(w.hub.callers, w.caller)
	}
}

// Wake wakes the waiters of a key. The state behind the key has to be changed
// before the call.
func (h *Hub) Wake(key any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.keys[key] {
		w.wake()
	}
}

func (w *Waiter) wake() {
	select {
	case w.c <- struct{}{}:
	default: // it is awake already and will see this change too
	}
}

// Waited reports whether somebody waits for the key.
func (h *Hub) Waited(key any) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.keys[key]) > 0
}

// Len is the number of waiters.
func (h *Hub) Len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.known.taken + h.unknown.taken
}
