package fakests_test

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/iam4kube/iam4kube/test/fakests"
)

func TestErrorsOnDemand(t *testing.T) {
	for effect, c := range map[fakests.Effect]struct {
		status        int
		code, message string
	}{
		fakests.Throttling:           {400, "Throttling", "Rate exceeded"},
		fakests.ThrottlingException:  {400, "ThrottlingException", "Rate exceeded"},
		fakests.TooManyRequests:      {429, "Throttling", "Rate exceeded"},
		fakests.AccessDenied:         {403, "AccessDenied", "User: " + serverARN + " is not authorized to perform: sts:AssumeRole on resource: " + roleARN},
		fakests.InvalidClientTokenID: {403, "InvalidClientTokenId", "The security token included in the request is invalid."},
		fakests.ExpiredToken:         {403, "ExpiredToken", "The security token included in the request is expired"},
		fakests.RegionDisabled:       {403, "RegionDisabledException", "STS is not activated in this region for account:123456789012. Your account administrator can activate STS in this region using the IAM Console."},
		fakests.InternalFailure:      {500, "InternalFailure", "The request processing has failed because of an unknown error, exception or failure."},
		fakests.ServiceUnavailable:   {503, "ServiceUnavailable", "The request has failed due to a temporary failure of the server."},
	} {
		t.Run(string(effect), func(t *testing.T) {
			f := newFake()
			server := start(t, f)
			f.SetFault("", fakests.Fault{Effect: effect})
			_, err := assume(t, serverClient(server))
			wantError(t, err, c.status, c.code, c.message)
			if a := f.Attempts()[0]; a.Outcome != c.code || a.Status != c.status || a.Fault != effect || a.IssuedAccessKeyID != "" {
				t.Errorf("recorded %+v", a)
			}
			f.SetFault("")
			if _, err := assume(t, serverClient(server)); err != nil {
				t.Errorf("the fault was taken back, yet %v", err)
			}
		})
	}
}

func TestFaultDoesNotHideABadRequest(t *testing.T) {
	f := newFake()
	server := start(t, f)
	f.SetFault("", fakests.Fault{Effect: fakests.InternalFailure, Times: 1})
	_, err := assume(t, client(server, serverKey.AccessKeyID, "wrong", ""))
	if err == nil || f.Attempts()[0].Outcome != "SignatureDoesNotMatch" {
		t.Errorf("got %v", err)
	}
	form := assumeForm()
	form.Set("RoleSessionName", "/")
	if r := post(t, server, form, nil); r.Code != "ValidationError" {
		t.Errorf("got %s", r.body)
	}
	_, err = assume(t, serverClient(server)) // the one time was not used up before
	wantError(t, err, 500, "InternalFailure", "The request processing has failed because of an unknown error, exception or failure.")
}

func TestFaultsByRoleAndCount(t *testing.T) {
	f := newFake()
	server := start(t, f)
	f.AddRole(fakests.Role{ARN: nodeRole, Trust: fakests.Trust{Principals: []string{"*"}}})
	f.SetFault(roleARN,
		fakests.Fault{Effect: fakests.Throttling, Times: 2},
		fakests.Fault{Times: 1}, // none
		fakests.Fault{Effect: fakests.InternalFailure, Times: 1})
	outcomes := func(role string, n int) (got []string) {
		for range n {
			_, _ = assume(t, serverClient(server), func(in *sts.AssumeRoleInput) { in.RoleArn = aws.String(role) })
			attempts := f.Attempts()
			got = append(got, attempts[len(attempts)-1].Outcome)
		}
		return got
	}
	equal := func(got []string, want ...string) {
		t.Helper()
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("got %v, want %v", got, want)
				return
			}
		}
	}
	equal(outcomes(nodeRole, 1), "Success")
	equal(outcomes(roleARN, 5), "Throttling", "Throttling", "Success", "InternalFailure", "Success")
	f.SetFault("", fakests.Fault{Effect: fakests.ServiceUnavailable})
	f.SetFault(roleARN, fakests.Fault{Effect: fakests.AccessDenied, Times: 1})
	equal(outcomes(nodeRole, 1), "ServiceUnavailable")
	equal(outcomes(roleARN, 2), "AccessDenied", "ServiceUnavailable")
	f.SetFault("")
	equal(outcomes(nodeRole, 1), "Success")
}

func TestRetriesAreAttempts(t *testing.T) {
	f := newFake()
	server := start(t, f)
	f.SetFault("", fakests.Fault{Effect: fakests.Throttling, Times: 2})
	c := sts.New(serverClient(server).Options(), func(o *sts.Options) {
		o.Retryer = retry.NewStandard(func(o *retry.StandardOptions) {
			o.Backoff = retry.BackoffDelayerFunc(func(int, error) (time.Duration, error) { return 0, nil })
		})
	})
	if _, err := assume(t, c); err != nil {
		t.Fatal(err)
	}
	if n := len(f.Attempts()); n != 3 {
		t.Errorf("%d attempts, want 3", n)
	}
}

