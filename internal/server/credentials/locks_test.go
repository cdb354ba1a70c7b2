package credentials

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/internal/server/role"
)

// longestGet is how long the longest of the requests took that came one after the other
// while all of do ran, again and again, and how long one of the first of do takes.
func longestGet(c *Cache, r *role.Role, do ...func()) (longest, took time.Duration) {
	const rounds = 20
	var ended atomic.Bool
	var all sync.WaitGroup
	for _, f := range append(do[1:], func() {
		start := time.Now()
		_, _ = c.Get(r)
		longest = max(longest, time.Since(start))
	}) {
		all.Go(func() {
			for !ended.Load() {
				f()
			}
		})
	}
	start := time.Now()
	for range rounds {
		do[0]()
	}
	took = time.Since(start) / rounds
	ended.Store(true)
	all.Wait()
	return longest, took
}

// manyRoles is a cache with 50,000 roles that are not due, and one of them.
func manyRoles() (*Cache, *role.Role) {
	c := newCache(issue)
	roles := rolesOf("ns", 50_000)
	for _, r := range roles {
		place(c, r, 40*time.Minute, nil).due = time.Now().Add(time.Hour)
	}
	return c, roles[0]
}

// looksAtAll are what looks at all roles, beside somebody who changes one: behind whoever
// changes something, requests queue where they share a lock.
func looksAtAll(c *Cache) map[string][]func() {
	other := roleOf("other", "app")
	change := func() {
		c.Want(other)
		c.Drop(other)
	}
	return map[string][]func(){
		"what is due": {func() { c.take(time.Now()) }, change},
		"dump":        {func() { c.Dump() }, change},
	}
}

// No request waits until all roles were looked at. One good round of several is enough: a
// request can wait for a machine that is busy with something else.
func TestNoRequestWaitsForAScan(t *testing.T) {
	c, r := manyRoles()
	for what, do := range looksAtAll(c) {
		var longest, took time.Duration
		for range 10 {
			if longest, took = longestGet(c, r, do...); longest < took/2 || longest < 2*time.Millisecond {
				break
			}
		}
		if longest >= took/2 && longest >= 2*time.Millisecond {
			t.Errorf("%s: a request waited for %v of %v", what, longest, took)
		}
	}
}

func BenchmarkLongestGet(b *testing.B) {
	c, r := manyRoles()
	for what, do := range looksAtAll(c) {
		best, of := time.Hour, time.Duration(0)
		for range 10 {
			if longest, took := longestGet(c, r, do...); longest < best {
				best, of = longest, took
			}
		}
		b.Logf("%s: longest request %.2f ms of %.1f", what, best.Seconds()*1e3, of.Seconds()*1e3)
	}
}
