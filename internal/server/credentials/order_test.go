package credentials

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/internal/server/sts"
)

var waiterAddress = netip.MustParseAddr("192.0.2.1")

// place puts a role into a state: what it has, how its last attempt failed, and that it
// is due since a second.
func place(c *Cache, r *role.Role, left time.Duration, failure *sts.Error) *entry {
	c.Want(r)
	now := time.Now()
	e := c.entries[r]
	e.due = now.Add(-time.Second)
	e.triedAt = now.Add(-time.Minute)
	if left != 0 {
		e.issued = newIssued(issuedFor(left))
		e.issued.Issued = now.Add(left - r.Duration)
		e.tried = true
	}
	if e.failure = failure; failure != nil {
		e.failures, e.tried = 1, true
	}
	c.plan.next, c.plan.rest = now, now // what was planned for it is not true any more
	return e
}

// takeAll takes until nothing is due, and returns the ServiceAccounts in their order.
func takeAll(c *Cache) (accounts []string) {
	for e := c.take(time.Now()); e != nil; e = c.take(time.Now()) {
		accounts = append(accounts, e.role.ServiceAccount)
	}
	return accounts
}

// The order at the limiter: refreshes that are close to expiry; roles never tried that
// someone waits for; roles never tried; early refreshes; retries of failing roles.
func TestOrderAtTheLimiter(t *testing.T) {
	c := newCache(issue)
	place(c, roleOf("ns", "failing"), 0, errDenied)
	place(c, roleOf("ns", "early"), 28*time.Minute, nil)
	place(c, roleOf("ns", "untried"), 0, nil)
	place(c, roleOf("ns", "used"), 0, nil)
	c.Use(roleOf("ns", "used"))
	place(c, roleOf("ns", "awaited"), 0, nil)
	place(c, roleOf("ns", "close"), 22*time.Minute, nil)
	watch(t, c, roleOf("ns", "awaited"))
	if got, want := takeAll(c), []string{"close", "awaited", "used", "untried", "early", "failing"}; !slices.Equal(got, want) {
		t.Errorf("order %v, want %v", got, want)
	}
}

func TestClasses(t *testing.T) {
	unavailable := &sts.Error{Kind: sts.Unavailable}
	for _, tc := range []struct {
		name    string
		left    time.Duration // of an hour; 0: never had any
		failure *sts.Error
		awaited bool
		want    class
	}{
		{name: "new", want: untried},
		{name: "new, awaited", awaited: true, want: awaited},
		{name: "refresh", left: 30 * time.Minute, want: early},
		{name: "refresh, awaited", left: 30 * time.Minute, awaited: true, want: early},
		{name: "refresh, late", left: 23 * time.Minute, want: closeToExpiry},
		{name: "expired", left: -time.Minute, want: closeToExpiry},
		{name: "denied", failure: errDenied, want: failing},
		{name: "denied, awaited: a request does not hasten it", failure: errDenied, awaited: true, want: failing},
		{name: "denied refresh", left: 30 * time.Minute, failure: errDenied, want: failing},
		{name: "denied refresh, late", left: 23 * time.Minute, failure: errDenied, want: closeToExpiry},
		{name: "denied, expired", left: -time.Minute, failure: errDenied, awaited: true, want: failing},
		{name: "no answer yet", failure: unavailable, want: failing},
		{name: "no answer yet, awaited", failure: unavailable, awaited: true, want: awaited},
		{name: "no answer, expired", left: -time.Minute, failure: unavailable, want: failing},
		{name: "no answer, expired, awaited", left: -time.Minute, failure: unavailable, awaited: true, want: awaited},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newCache(issue)
			r := roleOf("ns", "app")
			e := place(c, r, tc.left, tc.failure)
			if tc.awaited {
				watch(t, c, r)
			}
			if got := c.classOf(e, time.Now()); got != tc.want {
				t.Errorf("%v, want %v", got, tc.want)
			}
		})
	}
}

