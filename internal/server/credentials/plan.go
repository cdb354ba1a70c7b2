package credentials

import (
	"container/heap"
	"slices"
	"time"

	"github.com/iam4kube/iam4kube/internal/server/role"
)

// plan is what is due, in its order, as a look at every entry found it. What becomes due or
// changes afterwards is filed beside it, or found by the next look: what is planned is
// compared with its entry's state again before it gets a place, so that nothing comes of a
// plan that is not true any more.
type plan struct {
	due [classes]line
	// next is when something that was not due then may be, or belong elsewhere.
	next time.Time
	// rest is until when there is no other look: each is followed by a hundred times as long
	// without one, so that all of them take a hundredth of a processor, however many roles
	// there are.
	rest time.Time
}

// restFactor is how much longer than a look at every entry the time without one is.
const restFactor = 100

// longestPlan is how old a plan gets while something in it waits for a place: as time passes,
// entries belong to other classes.
const longestPlan = time.Second

// line has those namespaces that have something due in a class, first the one that has waited
// longest for a place in it.
type line struct {
	class class
	of    map[*namespace]*queue
	// order is a heap.
	order []*queue
}

// queue is what one namespace has due in a class. It is never empty while it is in a line.
type queue struct {
	namespace *namespace
	entries   []*entry
}

// Len, Less, Swap, Push and Pop implement heap.Interface.
func (l *line) Len() int { return len(l.order) }

func (l *line) Less(i, j int) bool {
	a, b := l.order[i], l.order[j]
	if aTurn, bTurn := a.namespace.served[l.class], b.namespace.served[l.class]; aTurn != bTurn {
		return aTurn < bTurn
	}
	return a.entries[0].due.Before(b.entries[0].due)
}
func (l *line) Swap(i, j int) { l.order[i], l.order[j] = l.order[j], l.order[i] }
func (l *line) Push(q any)    { l.order = append(l.order, q.(*queue)) } //nolint:errcheck // it holds nothing else

func (l *line) Pop() any {
	last := len(l.order) - 1
	q := l.order[last]
	l.order[last] = nil
	l.order = l.order[:last]
	return q
}

// add puts an entry at the end of its namespace's queue.
func (l *line) add(e *entry) {
	q := l.of[e.namespace]
	if q == nil {
		q = &queue{namespace: e.namespace}
		l.of[e.namespace] = q
	}
	q.entries = append(q.entries, e)
	if len(q.entries) == 1 {
		heap.Push(l, q)
	}
}

// drop removes the first entry of all.
func (l *line) drop() {
	q := l.order[0]
	q.entries[0] = nil
	if q.entries = q.entries[1:]; len(q.entries) == 0 {
		heap.Pop(l)
		delete(l.of, q.namespace)
		return
	}
	heap.Fix(l, 0)
}

// wake lets the next look be at that time at the latest.
func (p *plan) wake(at time.Time) {
	if at.Before(p.next) {
		p.next = at
	}
}

// look plans anew. It needs planning.
func (c *Cache) look(now time.Time) {
	start := time.Now()
	c.plan = plan{next: now.Add(longestSleep)}
	for i := range c.plan.due {
		c.plan.due[i] = line{class: class(i), of: map[*namespace]*queue{}}
	}
	var due []*entry
	for _, e := range c.entries {
		e.planned = 0
		switch at := c.dueAt(e, now); {
		case e.inFlight:
		case at.After(now):
			c.plan.wake(at)
		default:
			due = append(due, e)
		}
	}
	slices.SortFunc(due, func(a, b *entry) int { return a.due.Compare(b.due) })
	for _, e := range due {
		c.file(e, now)
	}
	c.plan.rest = now.Add(restFactor * time.Since(start))
}

// file adds an entry to the plan if it is due, once in each class. It needs planning.
func (c *Cache) file(e *entry, now time.Time) {
	if e.inFlight {
		return
	}
	if at := c.dueAt(e, now); at.After(now) {
		c.plan.wake(at)
		return
	}
	class := c.classOf(e, now)
	if e.planned&(1<<class) == 0 {
		e.planned |= 1 << class
		c.plan.due[class].add(e)
		c.plan.wake(now.Add(longestPlan))
	}
}

// due are the first entries of each class, nil where nothing is due, and how long to sleep if
// nothing is. It needs planning.
func (c *Cache) due(now time.Time) (first [classes]*entry, sleep time.Duration) {
	if !now.Before(c.plan.next) && !now.Before(c.plan.rest) {
		c.look(now)
	}
	for r := range c.takeAwaited() {
		if e := c.entries[r]; e != nil {
			c.file(e, now)
		}
	}
	for class := range first {
		first[class] = c.firstOf(&c.plan.due[class], now)
	}
	// Once more, for what was filed elsewhere meanwhile.
	for class := range first {
		if first[class] == nil {
			first[class] = c.firstOf(&c.plan.due[class], now)
		}
	}
	until := c.plan.next
	if c.plan.rest.After(until) {
		until = c.plan.rest
	}
	return first, until.Sub(now)
}

// firstOf is the first entry of the line that still belongs there, nil if none does. Those
// that are due elsewhere are filed there. It needs planning.
func (c *Cache) firstOf(l *line, now time.Time) *entry {
	for len(l.order) > 0 {
		e := l.order[0].entries[0]
		if c.entries[e.role] == e && !e.inFlight && !c.dueAt(e, now).After(now) && c.classOf(e, now) == l.class {
			return e
		}
		l.drop()
		e.planned &^= 1 << l.class
		if c.entries[e.role] == e {
			c.file(e, now)
		}
	}
	return nil
}

// takeAwaited returns the roles of Nudge, and forgets them.
func (c *Cache) takeAwaited() map[*role.Role]struct{} {
	c.asking.Lock()
	defer c.asking.Unlock()
	awaited := c.awaited
	c.awaited = nil
	return awaited
}
