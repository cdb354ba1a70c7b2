package credentials

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap/zapcore"

	"github.com/iam4kube/iam4kube/internal/server/credentials"
	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/internal/server/sts"
	"github.com/iam4kube/iam4kube/test/fakests"
)

// Everything that STS or the network can do instead of answering well: what it is called,
// and that the next attempt repairs it.
func TestBadAnswers(t *testing.T) {
	for _, tc := range []struct {
		fault fakests.Fault
		kind  sts.Kind
		says  string
	}{
		{fakests.Fault{Effect: fakests.AccessDenied}, sts.Denied, "AccessDenied: User: arn:aws:iam::999988887777:user/iam4kube is not authorized to perform: sts:AssumeRole on resource: arn:aws:iam::123456789012:role/ns-app"},
		{fakests.Fault{Effect: fakests.Throttling}, sts.Throttled, "Throttling: Rate exceeded"},
		{fakests.Fault{Effect: fakests.ThrottlingException}, sts.Throttled, "ThrottlingException: Rate exceeded"},
		{fakests.Fault{Effect: fakests.TooManyRequests}, sts.Throttled, "Throttling: Rate exceeded"},
		{fakests.Fault{Effect: fakests.InvalidClientTokenID}, sts.Identity, "InvalidClientTokenId: STS refuses the server's own AWS credentials"},
		{fakests.Fault{Effect: fakests.ExpiredToken}, sts.Identity, "ExpiredToken: STS refuses the server's own AWS credentials"},
		{fakests.Fault{Effect: fakests.RegionDisabled}, sts.Denied, "RegionDisabledException: STS is not activated in this region for account:123456789012."},
		{fakests.Fault{Effect: fakests.InternalFailure}, sts.Unavailable, "InternalFailure: The request processing has failed"},
		{fakests.Fault{Effect: fakests.ServiceUnavailable}, sts.Unavailable, "ServiceUnavailable: The request has failed"},
		{fakests.Fault{Effect: fakests.Hang}, sts.Unavailable, "STS did not answer in time"},
		{fakests.Fault{Effect: fakests.Reset}, sts.Unavailable, "STS cannot be reached: "},
		{fakests.Fault{Effect: fakests.IssueThenReset}, sts.Unavailable, "STS cannot be reached: "},
		{fakests.Fault{Effect: fakests.NotXML}, sts.Unavailable, "STS gave no readable answer, HTTP status 200"},
		{fakests.Fault{Effect: fakests.TruncatedXML}, sts.Unavailable, "STS gave no readable answer, HTTP status 200"},
		{fakests.Fault{Effect: fakests.EmptyBody}, sts.Unavailable, "STS "},
		{fakests.Fault{Effect: fakests.NoCredentials}, sts.Unavailable, "STS answered without complete credentials"},
		{fakests.Fault{Effect: fakests.PartialCredentials}, sts.Unavailable, "STS answered without complete credentials"},
		{fakests.Fault{Effect: fakests.ExpiresIn, Lifetime: -time.Minute}, sts.Unavailable, "STS answered with credentials that expired at "},
	} {
		t.Run(string(tc.fault.Effect), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := simulate(t, setup{})
				r := s.good("ns", "app")
				tc.fault.Times = 1
				s.fake.SetFault(r.ARN, tc.fault)
				s.want(r)
				s.tried(r)
				issued, failure := s.cache.Get(r)
				if issued != nil || failure == nil || failure.Kind != tc.kind || !strings.HasPrefix(failure.Error(), tc.says) {
					t.Fatalf("%v, %v %q; want %v %q", issued, failure.Kind, failure, tc.kind, tc.says)
				}
				t.Log(failure)
				if n := s.metric("iam4kube_sts_attempts_total", string(tc.kind)); n != 1 {
					t.Errorf("%v attempts counted", n)
				}
				level := zapcore.WarnLevel
				if tc.kind == sts.Identity {
					level = zapcore.ErrorLevel
				}
				synctest.Wait() // the line comes after the waking
				if lines := s.logs.All(); len(lines) != 1 || lines[0].Level != level {
					t.Errorf("logged: %v", lines)
				}
				if took := s.back([]*role.Role{r}); took > 2*time.Second {
					t.Errorf("repaired after %v", took)
				}
			})
		})
	}
}

// Credentials with less life than was asked for are used and refreshed in time.
func TestShortLivedCredentials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := simulate(t, setup{})
		r := s.good("ns", "app")
		s.fake.SetFault(r.ARN, fakests.Fault{Effect: fakests.ExpiresIn, Lifetime: 2 * time.Minute})
		s.want(r)
		s.filled()
		everySecond(20*time.Minute, func() {
			if issued, failure := s.cache.Get(r); issued == nil || time.Until(issued.Expiration) < 40*time.Second {
				t.Fatalf("%v, %v", issued, failure)
			}
		})
		if n := len(s.fake.Attempts()); n > 22 {
			t.Errorf("%d attempts", n)
		}
	})
}