// Within each class the namespaces take turns, however many roles each has.
func TestFairAmongNamespaces(t *testing.T) {
	for _, tc := range []struct {
		class   class
		left    time.Duration
		failure *sts.Error
	}{
		{class: closeToExpiry, left: 22 * time.Minute},
		{class: awaited},
		{class: inUse},
		{class: untried},
		{class: early, left: 28 * time.Minute},
		{class: failing, failure: errDenied},
	} {
		t.Run(tc.class.String(), func(t *testing.T) {
			c := newCache(issue)
			add := func(namespace string, n int) {
				for _, r := range rolesOf(namespace, n) {
					place(c, r, tc.left, tc.failure)
					switch tc.class {
					case awaited:
						watch(t, c, r)
					case inUse:
						c.Use(r)
					}
				}
			}
			add("many", 100)
			for range 10 {
				c.take(time.Now())
			}
			add("few", 3)
			add("one", 1)
			var namespaces []string
			for range 7 {
				namespaces = append(namespaces, c.take(time.Now()).role.Namespace)
			}
			count := map[string]int{}
			for _, namespace := range namespaces {
				count[namespace]++
			}
			// Three namespaces, then two.
			if count["one"] != 1 || count["few"] != 3 || slices.Index(namespaces, "one") > 1 {
				t.Errorf("order %v", namespaces)
			}
		})
	}
}

// What is due longest is first where nothing else decides.
func TestOldestFirstWithinNamespace(t *testing.T) {
	c := newCache(issue)
	var want []string
	for i := range 10 {
		r := roleOf("ns", fmt.Sprint("app", i))
		place(c, r, 28*time.Minute, nil).due = time.Now().Add(time.Duration(i-20) * time.Second)
		want = append(want, r.ServiceAccount)
	}
	if got := takeAll(c); !slices.Equal(got, want) {
		t.Errorf("order %v, want %v", got, want)
	}
}

// A role that is being asked for is not asked for again.
func TestOneFlight(t *testing.T) {
	c := newCache(issue)
	c.Want(roleOf("ns", "app"))
	c.Want(roleOf("ns", "app"))
	watch(t, c, roleOf("ns", "app"))
	if got := takeAll(c); len(got) != 1 {
		t.Errorf("taken %v", got)
	}
}

// When an attempt is due.
func TestDue(t *testing.T) {
	now := time.Now()
	unavailable, identity := &sts.Error{Kind: sts.Unavailable}, &sts.Error{Kind: sts.Identity}
	const planned = 4 * time.Minute
	for _, tc := range []struct {
		name    string
		left    time.Duration
		failure *sts.Error
		awaited bool
		want    time.Duration // from now; the last attempt was a minute ago
	}{
		{name: "refresh as planned", left: 40 * time.Minute, want: planned},
		{name: "denied", failure: errDenied, want: planned},
		{name: "denied, awaited", failure: errDenied, awaited: true, want: planned},
		{name: "unavailable", failure: unavailable, want: planned},
		{name: "unavailable, awaited", failure: unavailable, awaited: true, want: awaitedBackOff - time.Minute},
		{name: "identity, awaited", failure: identity, awaited: true, want: awaitedBackOff - time.Minute},
		// The expiration is all that a step of the wall clock changes: the rest is
		// measured by the monotonic clock.
		{name: "wall clock stepped forward by 30 min", left: 10 * time.Minute, want: 0},
		{name: "wall clock stepped forward by 2 h", left: -time.Hour - 20*time.Minute, want: 0},
		{name: "wall clock stepped back by 2 h", left: 2*time.Hour + 40*time.Minute, want: planned},
		{name: "wall clock stepped forward, but STS failed", left: 10 * time.Minute, failure: unavailable, want: planned},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newCache(issue)
			r := roleOf("ns", "app")
			e := place(c, r, tc.left, tc.failure)
			e.triedAt, e.due = now.Add(-time.Minute), now.Add(planned)
			if tc.awaited {
				watch(t, c, r)
			}
			if got := c.dueAt(e, now).Sub(now); got != tc.want {
				t.Errorf("due in %v, want %v", got, tc.want)
			}
		})
	}
}

// A refresh is planned by the length of the session, also where this machine's clock is
// behind that of STS and the session seems to be longer.
func TestRefreshIsPlannedByTheSession(t *testing.T) {
	for _, seems := range []time.Duration{time.Hour, 3 * time.Hour} {
		c := newCache(issue)
		for range 100 {
			e := place(c, roleOf("ns", "app"), 0, nil)
			c.finish(e, issuedFor(seems), nil)
			if in := time.Until(e.due); in < 29*time.Minute || in > 36*time.Minute {
				t.Fatalf("due in %v", in)
			}
		}
	}
}

