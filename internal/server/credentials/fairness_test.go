package credentials

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/internal/server/sts"
)

// However much is due in the other classes, each has its share of the places, and those
// that come first keep most of them.
func TestEachClassKeepsAShare(t *testing.T) {
	const places = 400
	c := newCache(issue)
	for i, r := range rolesOf("ns", classes*places) {
		switch class(i % classes) {
		case closeToExpiry:
			place(c, r, 22*time.Minute, nil)
		case awaited:
			place(c, r, 0, nil)
			watch(t, c, r)
		case inUse:
			place(c, r, 0, nil)
			c.Use(r)
		case untried:
			place(c, r, 0, nil)
		case early:
			place(c, r, 28*time.Minute, nil)
		case failing:
			place(c, r, 0, errDenied)
		}
	}
	var had [classes]int
	for range places {
		now := time.Now()
		due, _ := c.due(now)
		had[c.choose(due)]++
		c.take(now)
	}
	for class := awaited; class < classes; class++ {
		if least := places/(sharedOut+1) - 1; had[class] < least || had[class] > least+1 {
			t.Errorf("%v had %d of %d places, want %d", class, had[class], places, least)
		}
	}
	if had[closeToExpiry] < places*7/8 {
		t.Errorf("what is most urgent had %d of %d places", had[closeToExpiry], places)
	}
}

// What waits alone has all places, and no claim is saved up from then.
func TestShareIsOfPlacesThatOthersHad(t *testing.T) {
	c := newCache(issue)
	for _, r := range rolesOf("failing", 100) {
		place(c, r, 0, errDenied)
	}
	if n := len(takeAll(c)); n != 100 {
		t.Fatalf("%d places", n)
	}
	for _, r := range rolesOf("other", 10) {
		place(c, r, 0, errDenied)
	}
	for _, r := range rolesOf("urgent", sharedOut) {
		place(c, r, 22*time.Minute, nil)
	}
	for i := range sharedOut {
		if e := c.take(time.Now()); e.role.Namespace != "urgent" {
			t.Fatalf("place %d went to %s", i, e.role.SessionName)
		}
	}
}

// refusals is an STS that refuses some namespaces, and knows when it was asked for what.
type refusals struct {
	mu      sync.Mutex
	refuses map[string]bool
	asked   map[string][]time.Time
}

func (s *refusals) assume(ctx context.Context, r role.Role) (*sts.Credentials, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked[r.SessionName] = append(s.asked[r.SessionName], time.Now())
	if s.refuses[r.Namespace] {
		return nil, errDenied
	}
	return issue(ctx, r)
}

// churn changes the role of one ServiceAccount all the time, more often than the limiter
// has places, until ctx ends. Somebody waits for it.
func churn(ctx context.Context, c *Cache) {
	waiter, err := c.hub.Join(waiterAddress, "")
	if err != nil {
		panic(err)
	}
	defer waiter.Leave()
	var before *role.Role
	for i := 0; ctx.Err() == nil; i++ {
		r := &role.Role{
			ARN: fmt.Sprint("arn:aws:iam::123456789012:role/", i), SessionName: "attacker@app", Duration: time.Hour,
			Namespace: "attacker", ServiceAccount: "app",
		}
		waiter.Watch(r)
		c.Want(r)
		if before != nil {
			c.Drop(before)
		}
		before = r
		advance(time.Second / 11)
	}
}

// One annotation that changes 11 times a second, at a limiter of 10: roles that STS has
// refused are tried again as often as without it, and what is new elsewhere is served.
func TestChangingAnnotationStarvesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := &refusals{refuses: map[string]bool{"attacker": true}, asked: map[string][]time.Time{}}
		c := newCache(fake.assume)
		var denied []*role.Role
		for i := range 100 {
			r := roleOf(fmt.Sprint("denied", i%5), fmt.Sprint("app", i))
			fake.refuses[r.Namespace] = true
			denied = append(denied, r)
			c.Want(r)
		}
		start(t, c)
		ctx, cancel := context.WithCancel(t.Context())
		var attack sync.WaitGroup
		attack.Go(func() { churn(ctx, c) })
		defer attack.Wait()
		defer cancel()
		const long = 30 * time.Minute
		began := time.Now()
		advance(long)
		for _, r := range denied {
			fake.mu.Lock()
			asked := fake.asked[r.SessionName]
			fake.mu.Unlock()
			// Nine attempts until the back-off is 5 min, which takes 6 to 8.5 min.
			if n := len(asked); n < 12 || time.Since(asked[n-1]) > maxBackOff+10*time.Second {
				t.Fatalf("%s: %d attempts in %v: %v", r.SessionName, n, long, asked)
			}
		}
		fresh := roleOf("fresh", "app")
		c.Want(fresh)
		advance(time.Second)
		if issued, _ := c.Get(fresh); issued == nil {
			t.Error("a new role of another namespace was not served within a second")
		}
		fake.mu.Lock()
		n, most := len(fake.asked["attacker@app"]), 10*int(time.Since(began)/time.Second)
		fake.mu.Unlock()
		if n > most-denialsOf(100, long) {
			t.Errorf("the attacker had %d of %d places", n, most)
		}
	})
}

// denialsOf is about how often so many denied roles are tried in that time.
func denialsOf(roles int, long time.Duration) int {
	return roles * int(long/maxBackOff)
}

// New roles of a namespace come before those that failed only as far as it has roles,
// also if it makes them by deleting ServiceAccounts and creating others.
func TestNewRolesOfANamespaceAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(issue)
		fresh := func() (n int) {
			for i := 0; n <= 10*firstAtOnce; i++ {
				r := roleOf("ns", fmt.Sprint("fresh", i))
				c.Want(r)
				if c.classOf(c.entries[r], time.Now()) != untried {
					c.Drop(r)
					return n
				}
				c.take(time.Now())
				c.Drop(r)
				n++
			}
			return n
		}
		if n := fresh(); n != firstAtOnce {
			t.Errorf("%d at once, want %d", n, firstAtOnce)
		}
		advance(3 * firstEvery)
		if n := fresh(); n != 3 {
			t.Errorf("%d more after %v", n, 3*firstEvery)
		}
		roles := rolesOf("large", 500)
		for _, r := range roles {
			c.Want(r)
		}
		for i := range roles {
			if due, _ := c.due(time.Now()); c.choose(due) != untried {
				t.Fatalf("of the %d roles of a namespace %d were new", len(roles), i)
			}
			c.take(time.Now())
		}
		for _, r := range roles {
			c.Drop(r)
		}
		if len(c.namespaces) != 2 {
			t.Errorf("remembered are %d namespaces", len(c.namespaces))
		}
		advance(500 * firstEvery)
		for _, r := range rolesOf("other", forgetEvery) {
			c.Want(r)
			c.take(time.Now())
		}
		if len(c.namespaces) != 1 {
			t.Errorf("remembered are %d namespaces", len(c.namespaces))
		}
	})
}
