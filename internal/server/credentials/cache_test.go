package credentials

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/internal/server/sts"
)

// Hours with roles that STS denies, in one namespace and awaited all the time, and honest
// ones in others: none of those ever has less than 10 minutes left. Everything
// is a fifth of 1,000 bogus roles, 50 honest ones, rate 10 and burst 20, because the
// dispatcher's work grows with the square of it.
func TestBogusRolesHarmNobodyForHours(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var attempts atomic.Int64
		c := newCacheAt(2, 4, func(ctx context.Context, r role.Role) (*sts.Credentials, error) {
			attempts.Add(1)
			if r.Namespace == "bogus" {
				return nil, errDenied
			}
			return issue(ctx, r)
		})
		start(t, c)
		for _, r := range rolesOf("bogus", 200) {
			c.Want(r)
			watch(t, c, r) // more than a pod would: it gets its denial at once
		}
		var honest []*role.Role
		for i := range 10 {
			r := roleOf(fmt.Sprint("honest", i%5), fmt.Sprint("app", i))
			r.Duration = 15 * time.Minute
			honest = append(honest, r)
			c.Want(r)
		}
		began := time.Now()
		advance(2 * time.Minute) // nobody waits for the honest ones yet
		for time.Since(began) < 4*time.Hour {
			for _, r := range honest {
				issued, failure := c.Get(r)
				if issued == nil || time.Until(issued.Expiration) < 10*time.Minute {
					t.Fatalf("%s after %v: %v, %v", r.SessionName, time.Since(began), issued, failure)
				}
			}
			advance(5 * time.Second)
		}
		most := int64(4 + 2*time.Since(began).Seconds())
		if n := attempts.Load(); n > most || n < most/5 {
			t.Errorf("%d attempts, want many, but at most %d", n, most)
		}
	})
}

// While STS does not answer, nothing but its caller waits.
func TestNoLockIsHeldWhileSTSIsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		c := newCache(func(ctx context.Context, r role.Role) (*sts.Credentials, error) {
			<-release
			return issue(ctx, r)
		})
		start(t, c)
		for _, r := range rolesOf("ns", 10) {
			c.Want(r)
		}
		synctest.Wait()
		began := time.Now()
		if issued, failure := c.Get(roleOf("ns", "app0")); issued != nil || failure != nil {
			t.Errorf("%v, %v", issued, failure)
		}
		c.Want(roleOf("ns", "other"))
		c.Drop(roleOf("ns", "app1"))
		c.Fill()
		c.Dump()
		c.Nudge(roleOf("ns", "app"))
		gather(t, c)
		if took := time.Since(began); took != 0 {
			t.Errorf("took %v", took)
		}
		close(release)
		<-c.Filled()
	})
}

// A session that leaves clients little time is warned of once for each role, not at each
// refresh.
func TestShortSessionIsWarnedOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zapcore.WarnLevel)
		c := newCache(issue)
		c.log = zap.New(core)
		start(t, c)
		for duration, name := range map[time.Duration]string{1499 * time.Second: "short", 1500 * time.Second: "long"} {
			r := *roleOf("ns", name)
			r.Duration = duration
			c.Want(&r)
		}
		advance(2 * time.Hour)
		lines := logs.All()
		if len(lines) != 1 || lines[0].ContextMap()["service_account"] != "short" || lines[0].ContextMap()["duration"] != 1499*time.Second {
			t.Errorf("logged: %v", lines)
		}
	})
}

// Whoever wants to hear of denials hears of each, with its next attempt, and of nothing else.
func TestDenialsAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(func(_ context.Context, r role.Role) (*sts.Credentials, error) {
			if r.ServiceAccount == "denied" {
				return nil, errDenied
			}
			return nil, &sts.Error{Kind: sts.Unavailable}
		})
		var told []*role.Role
		c.OnDenied(func(r *role.Role, denial *sts.Error) {
			if told = append(told, r); denial.Code != "AccessDenied" || !denial.Retry.After(time.Now()) {
				t.Errorf("%+v", denial)
			}
		})
		start(t, c)
		c.Want(roleOf("ns", "unavailable"))
		c.Want(roleOf("ns", "denied"))
		advance(time.Second / 2)
		synctest.Wait()
		if len(told) != 1 || told[0] != roleOf("ns", "denied") {
			t.Errorf("told of %v", told)
		}
	})
}

