package sts

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/internal/server"
	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/fakests"
)

// A denied role is answered at once, from the last attempt, as EC2 does: 200 and a Code
// that is not Success. Another role's name is 404, and denied credentials stay so without
// a further attempt for each request.
func TestDenial(t *testing.T) {
	s := start(t)
	namespace, arn := newNamespace(t, "denial"), "arn:aws:iam::123456789012:role/no-such-role"
	createAccount(t, namespace, "app", annotations(arn))
	from := createPod(t, namespace, "app", "app")
	waitAttempt(t, arn)
	for range 20 {
		began := time.Now()
		status, d, body := get(t, s, from, arn)
		if status != http.StatusOK || d.Code == "Success" || d.Code == "" || d.AccessKeyId != "" {
			t.Fatalf("%d %s", status, body)
		}
		for _, want := range []string{arn, "AccessDenied", "denial@app", "trust policy", "external ID none, 3600 s", "The next attempt is at 20"} {
			if !strings.Contains(d.Message, want) {
				t.Errorf("the message does not say %q: %s", want, d.Message)
			}
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("took %v, although nothing has to be waited for", took)
		}
	}
	if status, list := s.Get(t, from, rolesPath); status != http.StatusOK || list != "no-such-role" {
		t.Errorf("%d %q", status, list)
	}
	if status, body := s.Get(t, from, rolesPath+"another-role"); status != http.StatusNotFound {
		t.Errorf("%d %s", status, body)
	}
	if status, body := s.Get(t, from, "/iam4kube/ready?wait=10s"); status < 400 || !strings.Contains(body, "AccessDenied") {
		t.Errorf("ready: %d %s", status, body)
	}
	if n := len(attemptsFor(arn)); n > 5 {
		t.Errorf("%d attempts", n)
	}
}

// Trouble of STS that may pass is waited for, and then told with a 503.
func TestPassingFailures(t *testing.T) {
	s := start(t, func(c *server.Config) { c.MaxWait = 500 * time.Millisecond })
	namespace := newNamespace(t, "passing")
	for effect, says := range map[fakests.Effect]string{
		fakests.ServiceUnavailable: "ServiceUnavailable: The request has failed",
		fakests.Throttling:         "Throttling: Rate exceeded",
		fakests.Reset:              "STS cannot be reached",
		fakests.NotXML:             "STS gave no readable answer",
		fakests.PartialCredentials: "STS answered without complete credentials",
		fakests.Hang:               "STS has not answered yet",
	} {
		t.Run(string(effect), func(t *testing.T) {
			arn, name := env.NewRole(), strings.ToLower(string(effect))
			env.STS.SetFault(arn, fakests.Fault{Effect: effect})
			t.Cleanup(func() { env.STS.SetFault(arn) })
			createAccount(t, namespace, name, annotations(arn))
			from := createPod(t, namespace, name, name)
			if effect != fakests.Hang {
				waitAttempt(t, arn)
			}
			began := time.Now()
			status, _, body := get(t, s, from, arn)
			if took := time.Since(began); took < 500*time.Millisecond {
				t.Errorf("answered after %v", took)
			}
			for _, want := range []string{"missing credentials", arn, namespace + "/" + name, from.String(), says} {
				if status != http.StatusServiceUnavailable || !strings.Contains(body, want) {
					t.Errorf("%d, does not say %q: %s", status, want, body)
				}
			}
		})
	}
}

// STS refuses the server itself: 503 says whose fault it is, there is an error in the log
// and a metric, and the next good answer ends it.
func TestOwnIdentityRefused(t *testing.T) {
	s := start(t, func(c *server.Config) { c.MaxWait = 500 * time.Millisecond })
	namespace, arn := newNamespace(t, "identity"), env.NewRole()
	env.STS.SetFault(arn, fakests.Fault{Effect: fakests.InvalidClientTokenID})
	t.Cleanup(func() { env.STS.SetFault(arn) })
	createAccount(t, namespace, "app", annotations(arn))
	from := createPod(t, namespace, "app", "app")
	waitAttempt(t, arn)
	status, _, body := get(t, s, from, arn)
	if status != http.StatusServiceUnavailable || !strings.Contains(body, "STS refuses the server's own AWS credentials") {
		t.Errorf("%d %s", status, body)
	}
	refused := 0
	for _, line := range s.Logs.Lines("STS refuses the server's own credentials") {
		if line["level"] == "error" && line["namespace"] == namespace && line["code"] == "InvalidClientTokenId" {
			refused++
		}
	}
	if refused == 0 {
		t.Error("no such line in the log")
	}
	if s.Metric(t, "iam4kube_sts_attempts_total", "outcome", "identity") == 0 {
		t.Error("the metric does not say so")
	}
	env.STS.SetFault(arn)
	environment.Eventually(t, within, func() error {
		if status, _, body := get(t, s, from, arn); status != http.StatusOK {
			return fmt.Errorf("%d %s", status, body)
		}
		return nil
	})
}

// Roles that are denied, slow or wrongly annotated do not keep the server from being
// ready, and it is not ready before each has had its attempt.
func TestReadyOnceEveryRoleWasTried(t *testing.T) {
	namespace, slow := newNamespace(t, "ready"), env.NewRole()
	env.STS.SetFault(slow, fakests.Fault{Delay: time.Second})
	t.Cleanup(func() { env.STS.SetFault(slow) })
	createAccount(t, namespace, "slow", annotations(slow))
	createAccount(t, namespace, "denied", annotations("arn:aws:iam::123456789012:role/not-for-ready"))
	createAccount(t, namespace, "broken", annotations("not an ARN"))
	createAccount(t, namespace, "broken-too", annotations(env.NewRole(), role.AnnotationDuration, "1"))
	s := start(t)
	s.WaitReady(t)
	tried := attemptsFor(slow)
	if len(tried) != 1 || tried[0].Outcome != fakests.OutcomeSuccess || len(attemptsFor("arn:aws:iam::123456789012:role/not-for-ready")) == 0 {
		t.Errorf("ready with these attempts: %v", tried)
	}
}

// After --ready-within, roles that have not been tried yet do not count.
func TestReadyWithin(t *testing.T) {
	namespace := newNamespace(t, "ready-within")
	for i := range 3 {
		createAccount(t, namespace, fmt.Sprint("app", i), annotations(env.NewRole()))
	}
	const readyWithin = 2 * time.Second
	began := time.Now()
	s := start(t, func(c *server.Config) { c.ReadyWithin, c.STSRateLimit, c.STSRateBurst = readyWithin, 0.01, 1 })
	environment.Eventually(t, within, func() error {
		status, reason := s.Readyz(t)
		if status == http.StatusOK {
			return nil
		}
		return fmt.Errorf("%d %s", status, reason)
	})
	if took := time.Since(began); took < readyWithin {
		t.Errorf("ready after %v, with roles that were not tried", took)
	}
}
