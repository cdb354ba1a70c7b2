package credentials

import (
	"context"
	"time"

	"github.com/iam4kube/iam4kube/internal/server/sts"
)

// class is what is served first when places at the limiter are scarce.
type class int

const (
	closeToExpiry class = iota // a refresh that may become late
	awaited                    // STS has not said yes or no to it, and somebody waits
	untried                    // never tried
	early                      // a refresh with time left
	failing                    // failed before
	classes       = iota
)

func (c class) String() string {
	return [classes]string{"close-to-expiry", "awaited", "untried", "early", "failing"}[c]
}

// namespace is shared by the entries of one namespace.
type namespace struct {
	roles int
	// served is the turn at which the namespace last had a place, per class.
	served [classes]uint64
}

const (
	// leastLeft is what handed-out credentials have at least left: SDKs refresh at
	// up to 15 minutes, and would come again and again for less.
	leastLeft = 20 * time.Minute
	// longestSleep lets the dispatcher notice that the wall clock was stepped.
	longestSleep = 30 * time.Second
	// awaitedBackOff caps the back-off of a role that failed for a passing reason
	// while somebody waits for it.
	awaitedBackOff = 15 * time.Second
)

// Run asks STS for what is due until ctx ends and every attempt has returned.
func (c *Cache) Run(ctx context.Context) error {
	defer c.attempts.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if due, sleep := c.nextDue(time.Now()); due == nil {
			timer.Reset(sleep)
			select {
			case <-ctx.Done():
				return nil
			case <-c.work:
			case <-timer.C:
			}
			continue
		}
		admitted, err := c.sts.Admit(ctx)
		if err != nil {
			return nil // only the end of ctx ends Admit
		}
		// What is most urgent may have changed during the wait.
		if e := c.take(time.Now()); e != nil {
			c.attempts.Go(func() { c.attempt(admitted, e) })
		}
	}
}

// take marks the most urgent entry as being in flight.
func (c *Cache) take(now time.Time) *entry {
	c.planning.Lock()
	defer c.planning.Unlock()
	e, _ := c.due(now)
	if e == nil {
		return nil
	}
	c.turn++
	e.namespace.served[c.classOf(e, now)] = c.turn
	e.inFlight = true
	return e
}

// nextDue is due for a caller without planning.
func (c *Cache) nextDue(now time.Time) (*entry, time.Duration) {
	c.planning.Lock()
	defer c.planning.Unlock()
	return c.due(now)
}

// due is the most urgent entry that is due, or nil and how long to sleep. It
// looks at every entry: a place at the limiter is rarer than that is expensive,
// and so no queue can disagree with the entries' state. It needs planning.
func (c *Cache) due(now time.Time) (*entry, time.Duration) {
	sleep := longestSleep
	var best *entry
	var bestClass class
	for _, e := range c.entries {
		if e.inFlight {
			continue
		}
		if wait := c.dueAt(e, now).Sub(now); wait > 0 {
			sleep = min(sleep, wait)
			continue
		}
		if class := c.classOf(e, now); best == nil || before(e, class, best, bestClass) {
			best, bestClass = e, class
		}
	}
	return best, sleep
}

// before orders by class, then by whose namespace has waited longest for a place
// in that class, then by due time.
func before(a *entry, aClass class, b *entry, bClass class) bool {
	if aClass != bClass {
		return aClass < bClass
	}
	if aTurn, bTurn := a.namespace.served[aClass], b.namespace.served[aClass]; aTurn != bTurn {
		return aTurn < bTurn
	}
	return a.due.Before(b.due)
}

// dueAt is when the next attempt for the entry may start.
func (c *Cache) dueAt(e *entry, now time.Time) time.Time {
	switch {
	case e.failure == nil && e.expiring(now):
		return now // the wall clock was stepped over the planned time
	case e.failure != nil && e.failure.Kind != sts.Denied && c.hub.Waited(e.role):
		if soon := e.triedAt.Add(awaitedBackOff); soon.Before(e.due) {
			return soon
		}
	}
	return e.due
}

func (c *Cache) classOf(e *entry, now time.Time) class {
	switch {
	case e.failure != nil && !e.issued.valid(now):
		// A role that only ran into trouble of STS must not wait behind every new one.
		if e.failure.Kind != sts.Denied && c.hub.Waited(e.role) {
			return awaited
		}
		return failing
	case e.expiring(now):
		return closeToExpiry
	case e.failure != nil:
		return failing
	case e.issued != nil:
		return early
	case c.hub.Waited(e.role):
		return awaited
	}
	return untried
}

// expiring reports whether credentials have little more left than what must be
// left of those that are handed out: 20 minutes or a third of their life.
func (e *entry) expiring(now time.Time) bool {
	if e.issued == nil {
		return false
	}
	life := e.issued.Expiration.Sub(e.issued.Issued)
	return e.issued.Expiration.Sub(now) < min(leastLeft, life/3)*6/5
}
