package sts

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/internal/server"
	"github.com/iam4kube/iam4kube/test/fakests"
)

// With the default limits, 100 new roles whose pods ask all the time take one attempt
// each, never more than burst + rate·t, and the time that this takes. That the limit is
// kept exactly is shown with simulated time; here attempts are seen when they arrive, so
// the first ones may be late by what a loaded machine takes for them.
func TestRateLimit(t *testing.T) {
	const roles, perSecond, burst, late = 100, 10, 20, 3
	namespace := newNamespace(t, "rate")
	arns := map[string]netip.Addr{}
	for i := range roles {
		arn := named(123456789012, fmt.Sprint("rate-", i))
		createAccount(t, namespace, fmt.Sprint("app", i), annotations(arn))
		arns[arn] = createPod(t, namespace, fmt.Sprint("app", i), fmt.Sprint("app", i))
	}
	before := len(env.STS.Attempts())
	s := start(t, func(c *server.Config) { c.STSRateLimit, c.STSRateBurst = perSecond, burst })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var pods sync.WaitGroup
	for arn, from := range arns {
		client := s.Client(t, from)
		pods.Go(func() {
			for status := 0; status != http.StatusOK; {
				response, body, err := s.Do(ctx, client, http.MethodGet, path(arn), nil)
				if err != nil {
					t.Errorf("%s: %v", arn, err)
					return
				}
				if status = response.StatusCode; status != http.StatusOK && status != http.StatusServiceUnavailable {
					t.Errorf("%s: %d %s", arn, status, body)
					return
				}
			}
		})
	}
	pods.Wait()
	attempts := env.STS.Attempts()[before:]
	if excess := fakests.RateExceeded(attempts, perSecond, burst); excess > late {
		t.Errorf("the limit was exceeded by %.1f attempts", excess)
	}
	for arn := range arns {
		if n := len(attemptsFor(arn)); n != 1 {
			t.Errorf("%d attempts for %s", n, arn)
		}
	}
	took := attempts[len(attempts)-1].Time.Sub(attempts[0].Time)
	if most := time.Duration(1.05 * float64(len(attempts)-burst) / perSecond * float64(time.Second)); took > most+time.Second {
		t.Errorf("%d attempts took %v, want %v", len(attempts), took, most)
	}
}
