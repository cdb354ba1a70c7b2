package credentials

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/test/fakests"
)

// While STS works, whoever asks gets credentials with 20 minutes left, or a third of a
// shorter session and never less than 10 minutes, and roles that were fetched at the same time are not refreshed at the
// same time.
func TestCredentialsHaveEnoughLifeLeft(t *testing.T) {
	for _, session := range []time.Duration{15 * time.Minute, 20 * time.Minute, time.Hour, 12 * time.Hour} {
		t.Run(session.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := simulate(t, setup{})
				var roles []*role.Role
				for i := range burst {
					r := annotated(t, fmt.Sprint("ns", i%3), fmt.Sprint("app", i), map[string]string{
						role.AnnotationARN: fmt.Sprintf("arn:aws:iam::123456789012:role/r%d", i), role.AnnotationDuration: fmt.Sprint(session.Seconds()),
					})
					s.add(r)
					roles = append(roles, r)
				}
				s.want(roles...)
				s.filled()
				want := min(20*time.Minute, max(session/3, 10*time.Minute))
				for end := time.Now().Add(3 * session); time.Now().Before(end); advance(session / 2000) {
					for _, r := range roles {
						issued, failure := s.cache.Get(r)
						if issued == nil || time.Until(issued.Expiration) < want {
							t.Fatalf("%v, %v after %v: want %v left", issued, failure, time.Since(s.start), want)
						}
					}
				}
				// All came in the first second; a tenth of the life is the jitter, or less of what
				// a short one has to spare.
				spare := min(session, (session-want)*3/2)
				first := secondAttempts(s, roles)
				if spread := first.latest.Sub(first.earliest); spread < spare/20 {
					t.Errorf("all refreshed within %v", spread)
				}
				if early := first.earliest.Sub(s.start); early < spare/2 {
					t.Errorf("refreshed after %v", early)
				}
				if n := time.Duration(len(s.fake.Attempts())); n > burst*7*session/spare {
					t.Errorf("%d attempts for %d roles in three sessions", n, burst)
				}
			})
		})
	}
}

type span struct{ earliest, latest time.Time }

// secondAttempts is when the second attempts of the roles came.
func secondAttempts(s *simulation, roles []*role.Role) (all span) {
	for _, r := range roles {
		at := s.attemptsFor(r)[1].Time
		if all.earliest.IsZero() || at.Before(all.earliest) {
			all.earliest = at
		}
		if at.After(all.latest) {
			all.latest = at
		}
	}
	return all
}

// An outage in the middle of the refreshes: what is valid is served until it expires, and
// when STS is back, so are the credentials, without a restart. awaited and all are how
// long it may take at most, for roles that pods wait for and for all.
func TestOutage(t *testing.T) {
	const session = time.Hour
	for _, outage := range []struct {
		lasts        time.Duration
		awaited, all time.Duration
	}{
		// Nothing has expired: nobody notices.
		{lasts: time.Minute},
		{lasts: 10 * time.Minute},
		// Two minutes before everything expires: no back-off is longer than that allows.
		{lasts: 27 * time.Minute},
		// Back-off of what somebody waits for is 15 s at most, of the rest 5 min; a hanging
		// attempt adds its 10 s, and a throttled server takes some seconds to speed up.
		{lasts: 2 * time.Hour, awaited: 40 * time.Second, all: 5*time.Minute + 40*time.Second},
	} {
		for _, effect := range []fakests.Effect{fakests.ServiceUnavailable, fakests.Hang, fakests.Reset, fakests.Throttling} {
			t.Run(fmt.Sprint(outage.lasts, effect), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := simulate(t, setup{})
					var roles []*role.Role
					for i := range 30 {
						roles = append(roles, s.good(fmt.Sprint("ns", i%5), fmt.Sprint("app", i)))
					}
					s.want(roles...)
					s.filled()
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					awaited := roles[:10]
					for _, r := range awaited {
						go s.poll(ctx, r)
					}
					advance(31 * time.Minute) // of 30 to 36
					s.fake.SetFault("", fakests.Fault{Effect: effect})
					lastUntil := time.Time{}
					everySecond(outage.lasts, func() {
						for _, r := range roles {
							issued, failure := s.cache.Get(r)
							age := time.Since(s.start)
							if issued == nil && age < session-time.Second {
								t.Fatalf("nothing to serve after %v: %v", age, failure)
							}
							if issued == nil && failure == nil {
								t.Fatalf("no reason after %v", age)
							}
							if issued != nil {
								lastUntil = issued.Expiration
							}
						}
					})
					if lastUntil.Before(time.Now()) != (outage.awaited > 0) {
						t.Fatalf("the outage ended at %v and the credentials at %v", time.Now(), lastUntil)
					}
					s.fake.SetFault("")
					if outage.awaited == 0 {
						everySecond(10*time.Minute, func() {
							for _, r := range roles {
								if issued, failure := s.cache.Get(r); issued == nil {
									t.Fatalf("expired %v after the start: %v", time.Since(s.start), failure)
								}
							}
						})
						return
					}
					back := s.back(awaited)
					if back > outage.awaited {
						t.Errorf("what is waited for was back after %v", back)
					}
					if all := back + s.back(roles); all > outage.all {
						t.Errorf("everything was back after %v", all)
					} else {
						t.Logf("back after %v and %v", back, all)
					}
				})
			})
		}
	}
}