func TestBrokenAnswers(t *testing.T) {
	for effect, c := range map[fakests.Effect]struct {
		status int
		wrong  func(*sts.AssumeRoleOutput, error) bool // what the SDK made of it
	}{
		fakests.NotXML:       {200, func(_ *sts.AssumeRoleOutput, err error) bool { return err != nil }},
		fakests.TruncatedXML: {200, func(_ *sts.AssumeRoleOutput, err error) bool { return err != nil }},
		// The SDK takes an empty body for an answer in which everything is left out.
		fakests.EmptyBody:     {200, func(out *sts.AssumeRoleOutput, err error) bool { return err == nil && out.Credentials == nil }},
		fakests.NoCredentials: {200, func(out *sts.AssumeRoleOutput, err error) bool { return err == nil && out.Credentials == nil }},
		fakests.PartialCredentials: {200, func(out *sts.AssumeRoleOutput, err error) bool {
			return err == nil && out.Credentials.AccessKeyId != nil && out.Credentials.SessionToken == nil && out.Credentials.Expiration == nil
		}},
	} {
		t.Run(string(effect), func(t *testing.T) {
			f := newFake()
			server := start(t, f)
			f.SetFault(roleARN, fakests.Fault{Effect: effect})
			out, err := assume(t, serverClient(server))
			if !c.wrong(out, err) {
				t.Errorf("got %+v, %v", out, err)
			}
			a := f.Attempts()[0]
			if _, issued := f.Issued(a.IssuedAccessKeyID); !issued || a.Status != c.status || a.Fault != effect {
				t.Errorf("recorded %+v", a)
			}
			r := post(t, server, assumeForm(), nil)
			if r.status != c.status || effect == fakests.EmptyBody && r.body != "" {
				t.Errorf("got %d %q", r.status, r.body)
			}
		})
	}
}

func TestExpiresIn(t *testing.T) {
	f := newFake()
	server := start(t, f)
	for _, life := range []time.Duration{-time.Hour, 90 * time.Second} {
		f.SetFault(roleARN, fakests.Fault{Effect: fakests.ExpiresIn, Lifetime: life})
		before := time.Now()
		out, err := assume(t, serverClient(server))
		if err != nil {
			t.Fatal(err)
		}
		if got := out.Credentials.Expiration.Sub(before); got < life-time.Second || got > life+30*time.Second {
			t.Errorf("expires in %v, want %v", got, life)
		}
		issued, _ := f.Issued(*out.Credentials.AccessKeyId)
		_, err = issuedClient(server, issued).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
		if expired := err != nil; expired != (life < 0) {
			t.Errorf("with %v to live: %v", life, err)
		}
	}
}

func TestReset(t *testing.T) {
	for _, effect := range []fakests.Effect{fakests.Reset, fakests.IssueThenReset} {
		f := newFake()
		server := start(t, f)
		f.SetFault("", fakests.Fault{Effect: effect})
		if _, err := assume(t, serverClient(server)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: got %v, want a reset connection", effect, err)
		}
		a := f.Attempts()[0]
		_, issued := f.Issued(a.IssuedAccessKeyID)
		if a.Outcome != fakests.OutcomeReset || a.Status != 0 || issued != (effect == fakests.IssueThenReset) {
			t.Errorf("%s: recorded %+v", effect, a)
		}
	}
}

func TestHangEndsWithTheClientOrTheServer(t *testing.T) {
	f := newFake()
	f.SetFault("", fakests.Fault{Effect: fakests.Hang})
	server := f.Start()
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	call := func() {
		_, err := serverClient(server).AssumeRole(ctx, &sts.AssumeRoleInput{RoleArn: aws.String(roleARN), RoleSessionName: aws.String("s1")})
		result <- err
	}
	go call()
	attempts, err := f.WaitAttempts(t.Context(), 1)
	if err != nil || attempts[0].Outcome != fakests.OutcomePending {
		t.Fatalf("%v: %+v", err, attempts)
	}
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := f.WaitFor(t.Context(), func(a []fakests.Attempt) bool { return a[0].Outcome == fakests.OutcomeClientGone }); err != nil {
		t.Error(err)
	}
	if len(f.Secrets()) != 1 {
		t.Error("credentials were issued to nobody")
	}

	ctx = t.Context()
	go call()
	if _, err := f.WaitAttempts(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	server.Close()
	if err := <-result; err == nil {
		t.Error("an answer from a closed server")
	}
}

func TestDelayIsVirtualInABubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		server := f.StartPipe()
		defer server.Close()
		f.SetFault(roleARN, fakests.Fault{Delay: 20 * time.Second})
		began := time.Now()
		if _, err := assume(t, serverClient(server)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != 20*time.Second {
			t.Errorf("took %v, want exactly 20s", took)
		}

		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err := serverClient(server).AssumeRole(ctx, &sts.AssumeRoleInput{RoleArn: aws.String(roleARN), RoleSessionName: aws.String("s1")})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		synctest.Wait()
		if a := f.Attempts()[1]; a.Outcome != fakests.OutcomeClientGone || a.IssuedAccessKeyID != "" {
			t.Errorf("recorded %+v", a)
		}
	})
}

// A whole life in a bubble: sign, expire, be refused.
func TestSynctest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		server := f.StartPipe()
		defer server.Close()
		out, err := assume(t, serverClient(server), func(in *sts.AssumeRoleInput) { in.DurationSeconds = aws.Int32(900) })
		if err != nil {
			t.Fatal(err)
		}
		if want := time.Now().Add(900 * time.Second); !out.Credentials.Expiration.Equal(want) {
			t.Errorf("expires %v, want exactly %v", out.Credentials.Expiration, want)
		}
		issued, _ := f.Issued(*out.Credentials.AccessKeyId)
		whoami := func() error {
			_, err := issuedClient(server, issued).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
			return err
		}
		time.Sleep(899 * time.Second) //nolint:forbidigo // advances the clock of the bubble
		if err := whoami(); err != nil {
			t.Errorf("a second before the end: %v", err)
		}
		time.Sleep(time.Second) //nolint:forbidigo // advances the clock of the bubble
		wantError(t, whoami(), 403, "ExpiredToken", "The security token included in the request is expired")

		f.SetFault("", fakests.Fault{Effect: fakests.IssueThenReset})
		if _, err := assume(t, serverClient(server)); err == nil {
			t.Error("an answer over a cut connection")
		}
	})
}
