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

// Of roles that nobody has tried yet, those with pods are there first, as fast as the limiter
// lets them.
func TestRolesWithPodsAreFilledFirst(t *testing.T) {
	const all, withPods, rate, burst = 500, 100, 10, 20
	synctest.Test(t, func(t *testing.T) {
		c := newCacheAt(rate, burst, issue)
		roles := rolesOf("filled", all)
		for i, r := range roles {
			c.Want(r)
			if i%(all/withPods) == 0 {
				c.Use(r)
			}
		}
		start(t, c)
		advance(time.Duration(1.05 * (withPods - burst) / rate * float64(time.Second)))
		synctest.Wait()
		for i, r := range roles {
			if issued, _ := c.Get(r); issued == nil && i%(all/withPods) == 0 {
				t.Fatalf("role %d is not there", i)
			}
		}
	})
}

// While every look at all roles is followed by a rest, somebody who waits is served, what is
// dropped is not, and what becomes due is found afterwards.
func TestBetweenTwoLooks(t *testing.T) {
	c := newCache(issue)
	refresh, dropped, late, waited, unused := roleOf("plan", "refresh"), roleOf("plan", "dropped"), roleOf("plan", "late"), roleOf("plan", "waited"), roleOf("plan", "new")
	place(c, refresh, 28*time.Minute, nil)
	place(c, dropped, 28*time.Minute, nil)
	soon := place(c, late, 28*time.Minute, nil)
	now := time.Now()
	soon.due = now.Add(time.Minute)
	c.due(now)
	c.plan.rest = now.Add(time.Hour)
	c.Want(unused)
	c.Want(waited)
	watch(t, c, waited)
	c.Drop(dropped)
	for _, want := range []*role.Role{waited, unused, refresh, nil} {
		if e := c.take(now.Add(2 * time.Minute)); (e == nil) != (want == nil) || e != nil && e.role != want {
			t.Fatalf("took %v, want %v", e, want)
		}
	}
	if e := c.take(now.Add(2 * time.Hour)); e == nil || e.role != late {
		t.Errorf("took %v after the rest", e)
	}
}

// A refresh that became urgent since the last look does not stay behind others.
func TestUrgencyIsNoticed(t *testing.T) {
	c := newCache(issue)
	place(c, roleOf("plan", "early"), 28*time.Minute, nil)
	place(c, roleOf("plan", "urgent"), 24*time.Minute+10*time.Second, nil).due = time.Now()
	now := time.Now()
	c.due(now)
	c.plan.rest = now
	if e := c.take(now.Add(20 * time.Second)); e.role.ServiceAccount != "urgent" {
		t.Errorf("%s comes first", e.role.ServiceAccount)
	}
}

// Whoever waits may come and go at any moment, and with them a role changes its class.
func TestWaitersComeAndGoWhilePlacesAreTaken(t *testing.T) {
	const places = 20_000
	c := newCache(issue)
	r := roleOf("plan", "app")
	c.Want(r)
	ctx, stop := context.WithCancel(t.Context())
	var visitors sync.WaitGroup
	defer visitors.Wait()
	defer stop()
	for i := range 2 {
		visitors.Go(func() {
			for ctx.Err() == nil {
				w, err := c.hub.Join(i, "plan")
				if err != nil {
					t.Error(err)
					return
				}
				w.Watch(r)
				w.Leave()
			}
		})
	}
	for range places {
		e := c.take(time.Now())
		if e == nil {
			t.Fatal("nothing is due")
		}
		c.planning.Lock()
		e.inFlight = false
		c.file(e, time.Now())
		c.planning.Unlock()
	}
}

// An attempt that outlasts a look is followed by the next one when that is due.
func TestRetryAfterALongAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var attempts []time.Time
		c := newCache(func(context.Context, role.Role) (*sts.Credentials, error) {
			attempts = append(attempts, time.Now())
			advance(5 * time.Second)
			return nil, &sts.Error{Kind: sts.Unavailable}
		})
		r := roleOf("plan", "retried")
		c.Want(r)
		start(t, c)
		advance(5*time.Second + time.Millisecond)
		_, failure := c.Get(r)
		advance(5 * time.Second)
		synctest.Wait()
		if len(attempts) < 2 || attempts[1].Sub(failure.Retry).Abs() > time.Millisecond {
			t.Errorf("attempts at %v, want one at %v", attempts, failure.Retry)
		}
	})
}

// BenchmarkPlace is what a place at the limiter costs, beside roles that are not due.
func BenchmarkPlace(b *testing.B) {
	for _, n := range []int{5000, 24_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			c := newCache(issue)
			for i := range 240 {
				for _, r := range rolesOf(fmt.Sprint("bench", i), n/240) {
					place(c, r, 40*time.Minute, nil).due = time.Now().Add(time.Hour)
				}
			}
			e := place(c, roleOf("bench", "app"), 28*time.Minute, nil)
			for b.Loop() {
				if due, _ := c.nextDue(time.Now()); !due || c.take(time.Now()) != e {
					b.Fatal("not due")
				}
				e.inFlight = false
				c.file(e, time.Now())
			}
		})
	}
}
