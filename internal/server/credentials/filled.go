package credentials

import (
	"time"

	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/internal/server/sts"
)

// Fill marks the roles that are wanted now: Filled is closed when each of them has had
// one finished attempt, or is dropped. An attempt is finished with credentials or a denial,
// and also where one role fails for a passing reason. It is not where STS refuses the
// server itself, or has not answered for any role yet: then this server is of no use, and
// another that still has credentials may be.
func (c *Cache) Fill() {
	c.planning.Lock()
	defer c.planning.Unlock()
	c.unfilled = map[*role.Role]struct{}{}
	for r, e := range c.entries {
		if !c.finished(e) {
			c.unfilled[r] = struct{}{}
		}
	}
	if len(c.unfilled) == 0 {
		close(c.filled)
	}
}

// Filled is closed once the roles that Fill saw have been tried.
func (c *Cache) Filled() <-chan struct{} { return c.filled }

// Unfilled is why a role that was tried keeps Filled waiting, nil if the roles that do were
// not tried at all.
func (c *Cache) Unfilled() *sts.Error {
	c.planning.Lock()
	defer c.planning.Unlock()
	for r := range c.unfilled {
		if e := c.entries[r]; e.failure != nil {
			return e.failure
		}
	}
	return nil
}

// finished reports whether the entry's last attempt counts for Filled. It needs planning.
func (c *Cache) finished(e *entry) bool {
	switch {
	case !e.tried:
		return false
	case e.failure == nil:
		return true
	case e.failure.Kind == sts.Unavailable:
		return c.answered
	}
	return e.failure.Kind != sts.Identity
}

// settle draws the conclusions for other roles from an attempt that has ended. It needs planning.
func (c *Cache) settle(e *entry, now time.Time) {
	if e.failure != nil && e.failure.Kind == sts.Identity {
		c.refused = true
		return
	}
	if c.refused && (e.failure == nil || e.failure.Kind == sts.Denied) {
		// What failed for the server's sake need not sit out its back-off.
		c.refused = false
		for _, other := range c.entries {
			if other.failure != nil && other.failure.Kind == sts.Identity && other.due.After(now) {
				other.due = now
				c.file(other, now)
			}
		}
	}
	if !c.answered && (e.failure == nil || e.failure.Kind != sts.Unavailable) {
		c.answered = true
		for r := range c.unfilled {
			if c.finished(c.entries[r]) {
				c.markFilled(r)
			}
		}
		return
	}
	if c.entries[e.role] == e && c.finished(e) {
		c.markFilled(e.role)
	}
}

// markFilled needs planning.
func (c *Cache) markFilled(r *role.Role) {
	if _, waiting := c.unfilled[r]; waiting {
		delete(c.unfilled, r)
		if len(c.unfilled) == 0 {
			close(c.filled)
		}
	}
}
