package sts

import (
	"context"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go/middleware"
)

func withHTTPClient(e *endpoint) func(*config.LoadOptions) error {
	return func(o *config.LoadOptions) error { return config.WithHTTPClient(e)(o) }
}

// checkWindows fails if some window has more than burst + rate·t requests.
func checkWindows(t *testing.T, times []time.Time, perSecond float64, burst int) {
	t.Helper()
	for i := range times {
		for j := i; j < len(times); j++ {
			most := float64(burst) + perSecond*times[j].Sub(times[i]).Seconds()
			if n := j - i + 1; float64(n) > most+1e-6 {
				t.Fatalf("%d requests within %v", n, times[j].Sub(times[i]))
			}
		}
	}
}

// Retries of the SDK count like any request, whoever sends them.
func TestLimiterCountsRetriesOfTheSDK(t *testing.T) {
	setenv(t, nil)
	synctest.Test(t, func(t *testing.T) {
		e := &endpoint{answer: failure(http.StatusInternalServerError, "InternalFailure", "broken")}
		limiter := NewLimiter(10, 20)
		cfg, err := config.LoadDefaultConfig(t.Context(), withHTTPClient(e), config.WithAPIOptions([]func(*middleware.Stack) error{limiter.addTo}))
		if err != nil {
			t.Fatal(err)
		}
		var calls sync.WaitGroup
		for range 50 {
			// A client of its own each, or else they would share a budget of retries.
			client := sts.NewFromConfig(cfg)
			calls.Go(func() {
				if _, err := client.GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{}); err == nil {
					t.Error("no error")
				}
			})
		}
		calls.Wait()
		if len(e.times) != 150 {
			t.Errorf("%d requests, want three for each call", len(e.times))
		}
		checkWindows(t, e.times, 10, 20)
	})
}

// A request that was admitted takes one place, and only one request does.
func TestAdmittedRequestTakesOnePlace(t *testing.T) {
	setenv(t, nil)
	synctest.Test(t, func(t *testing.T) {
		e := &endpoint{answer: success("2999-01-01T00:00:00Z")}
		client := newClient(t, e)
		for range 100 {
			ctx, err := client.Admit(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := client.AssumeRole(ctx, anyRole); err != nil {
				t.Fatal(err)
			}
		}
		checkWindows(t, e.times, 10, 20)
		// 19 at once, and then ten each second.
		if took := e.times[99].Sub(e.times[0]); took > 8200*time.Millisecond {
			t.Errorf("100 requests took %v", took)
		}
		ctx, err := client.Admit(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			if _, err := client.AssumeRole(ctx, anyRole); err != nil {
				t.Fatal(err)
			}
		}
		checkWindows(t, e.times, 10, 20)
	})
}

// Throttled requests of one second halve the rate once, down to a thirty-second of it;
// good answers give it back, and the burst at last.
func TestLimiterSlowsDownAndRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimiter(10, 20)
		for range 100 {
			l.slowDown()
		}
		if l.Rate() != 5 || l.tokens.Burst() != 1 {
			t.Errorf("%v/s and %d at once after one second of throttling", l.Rate(), l.tokens.Burst())
		}
		for range 100 {
			advance(time.Second)
			l.slowDown()
		}
		if l.Rate() != 10.0/32 {
			t.Errorf("%v/s at last", l.Rate())
		}
		for i := range 20 {
			if l.Rate() == 10 || l.tokens.Burst() != 1 {
				t.Errorf("%v/s and %d at once after %d good answers", l.Rate(), l.tokens.Burst(), i)
			}
			l.speedUp()
		}
		if l.Rate() != 10 || l.tokens.Burst() != 19 {
			t.Errorf("%v/s and %d at once after all", l.Rate(), l.tokens.Burst())
		}
	})
}

// The end of the server ends every wait.
func TestAdmitEndsWithItsContext(t *testing.T) {
	setenv(t, nil)
	client := newClient(t, &endpoint{answer: success("2999-01-01T00:00:00Z")})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := client.Admit(ctx); err == nil {
		t.Error("admitted")
	}
}

// The SDK is told not to repeat by itself: the cache knows what is more urgent.
func TestFailedAttemptIsNotRepeated(t *testing.T) {
	setenv(t, nil)
	e := &endpoint{answer: failure(http.StatusServiceUnavailable, "ServiceUnavailable", "later")}
	if _, err := newClient(t, e).AssumeRole(t.Context(), anyRole); err == nil || len(e.times) != 1 {
		t.Errorf("%v after %d requests", err, len(e.times))
	}
}

// advance lets simulated time pass; use it in bubbles of testing/synctest alone.
func advance(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // costs no real time
}