// The dispatcher sleeps while nothing is due, wakes for what is new, and ends with all of
// its attempts.
func TestDispatcherSleeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var attempts, running atomic.Int64
		c := newCache(func(ctx context.Context, _ role.Role) (*sts.Credentials, error) {
			attempts.Add(1)
			running.Add(1)
			defer running.Add(-1)
			<-ctx.Done()
			return nil, &sts.Error{Kind: sts.Unavailable, Message: ctx.Err().Error()}
		})
		ctx, cancel := context.WithCancel(t.Context())
		var run sync.WaitGroup
		run.Go(func() { _ = c.Run(ctx) })
		// A loop that does not sleep would keep the simulated clock from passing.
		advance(24 * time.Hour)
		if n := attempts.Load(); n != 0 {
			t.Errorf("%d attempts for nothing", n)
		}
		c.Want(roleOf("ns", "app"))
		synctest.Wait()
		if n := running.Load(); n != 1 {
			t.Errorf("%d attempts for a new role", n)
		}
		for range 100 {
			c.Nudge(roleOf("ns", "app"))
			synctest.Wait()
		}
		if n := attempts.Load(); n != 1 {
			t.Errorf("%d attempts at once for one role", n)
		}
		cancel()
		run.Wait()
		if n := running.Load(); n != 0 {
			t.Errorf("%d attempts outlive Run", n)
		}
		if issued, failure := c.Get(roleOf("ns", "app")); issued != nil || failure != nil {
			t.Errorf("the end counts as an answer of STS: %v, %v", issued, failure)
		}
	})
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Filled waits for the roles of that moment, each tried or gone, and for no others.
func TestFilled(t *testing.T) {
	c := newCache(issue)
	if c.Fill(); !isClosed(c.Filled()) {
		t.Error("not filled without roles")
	}

	c = newCache(issue)
	good, denied, dropped := roleOf("ns", "good"), roleOf("ns", "denied"), roleOf("ns", "dropped")
	for _, r := range []*role.Role{good, denied, dropped} {
		c.Want(r)
	}
	done := place(c, roleOf("ns", "done"), 30*time.Minute, nil)
	c.Fill()
	c.Want(roleOf("ns", "later"))
	for _, step := range []func(){
		func() { c.finish(c.entries[good], issuedFor(time.Hour), nil) },
		func() { c.finish(c.entries[denied], nil, errDenied) },
		func() { c.finish(done, nil, errDenied) },
	} {
		if step(); isClosed(c.Filled()) {
			t.Fatal("filled too early")
		}
	}
	c.Drop(dropped)
	if !isClosed(c.Filled()) {
		t.Error("not filled")
	}
	// The end of an attempt for a role that was dropped meanwhile is not that of its
	// successor's.
	c = newCache(issue)
	c.Want(good)
	old := c.entries[good]
	c.Drop(good)
	c.Want(good)
	c.Fill()
	if c.finish(old, issuedFor(time.Hour), nil); isClosed(c.Filled()) {
		t.Error("filled by the attempt for a dropped role")
	}
	c.finish(c.entries[good], issuedFor(time.Hour), nil)
	c.finish(c.entries[good], issuedFor(time.Hour), nil) // closes nothing twice
	c.Drop(dropped)
}

// A role whose attempt ended because STS refuses the server itself was not tried.
func TestNotFilledByIdentity(t *testing.T) {
	c := newCache(issue)
	good, bad := roleOf("ns", "good"), roleOf("ns", "bad")
	c.Want(good)
	c.Want(bad)
	c.Fill()
	if c.Unfilled() != nil {
		t.Error("why was not tried?")
	}
	refused := &sts.Error{Kind: sts.Identity, Code: "InvalidClientTokenId"}
	for range 3 {
		c.finish(c.entries[bad], nil, refused)
		c.finish(c.entries[good], issuedFor(time.Hour), nil)
		if isClosed(c.Filled()) || c.Unfilled().Code != refused.Code {
			t.Fatalf("filled, or not because of the server's identity: %v", c.Unfilled())
		}
	}
	if c.finish(c.entries[bad], nil, errDenied); !isClosed(c.Filled()) {
		t.Error("not filled by a denial")
	}
}