// What is left when a refresh becomes due, of any session and of what STS has shortened.
func TestRefreshIsEarlyEnough(t *testing.T) {
	for life := time.Minute; life <= 12*time.Hour; life += time.Second {
		want := min(20*time.Minute, life/3)
		if life >= 15*time.Minute {
			want = max(want, 10*time.Minute)
		}
		left := life - untilRefresh(life)
		if reserve := life / 50; left < want+min(reserve, 30*time.Second-1) || left > life*19/20 {
			t.Fatalf("a life of %v has %v left at the refresh", life, left)
		}
	}
}

func TestExpiring(t *testing.T) {
	for _, tc := range []struct {
		session, threshold time.Duration
	}{
		{2 * time.Minute, 48 * time.Second},
		{15 * time.Minute, 630 * time.Second},
		{20 * time.Minute, 11 * time.Minute},
		{30 * time.Minute, 12 * time.Minute},
		{time.Hour, 24 * time.Minute},
		{12 * time.Hour, 24 * time.Minute},
	} {
		now := time.Now()
		e := &entry{issued: newIssued(issuedFor(tc.session))}
		e.issued.Expiration, e.issued.Issued = now.Add(tc.session), now
		if at := now.Add(tc.session - tc.threshold); e.expiring(at) || !e.expiring(at.Add(time.Second)) {
			t.Errorf("%v: not from %v on", tc.session, tc.threshold)
		}
	}
}

func TestBackOff(t *testing.T) {
	for failures, full := range map[int]time.Duration{
		1: time.Second, 2: 2 * time.Second, 5: 16 * time.Second, 9: 256 * time.Second, 10: 5 * time.Minute, 11: 5 * time.Minute, 1000: 5 * time.Minute,
	} {
		lowest, highest := full, time.Duration(0)
		for range 1000 {
			d := (&entry{failure: &sts.Error{Kind: sts.Throttled}, failures: failures}).pause(time.Now())
			lowest, highest = min(lowest, d), max(highest, d)
		}
		if lowest <= full*3/4-1 || lowest > full*4/5 || highest > full || highest < full*19/20 {
			t.Errorf("%d failures: %v to %v, want three quarters of %v to all of it", failures, lowest, highest, full)
		}
	}
}

// attemptsOf are when a replica tries a role that stays denied, from this moment on.
func attemptsOf(r *role.Role, start time.Time, lasts time.Duration) (times []time.Time) {
	const answered = 100 * time.Millisecond // until STS has
	for at, end := start, start.Add(lasts); at.Before(end); {
		times = append(times, at)
		failed := at.Add(answered)
		at = failed.Add((&entry{role: r, failure: errDenied, failures: len(times)}).pause(failed))
	}
	return times
}

// Replicas that learnt of a denied role together try it together; those that did not, as a
// replica that was started later, do so after half an hour. Roles do not keep step with each
// other, and no pause is longer than it is, or shorter than three quarters of that.
func TestReplicasTryDeniedRolesTogether(t *testing.T) {
	start := time.Date(2026, 11, 30, 8, 0, 0, 0, time.UTC)
	phases := map[time.Duration]int{}
	for _, r := range rolesOf("ns", 200) {
		first := attemptsOf(r, start, 2*time.Hour)
		for i := range len(first) - 1 {
			full := min(time.Second<<min(i, 10), 5*time.Minute) + 100*time.Millisecond
			if pause := first[i+1].Sub(first[i]); pause < full*3/4 || pause > full {
				t.Fatalf("pause %d is %v, want %v or up to a quarter less", i, pause, full)
			}
		}
		for i, at := range attemptsOf(r, start.Add(time.Second/2), 9*time.Minute) {
			if apart := at.Sub(first[i]).Abs(); apart > 600*time.Millisecond {
				t.Fatalf("attempt %d is %v after another replica's", i, apart)
			}
		}
		last := first[len(first)-1]
		for _, later := range []time.Duration{time.Minute, 17*time.Minute + 3*time.Second, time.Hour} {
			others := attemptsOf(r, start.Add(later), 2*time.Hour-later)
			if apart := others[len(others)-1].Sub(last).Abs(); apart > time.Second {
				t.Errorf("a replica that was started %v later tries %v apart", later, apart)
			}
		}
		phases[last.Sub(start).Truncate(30*time.Second)]++
	}
	if len(phases) < 10 {
		t.Errorf("200 roles are tried within few moments: %v", phases)
	}
}
