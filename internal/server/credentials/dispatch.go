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
	inUse                      // never tried, and there are pods that may ask for it
	untried                    // never tried
	early                      // a refresh with time left
	failing                    // failed before, or new where too many are
	classes       = iota
)

func (c class) String() string {
	return [classes]string{"close-to-expiry", "awaited", "in-use", "untried", "early", "failing"}[c]
}

// namespace is shared by the entries of one namespace.
type namespace struct {
	roles int
	// served is the turn at which the namespace last had a place, per class.
	served [classes]uint64
	// first counts its first attempts at roles up to firstAt, less what was forgotten.
	first   float64
	firstAt time.Time
}

const (
	// sharedOut is how many places others may have, one after the other, while a class has
	// something due. So each keeps a share, and those that come first keep seven eighths.
	sharedOut = 39
	// firstAtOnce and firstEvery limit the new roles of a namespace, each of which
	// comes before all that STS has refused. It may have as many as it has roles, or
	// firstAtOnce if that is more, and later one more every firstEvery.
	firstAtOnce = 20
	firstEvery  = 10 * time.Second
)

// firstLately is how many of its first attempts count at that time.
func (n *namespace) firstLately(now time.Time) float64 {
	return max(0, n.first-float64(now.Sub(n.firstAt))/float64(firstEvery))
}

// mayTry reports whether a new role of the namespace comes before those that failed.
func (n *namespace) mayTry(now time.Time) bool {
	return n.firstLately(now) < float64(max(n.roles, firstAtOnce))
}

const (
	// longestSleep lets the dispatcher notice that the wall clock was stepped.
	longestSleep = 30 * time.Second
	// awaitedBackOff caps the back-off of a role that failed for a passing reason
	// while somebody waits for it.
	awaitedBackOff = 15 * time.Second
	// forgetEvery is after how many places namespaces without roles are forgotten.
	forgetEvery = 256
)

// Run asks STS for what is due until ctx ends and every attempt has returned.
func (c *Cache) Run(ctx context.Context) error {
	defer c.attempts.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if due, sleep := c.nextDue(time.Now()); !due {
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
	var e *entry
	var due [classes]*entry
	var chosen class
	for e == nil {
		due, _ = c.due(now)
		if chosen = c.choose(due); chosen < 0 {
			return nil
		}
		// Not due's, before which another may have come while that was put together. None is
		// left where somebody came to wait for it, or went, in this moment: then it was filed
		// elsewhere.
		e = c.firstOf(&c.plan.due[chosen], now)
	}
	for class, e := range due {
		if e != nil {
			c.passedOver[class]++
		}
	}
	c.passedOver[chosen] = 0
	c.turn++
	e.inFlight = true
	e.namespace.served[chosen] = c.turn
	e.planned &^= 1 << chosen
	c.plan.due[chosen].drop()
	if !e.tried {
		e.namespace.first, e.namespace.firstAt = e.namespace.firstLately(now)+1, now
	}
	if c.turn%forgetEvery == 0 {
		for name := range c.namespaces {
			c.forget(name, now)
		}
	}
	return e
}

// choose returns the class whose turn it is, or -1 if nothing is due: the most urgent,
// unless one was passed over for too long.
func (c *Cache) choose(due [classes]*entry) class {
	chosen := class(-1)
	for i, e := range due {
		if e != nil && (chosen < 0 || c.passedOver[i] >= sharedOut && c.passedOver[i] > c.passedOver[chosen]) {
			chosen = class(i)
		}
	}
	return chosen
}

// nextDue reports whether an entry is due, or else how long to sleep.
func (c *Cache) nextDue(now time.Time) (isDue bool, sleep time.Duration) {
	c.planning.Lock()
	defer c.planning.Unlock()
	due, sleep := c.due(now)
	return c.choose(due) >= 0, sleep
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
	case !e.namespace.mayTry(now):
		return failing
	case c.hub.Waited(e.role):
		return awaited
	case e.used:
		return inUse
	}
	return untried
}