// A role that STS does not answer counts as soon as STS has answered for another one; while it
// has answered for none, nothing is known of any.
func TestNotFilledWithoutAnyAnswer(t *testing.T) {
	unavailable := &sts.Error{Kind: sts.Unavailable, Message: "STS did not answer in time"}
	for name, answer := range map[string]error{"credentials": nil, "denial": errDenied, "throttling": &sts.Error{Kind: sts.Throttled}} {
		t.Run(name, func(t *testing.T) {
			c := newCache(issue)
			slow, other, last := roleOf("ns", "slow"), roleOf("ns", "other"), roleOf("ns", "last")
			for _, r := range []*role.Role{slow, other, last} {
				c.Want(r)
			}
			c.Fill()
			c.finish(c.entries[slow], nil, unavailable)
			c.finish(c.entries[other], nil, unavailable)
			if c.finish(c.entries[last], nil, unavailable); isClosed(c.Filled()) || c.Unfilled().Message != unavailable.Message {
				t.Fatalf("filled, or not because of STS: %v", c.Unfilled())
			}
			if c.finish(c.entries[last], issuedFor(time.Hour), answer); !isClosed(c.Filled()) {
				t.Error("not filled although STS answers")
			}
		})
	}
}

// What failed for the server's sake is tried again as soon as STS takes the server's
// credentials, and what failed for its own sake is not.
func TestRepairedIdentityEndsBackOffs(t *testing.T) {
	c := newCache(issue)
	refused := place(c, roleOf("ns", "refused"), 0, &sts.Error{Kind: sts.Identity})
	denied := place(c, roleOf("ns", "denied"), 0, errDenied)
	for range 8 {
		c.finish(refused, nil, &sts.Error{Kind: sts.Identity})
		c.finish(denied, nil, errDenied)
	}
	c.finish(refused, nil, &sts.Error{Kind: sts.Identity})
	good := place(c, roleOf("ns", "good"), 0, nil)
	if left := time.Until(refused.due); left < time.Minute {
		t.Fatalf("the next attempt is in %v already", left)
	}
	c.finish(good, issuedFor(time.Hour), nil)
	if left := time.Until(refused.due); left > 0 {
		t.Errorf("the next attempt is in %v", left)
	}
	if left := time.Until(denied.due); left < time.Minute {
		t.Errorf("a denied role is tried again in %v", left)
	}
}

// gather returns the number of series of each metric.
func gather(t *testing.T, c *Cache) map[string]int {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(collector{c})
	families, err := registry.Gather()
	if err != nil {
		t.Error(err)
	}
	if problems, err := promlint.NewWithMetricFamilies(families).Lint(); err != nil || len(problems) > 0 {
		t.Errorf("%v %v", err, problems)
	}
	series := map[string]int{}
	for _, family := range families {
		series[family.GetName()] = len(family.GetMetric())
	}
	return series
}

// Each role is in one state, and the number of series does not grow with roles.
func TestStateOfRoles(t *testing.T) {
	c := newCache(issue)
	before := gather(t, c)
	place(c, roleOf("ns", "valid"), 30*time.Minute, nil)
	place(c, roleOf("ns", "valid-failing"), 30*time.Minute, errDenied)
	place(c, roleOf("ns", "pending"), 0, nil)
	place(c, roleOf("ns", "expired"), -time.Minute, nil)
	for _, kind := range sts.Kinds {
		place(c, roleOf("ns", string(kind)), 0, &sts.Error{Kind: kind})
	}
	for _, state := range c.Dump() {
		want := state.ServiceAccount
		if want == "expired" {
			want = "pending"
		}
		if state.State != want || state.Duration != "1h0m0s" {
			t.Errorf("%s: %s, %s", state.ServiceAccount, state.State, state.Duration)
		}
	}
	want := map[string]int{"iam4kube_roles": 7, "iam4kube_sts_queue_length": classes, "iam4kube_credentials_soonest_expiration_timestamp_seconds": 1}
	if after := gather(t, c); !maps.Equal(before, want) || !maps.Equal(after, want) {
		t.Errorf("%v and %v, want %v", before, after, want)
	}
}