// A thousand requests for one role wait for one attempt, and all of them are woken by its
// end.
func TestOneFlightPerRole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := simulate(t, setup{})
		r := s.good("ns", "app")
		s.fake.SetFault(r.ARN, fakests.Fault{Delay: 5 * time.Second})
		s.want(r)
		start := time.Now()
		var waiters sync.WaitGroup
		got := make(chan *credentials.Issued, 1000)
		for range 1000 {
			waiters.Go(func() {
				issued, err := s.await(t.Context(), r)
				if err != nil {
					t.Error(err)
				}
				got <- issued
			})
		}
		waiters.Wait()
		if took := time.Since(start); took != 5*time.Second {
			t.Errorf("took %v", took)
		}
		first := <-got
		for range 999 {
			if issued := <-got; issued != first {
				t.Fatal("not the same credentials for all")
			}
		}
		if n := len(s.fake.Attempts()); n != 1 {
			t.Errorf("%d attempts", n)
		}
		if n := s.hub.Len(); n != 0 {
			t.Errorf("%d waiters are left", n)
		}
	})
}

// A role that is dropped while STS is asked for it is forgotten, and a role that is wanted
// again starts anew, without its old failures.
func TestDropAndWantAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := simulate(t, setup{})
		r := s.good("ns", "app")
		s.fake.SetFault(r.ARN, fakests.Fault{Delay: 5 * time.Second, Times: 1})
		s.want(r)
		advance(time.Second)
		s.cache.Drop(r)
		advance(time.Minute)
		if issued, failure := s.cache.Get(r); issued != nil || failure != nil {
			t.Fatalf("dropped, but %v, %v", issued, failure)
		}
		if dump := s.cache.Dump(); len(dump) != 0 {
			t.Fatalf("dropped, but %v", dump)
		}
		s.want(r)
		s.served(r, time.Second)

		denied := s.bogus("ns", "denied")
		s.want(denied)
		advance(20 * time.Minute)
		s.cache.Drop(denied)
		s.add(denied)
		s.want(denied)
		s.served(denied, time.Second)
		if n := len(s.attemptsFor(r)); n != 2 {
			t.Errorf("%d attempts, want that of the dropped one and one more", n)
		}
	})
}

// Two ServiceAccounts never share credentials, even for one role; all that use one
// ServiceAccount do.
func TestServiceAccountsShareNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := simulate(t, setup{})
		annotations := map[string]string{role.AnnotationARN: "arn:aws:iam::123456789012:role/shared"}
		one, other := annotated(t, "ns", "one", annotations), annotated(t, "ns", "other", annotations)
		s.add(one)
		s.want(one, other, one)
		s.served(one, time.Second)
		s.served(other, time.Second)
		a, _ := s.cache.Get(one)
		b, _ := s.cache.Get(other)
		if a.AccessKeyID == b.AccessKeyID || len(s.fake.Attempts()) != 2 {
			t.Errorf("%v and %v after %d attempts", a, b, len(s.fake.Attempts()))
		}
	})
}

// With an assumed role as its identity the server gets no sessions over an hour; the error
// says why and what to do.
func TestRoleChaining(t *testing.T) {
	how := webIdentity(t)
	synctest.Test(t, func(t *testing.T) {
		s := simulate(t, how)
		r := annotated(t, "ns", "app", map[string]string{role.AnnotationARN: "arn:aws:iam::123456789012:role/long", role.AnnotationDuration: "7200"})
		s.add(r)
		s.want(r)
		_, err := s.await(t.Context(), r)
		for _, want := range []string{"role chaining", "ns@app asks for 2h0m0s", role.AnnotationDuration, "--session-duration", "IAM user"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v: does not say %q", err, want)
			}
		}
	})
}

// Roles of other partitions are served by the STS of theirs.
func TestPartitions(t *testing.T) {
	for region, partition := range map[string]string{"cn-north-1": "aws-cn", "us-gov-west-1": "aws-us-gov", "us-iso-east-1": "aws-iso", "us-isob-east-1": "aws-iso-b"} {
		t.Run(partition, func(t *testing.T) {
			key := fakests.Key{AccessKeyID: "AKIA3333333333333333", SecretAccessKey: "secret-of-the-other-partition-0000000000", ARN: "arn:" + partition + ":iam::999988887777:user/iam4kube"}
			how := setup{
				fake:    fakests.Config{Region: region},
				env:     map[string]string{"AWS_REGION": region, "AWS_ACCESS_KEY_ID": key.AccessKeyID, "AWS_SECRET_ACCESS_KEY": key.SecretAccessKey},
				prepare: func(f *fakests.Fake) { f.AddKey(key) },
			}
			synctest.Test(t, func(t *testing.T) {
				s := simulate(t, how)
				r := annotated(t, "ns", "app", map[string]string{role.AnnotationARN: "arn:" + partition + ":iam::210987654321:role/path/app"})
				s.add(r)
				s.want(r)
				s.served(r, time.Second)
				issued, _ := s.cache.Get(r)
				if from, known := s.fake.Issued(issued.AccessKeyID); !known || from.RoleARN != r.ARN {
					t.Errorf("credentials of %v", from.RoleARN)
				}
			})
		})
	}
}

// Nothing that the cache tells holds a secret.
func TestDumpAndErrorsHoldNoSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := simulate(t, setup{})
		r := s.good("ns", "app")
		bogus := s.bogus("ns", "bogus")
		s.want(r, bogus)
		s.filled()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := s.await(ctx, bogus)
		checkNoSecret(t, s.fake, s.cache.Dump(), err)
	})
}
