// Package waiting lets requests wait for something that the cluster or STS has
// not told yet, and wakes just those that wait for what has changed. It owns the
// list of who waits for what and how many may. It knows neither the state that is
// waited for nor how long a wait may take.
package waiting

import (
	"errors"
	"sync"
)

// ErrTooMany is the answer to a request that would be one waiter too many.
var ErrTooMany = errors.New("too many requests are waiting")

// Hub is the list of waiters. Its methods may be called from any goroutine.
type Hub struct {
	perOwner, total int

	mu     sync.Mutex
	keys   map[any]map[*Waiter]struct{}
	owners map[any]int
	count  int
}

// NewHub returns a Hub that lets at most perOwner requests of one caller and
// total requests altogether wait at the same time.
func NewHub(perOwner, total int) *Hub {
	return &Hub{
		perOwner: perOwner,
		total:    total,
		keys:     map[any]map[*Waiter]struct{}{},
		owners:   map[any]int{},
	}
}

// Waiter is one waiting request. It belongs to one goroutine.
type Waiter struct {
	// C gets a value when one of the keys was woken since C was last read.
	C <-chan struct{}

	hub   *Hub
	owner any
	c     chan struct{}
	keys  []any
}

// Join registers a waiter for owner, who is whatever is equal, or fails with
// ErrTooMany. Whoever joins has to Leave.
func (h *Hub) Join(owner any) (*Waiter, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.count >= h.total || h.owners[owner] >= h.perOwner {
		return nil, ErrTooMany
	}
	h.count++
	h.owners[owner]++
	c := make(chan struct{}, 1)
	return &Waiter{C: c, hub: h, owner: owner, c: c}, nil
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

// Leave removes everything that Join and Watch have added.
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
	w.hub.count--
	if w.hub.owners[w.owner]--; w.hub.owners[w.owner] == 0 {
		delete(w.hub.owners, w.owner)
	}
}

// Wake wakes the waiters of a key. The state behind the key has to be changed
// before the call.
func (h *Hub) Wake(key any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.keys[key] {
		select {
		case w.c <- struct{}{}:
		default: // it is awake already and will see this change too
		}
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
	return h.count
}
