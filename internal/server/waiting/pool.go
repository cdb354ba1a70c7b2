package waiting

// pool is a number of places that holders share. While all are taken, whoever holds the
// most gives one up for a holder who has fewer: so those who take all they can have equal
// shares, at any time, and others get theirs. The Hub's lock is held for all of it.
type pool struct {
	size, taken int
	// full is the error of who gets no place.
	full    error
	holders map[any]*holder
	// byCount has the holders by how many places they hold; most is the largest of these
	// numbers.
	byCount map[int]map[*holder]struct{}
	most    int
}

// holder is whoever has places.
type holder struct {
	id      any
	waiters []*Waiter
}

func newPool(size int, full error) pool {
	return pool{size: size, full: full, holders: map[any]*holder{}, byCount: map[int]map[*holder]struct{}{}}
}

// enter gives the waiter a place of this holder's, in exchange for the one that it may
// have, or says why not.
func (p *pool) enter(w *Waiter, id any) error {
	if w.pool == p && w.holder.id == id {
		return nil
	}
	w.giveUp()
	h := p.holders[id]
	if h == nil {
		h = &holder{id: id}
	}
	if p.taken == p.size {
		if len(h.waiters)+1 >= p.most { // the other would then have fewer
			return p.full
		}
		p.displace()
	}
	p.holders[id] = h
	w.pool, w.holder, w.at = p, h, len(h.waiters)
	h.waiters = append(h.waiters, w)
	p.taken++
	p.recount(h, len(h.waiters)-1)
	return nil
}

// displace takes a place from one of those who hold the most.
func (p *pool) displace() {
	for h := range p.byCount[p.most] {
		w := h.waiters[len(h.waiters)-1]
		w.giveUp()
		w.lost = p.full
		w.wake()
		return
	}
}

// giveUp frees the waiter's place, if it has one.
func (w *Waiter) giveUp() {
	h, p := w.holder, w.pool
	if h == nil {
		return
	}
	last := len(h.waiters) - 1
	h.waiters[w.at] = h.waiters[last]
	h.waiters[w.at].at = w.at
	h.waiters[last] = nil
	h.waiters = h.waiters[:last]
	w.pool, w.holder = nil, nil
	p.taken--
	if last == 0 {
		delete(p.holders, h.id)
	}
	p.recount(h, last+1)
}

// recount files a holder who held this many places before.
func (p *pool) recount(h *holder, before int) {
	if delete(p.byCount[before], h); len(p.byCount[before]) == 0 {
		delete(p.byCount, before)
	}
	now := len(h.waiters)
	if now > 0 {
		if p.byCount[now] == nil {
			p.byCount[now] = map[*holder]struct{}{}
		}
		p.byCount[now][h] = struct{}{}
	}
	if now > p.most || len(p.byCount[p.most]) == 0 {
		p.most = now
	}
}
