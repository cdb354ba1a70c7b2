package credentials

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/test/fakests"
)

// share is how long n attempts take at the limiter, with 5 % for everything else.
func share(n int) time.Duration {
	return time.Duration(1.05 * float64(n-burst) / perSecond * float64(time.Second))
}

// Every simulation ends with a check that no window had more than burst + rate·t
// attempts.
func TestFillTakesOneAttemptPerRoleAtTheFullRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := simulate(t, setup{})
		for i := range 200 {
			s.want(s.good(fmt.Sprint("ns", i%7), fmt.Sprint("app", i)))
		}
		took := s.filled()
		if most := share(200); took > most {
			t.Errorf("took %v, want at most %v", took, most)
		}
		perRole := map[string]int{}
		for _, a := range s.fake.Attempts() {
			perRole[a.RoleARN]++
		}
		if len(perRole) != 200 || len(s.fake.Attempts()) != 200 {
			t.Errorf("%d attempts for %d roles, want one for each of 200", len(s.fake.Attempts()), len(perRole))
		}
		t.Logf("200 roles in %v", took)
	})
}

// Throttling slows the server down, whatever STS calls it, and it comes back to its full
// rate by itself.
func TestThrottlingSlowsDownAndRecovers(t *testing.T) {
	for _, effect := range []fakests.Effect{fakests.Throttling, fakests.ThrottlingException, fakests.TooManyRequests} {
		t.Run(string(effect), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := simulate(t, setup{})
				s.fake.SetFault("", fakests.Fault{Effect: effect})
				for i := range 200 {
					s.want(s.good(fmt.Sprint("ns", i%7), fmt.Sprint("app", i)))
				}
				advance(time.Minute)
				before := len(s.fake.Attempts())
				advance(time.Minute)
				if n := len(s.fake.Attempts()) - before; n < 5 || n > 60 {
					t.Errorf("%d attempts in the second minute of throttling: want few, but some", n)
				}
				if rate := s.metric("iam4kube_sts_rate_limit"); rate > 1 {
					t.Errorf("the limiter is at %v/s", rate)
				}
				s.fake.SetFault("")
				start := time.Now()
				for s.metric("iam4kube_roles", "valid") < 200 {
					advance(time.Second)
				}
				took := time.Since(start)
				if took > 3*time.Minute {
					t.Errorf("took %v", took)
				}
				if rate := s.metric("iam4kube_sts_rate_limit"); rate != perSecond {
					t.Errorf("the limiter stays at %v/s", rate)
				}
				t.Logf("200 roles in %v after the end of the throttling", took)
			})
		})
	}
}

// 1,000 new roles that STS denies, all polled, come in one namespace just when the 50
// honest ones in others, with short sessions, need their refresh.
func TestBogusRolesHarmNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := simulate(t, setup{})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var honest []*role.Role
		for i := range 50 {
			r := annotated(t, fmt.Sprint("honest", i%10), fmt.Sprint("app", i), map[string]string{
				role.AnnotationARN: fmt.Sprintf("arn:aws:iam::123456789012:role/honest-%d", i), role.AnnotationDuration: "900",
			})
			s.add(r)
			honest = append(honest, r)
		}
		s.want(honest...)
		s.filled()
		advance(3*time.Minute + 30*time.Second)
		for i := range 1000 {
			r := s.bogus("bogus", fmt.Sprint("app", i))
			s.want(r)
			go s.poll(ctx, r)
		}
		minutes := 0
		everySecond(5*time.Minute, func() {
			for _, r := range honest {
				issued, failure := s.cache.Get(r)
				if issued == nil || time.Until(issued.Expiration) < 10*time.Minute {
					t.Fatalf("%s after %v: %v, %v", r.SessionName, time.Since(s.start), issued, failure)
				}
			}
			if minute := int(time.Since(s.start) / time.Minute); minute > minutes {
				minutes = minute
				r := s.good(fmt.Sprint("new", minute), "app")
				s.want(r)
				s.served(r, 5*time.Second)
			}
		})
		for _, r := range honest {
			// The second refresh is due 7.5 to 9 minutes after the first attempt.
			if n := len(s.attemptsFor(r)); n != 2 && n != 3 {
				t.Errorf("%s: %d attempts, want the first and a refresh or two", r.SessionName, n)
			}
		}
	})
}

// A role that ran into trouble of STS was not refused: it does not wait behind an
// endless stream of new roles, which one namespace makes by changing an annotation all
// the time.
func TestNewRolesStarveNoRoleThatMetAFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := simulate(t, setup{})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() {
			for i := 0; ctx.Err() == nil; i++ {
				r := s.bogus("stream", fmt.Sprint("app", i))
				s.want(r)
				go s.poll(ctx, r)
				sleep(ctx, time.Second/15)
			}
		}()
		advance(time.Minute)
		r := s.good("honest", "app")
		s.fake.SetFault(r.ARN, fakests.Fault{Effect: fakests.ServiceUnavailable, Times: 2})
		s.want(r)
		if took := s.served(r, time.Minute); took > 6*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

// Roles that are denied, that STS does not answer, or that it answers late share one
// namespace each; the honest ones get their credentials when it is their turn, and the
// cache is filled when each has had its attempt.
func TestBrokenRolesDelayNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := simulate(t, setup{})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for i := range 40 {
			denied, hanging, slow := s.bogus("denied", fmt.Sprint(i)), s.good("hanging", fmt.Sprint(i)), s.good("slow", fmt.Sprint(i))
			s.fake.SetFault(hanging.ARN, fakests.Fault{Effect: fakests.Hang})
			s.fake.SetFault(slow.ARN, fakests.Fault{Delay: 9 * time.Second})
			for _, r := range []*role.Role{denied, hanging, slow} {
				s.want(r)
				go s.poll(ctx, r)
			}
		}
		var honest []*role.Role
		for i := range 80 {
			honest = append(honest, s.good(fmt.Sprint("honest", i%4), fmt.Sprint("app", i)))
		}
		s.want(honest...)
		for _, r := range honest {
			go s.poll(ctx, r)
		}
		go func() {
			// Seven namespaces with 20 roles each take turns, once the burst is gone.
			advance(share(burst + 7*20))
			for _, r := range honest {
				if issued, failure := s.cache.Get(r); issued == nil {
					t.Errorf("%s: not served in its turn: %v", r.SessionName, failure)
				}
			}
		}()
		// The last attempt ends with its time-out.
		if took, most := s.filled(), share(200)+10*time.Second; took > most {
			t.Errorf("filled after %v, want %v", took, most)
		}
	})
}
