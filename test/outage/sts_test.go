package outage

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/internal/server"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/fakests"
)

// While STS fails for a passing reason, pods with credentials do not notice, new pods wait,
// and when it is back they are served without anybody's help.
//
//nolint:tparallel // not parallel to tests with servers of their own, which fetch these roles too
func TestSTSOutage(t *testing.T) {
	namespace := newNamespace(t, "sts-outage")
	cfg := env.Config(t)
	cfg.MaxWait = 45 * time.Second
	s := env.Start(t, cfg)
	for _, outage := range []struct {
		effect fakests.Effect
		// lifetime of credentials that fall due for their refresh in the outage, at half
		// of it, and have to outlast it. An attempt that hangs is given up after 10 s.
		lifetime time.Duration
	}{
		{fakests.Hang, 24 * time.Second},
		{fakests.Reset, 12 * time.Second},
		{fakests.ServiceUnavailable, 12 * time.Second},
	} {
		t.Run(string(outage.effect), func(t *testing.T) {
			t.Parallel()
			name := strings.ToLower(string(outage.effect))
			lasting := newWorkload(namespace, "lasting-"+name).create(t)
			refreshed := newWorkload(namespace, "refreshed-"+name)
			fault(t, refreshed.arn, fakests.Fault{Effect: fakests.ExpiresIn, Lifetime: outage.lifetime, Times: 1})
			refreshed.create(t)
			late := newWorkload(namespace, "late-"+name)
			warm(t, s, lasting, refreshed)
			load := startLoad(t, s, nil, lasting, refreshed)

			stopped := fakests.Fault{Effect: outage.effect}
			fault(t, refreshed.arn, stopped)
			fault(t, late.arn, stopped)
			waiting := late.create(t).request(t, s)
			waitAttempt(t, late.arn, func(a fakests.Attempt) bool { return a.Fault == outage.effect })
			waitAttempt(t, refreshed.arn, func(a fakests.Attempt) bool { return a.Fault == outage.effect })
			select {
			case err := <-waiting:
				t.Fatalf("the new pod's request did not wait: %v", err)
			default:
			}
			env.STS.SetFault(refreshed.arn)
			env.STS.SetFault(late.arn)
			start := time.Now()
			if err := <-waiting; err != nil {
				t.Error(err)
			}
			t.Logf("the new pod was served %v after the end", time.Since(start))
			waitAttempt(t, refreshed.arn, func(a fakests.Attempt) bool { return a.Outcome == fakests.OutcomeSuccess && a.Fault == "" })
			load.mustHaveServed(t)
		})
	}
}

// The same where STS cannot even be connected to.
func TestSTSUnreachable(t *testing.T) {
	gate, s := behindSTSGate(t, env.Config(t))
	namespace := newNamespace(t, "sts-unreachable")
	lasting := newWorkload(namespace, "lasting").create(t)
	warm(t, s, lasting)
	load := startLoad(t, s, nil, lasting)
	for i, mode := range []controlplane.GateMode{controlplane.Refuse, controlplane.BlackHole} {
		set(t, gate, mode)
		waiting := newWorkload(namespace, fmt.Sprint("late-", i)).create(t).request(t, s)
		environment.Eventually(t, 10*time.Second, func() error {
			if s.Metric(t, "iam4kube_waiting_requests", "missing", "credentials") == 0 {
				return errors.New("the new pod's request does not wait")
			}
			return nil
		})
		pass(t, 2*time.Second)
		if status, body := s.Readyz(t); status != http.StatusOK {
			t.Errorf("not ready because STS is away: %s", body)
		}
		set(t, gate, controlplane.Pass)
		start := time.Now()
		if err := <-waiting; err != nil {
			t.Error(err)
		}
		t.Logf("the new pod was served %v after the end", time.Since(start))
	}
	load.mustHaveServed(t)
}

// behindSTSGate starts a server that reaches STS through a gate.
func behindSTSGate(t *testing.T, cfg server.Config) (*controlplane.Gate, *environment.Server) {
	t.Helper()
	gate := stsGate(t)
	s := env.Start(t, cfg)
	s.WaitReady(t)
	return gate, s
}

// stsGate lets servers that are started in this test's process reach STS through a gate.
func stsGate(t *testing.T) *controlplane.Gate {
	t.Helper()
	const variable = "AWS_ENDPOINT_URL_STS"
	gate, err := controlplane.NewGate(os.Getenv(variable))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(gate.Close)
	t.Setenv(variable, "http://"+gate.Addr())
	return gate
}

// fault sets faults until the test is over: servers of later tests fetch the role too.
func fault(t *testing.T, arn string, faults ...fakests.Fault) {
	t.Helper()
	env.STS.SetFault(arn, faults...)
	t.Cleanup(func() { env.STS.SetFault(arn) })
}

// waitAttempt returns when the fake STS has had such a request for the role.
func waitAttempt(t *testing.T, arn string, such func(fakests.Attempt) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := env.STS.WaitFor(ctx, func(attempts []fakests.Attempt) bool {
		return slices.ContainsFunc(attempts, func(a fakests.Attempt) bool { return a.RoleARN == arn && such(a) })
	})
	if err != nil {
		t.Fatal(err)
	}
}