// back is how long it takes until all the roles can be served.
func (s *simulation) back(roles []*role.Role) time.Duration {
	start := time.Now()
	for _, r := range roles {
		for issued, _ := s.cache.Get(r); issued == nil; issued, _ = s.cache.Get(r) {
			advance(100 * time.Millisecond)
		}
	}
	return time.Since(start)
}

// Retries of a denied role: 1 s, doubled to 5 min, up to a quarter less; requests do not
// hasten them.
func TestBackOffOfDeniedRole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := simulate(t, setup{})
		quiet, polled := s.bogus("ns", "quiet"), s.bogus("ns", "polled")
		s.want(quiet, polled)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for range 3 {
			go s.poll(ctx, polled)
		}
		// A pod gets the denial at once, so nobody waits for long. Should somebody:
		waiter, err := s.hub.Join(netip.IPv4Unspecified(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer waiter.Leave()
		waiter.Watch(polled)
		advance(time.Hour)
		for _, r := range []*role.Role{quiet, polled} {
			attempts := s.attemptsFor(r)
			if len(attempts) < 18 {
				t.Errorf("%s: %d attempts in an hour", r.SessionName, len(attempts))
			}
			different := map[time.Duration]bool{}
			for i := range len(attempts) - 1 {
				pause, full := attempts[i+1].Time.Sub(attempts[i].Time), min(time.Second<<i, 5*time.Minute)
				if pause < full*3/4 || pause > full+time.Second/5 {
					t.Errorf("%s: pause %d is %v, want %v or up to a quarter less", r.SessionName, i, pause, full)
				}
				different[pause.Round(time.Second)] = true
			}
			if len(different) < 10 {
				t.Errorf("%s: no jitter: %v", r.SessionName, different)
			}
		}
		// Once it is allowed, it takes no restart.
		s.add(polled)
		if took := s.back([]*role.Role{polled}); took > 5*time.Minute+time.Second {
			t.Errorf("allowed, but not served for %v", took)
		}
	})
}

// A denial while older credentials are valid: those are served to their end, then the
// denial is told.
func TestDenialWhileCredentialsAreValid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := simulate(t, setup{})
		r := s.good("ns", "app")
		s.want(r)
		s.served(r, time.Second)
		first, _ := s.cache.Get(r)
		s.fake.RemoveRole(r.ARN)
		everySecond(time.Until(first.Expiration), func() {
			if issued, failure := s.cache.Get(r); issued != first {
				t.Fatalf("after %v: %v, %v", time.Since(s.start), issued, failure)
			}
		})
		advance(time.Second)
		if s.metric("iam4kube_roles", "denied") != 1 {
			t.Error("the denied role is not counted as such")
		}
		if issued, failure := s.cache.Get(r); issued != nil || failure == nil || failure.Code != "AccessDenied" {
			t.Fatalf("%v, %v", issued, failure)
		}
		s.add(r)
		if took := s.back([]*role.Role{r}); took > 5*time.Minute+time.Second {
			t.Errorf("allowed again, but not served for %v", took)
		}
	})
}
