// Package credentials runs the server's credentials cache and its STS client, both as
// they are, against the fake STS, for hours of simulated time.
package credentials

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/iam4kube/iam4kube/internal/server/credentials"
	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/internal/server/sts"
	"github.com/iam4kube/iam4kube/internal/server/waiting"
	"github.com/iam4kube/iam4kube/test/fakests"
)

// The defaults of --sts-rate-limit and --sts-rate-burst.
const (
	perSecond = 10
	burst     = 20
)

// user is the IAM user that the server is, unless a test says otherwise.
var user = fakests.Key{
	AccessKeyID:     "AKIA2222222222222222",
	SecretAccessKey: "server-own-secret-never-to-be-seen-000000",
	ARN:             "arn:aws:iam::999988887777:user/iam4kube",
}

// simulation is a running cache with what is around it.
type simulation struct {
	t     *testing.T
	fake  *fakests.Fake
	sts   *fakests.Server
	hub   *waiting.Hub
	cache *credentials.Cache
	logs  *observer.ObservedLogs
	start time.Time

	registry *prometheus.Registry
}

// setup is what a test may choose before the simulation starts.
type setup struct {
	fake fakests.Config
	// env is the AWS configuration besides the endpoint, instead of user's keys.
	env map[string]string
	// region is that of --region.
	region string
	// prepare is called before the cache starts.
	prepare func(*fakests.Fake)
}

// simulate starts a cache that runs until the test ends. Call it in a bubble of
// testing/synctest: clock and timers are simulated there, and hours pass as soon as every
// goroutine waits for one. The SDK's HTTP client is its own; only its connections are
// net.Pipe, as the bubble needs.
//
// At the end, no window of time may have had more than burst + rate·t attempts, and no
// log line a secret.
func simulate(t *testing.T, how setup) *simulation {
	t.Helper()
	env := map[string]string{
		"AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL_STS": "http://sts.invalid", "AWS_EC2_METADATA_DISABLED": "true",
		"AWS_ACCESS_KEY_ID": user.AccessKeyID, "AWS_SECRET_ACCESS_KEY": user.SecretAccessKey,
		// Not those of whoever runs the tests.
		"AWS_CONFIG_FILE": filepath.Join(t.TempDir(), "none"), "AWS_SHARED_CREDENTIALS_FILE": filepath.Join(t.TempDir(), "none"),
		"AWS_PROFILE": "", "AWS_SESSION_TOKEN": "", "AWS_WEB_IDENTITY_TOKEN_FILE": "", "AWS_CA_BUNDLE": "",
	}
	if how.env != nil {
		env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"] = "", ""
	}
	for _, variables := range []map[string]string{env, how.env} {
		for name, value := range variables {
			t.Setenv(name, value)
		}
	}
	s := newSimulation(t, how)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- s.cache.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the cache ended with %v", err)
		}
		s.sts.Close()
		// The rounding of the limiter's own arithmetic is all that times in a bubble have.
		if excess := fakests.RateExceeded(s.fake.Attempts(), perSecond, burst); excess > 1e-6 {
			t.Errorf("the limit was exceeded by %.2f attempts", excess)
		}
		s.checkLogs()
	})
	return s
}

func newSimulation(t *testing.T, how setup) *simulation {
	t.Helper()
	s := &simulation{
		t: t, fake: fakests.New(how.fake), hub: waiting.NewHub(1_000_000, 1_000_000),
		registry: prometheus.NewRegistry(), start: time.Now(),
	}
	s.fake.AddKey(user)
	if how.prepare != nil {
		how.prepare(s.fake)
	}
	s.sts = s.fake.StartPipe()
	client, err := sts.New(t.Context(), sts.NewLimiter(perSecond, burst), how.region, s.registry, config.WithHTTPClient(
		awshttp.NewBuildableClient().WithTransportOptions(func(transport *http.Transport) {
			transport.Proxy, transport.DialContext = nil, s.sts.DialContext
		})))
	if err != nil {
		s.sts.Close()
		t.Fatal(err)
	}
	core, logs := observer.New(zapcore.DebugLevel)
	s.logs = logs
	s.cache = credentials.New(client, s.hub, s.registry, zap.New(core))
	return s
}

// checkLogs searches everything that was logged for what must not be there.
func (s *simulation) checkLogs() {
	s.t.Helper()
	var text strings.Builder
	for _, entry := range s.logs.All() {
		line, err := json.Marshal(entry.ContextMap())
		if err != nil {
			s.t.Fatal(err)
		}
		text.WriteString(entry.Message)
		text.Write(line)
	}
	// Every session token begins alike; secret keys differ, and some stand for all.
	secrets := append([]string{"IQoJb3JpZ2luX2Vj"}, s.fake.Secrets()...)
	for _, secret := range secrets[:min(len(secrets), 200)] {
		if i := strings.Index(text.String(), secret); i >= 0 {
			s.t.Errorf("a secret was logged: %s", text.String()[max(0, i-200):i+10])
		}
	}
}

// annotated is the role of a ServiceAccount with these annotations.
func annotated(t *testing.T, namespace, account string, annotations map[string]string) *role.Role {
	t.Helper()
	r, err := role.FromAnnotations(namespace, account, annotations, role.Sessions{Duration: time.Hour})
	if err != nil || r == nil {
		t.Fatalf("%v: %v", annotations, err)
	}
	return r
}

// bogus is a role of this ServiceAccount that STS does not have.
func (s *simulation) bogus(namespace, account string) *role.Role {
	s.t.Helper()
	return annotated(s.t, namespace, account, map[string]string{
		role.AnnotationARN: "arn:aws:iam::123456789012:role/" + namespace + "-" + account,
	})
}

// good is like bogus, but STS has the role.
func (s *simulation) good(namespace, account string) *role.Role {
	s.t.Helper()
	r := s.bogus(namespace, account)
	s.add(r)
	return r
}

// add lets STS have the role.
func (s *simulation) add(r *role.Role) {
	s.fake.AddRole(fakests.Role{ARN: r.ARN, MaxSessionDuration: 43200, Trust: fakests.Trust{Principals: []string{"*"}}})
}

// want wants the roles.
func (s *simulation) want(roles ...*role.Role) {
	for _, r := range roles {
		s.cache.Want(r)
	}
}

// await returns once the role has credentials or is denied, or ctx ends: what a
// request does in package metadata.
func (s *simulation) await(ctx context.Context, r *role.Role) (*credentials.Issued, error) {
	waiter, err := s.hub.Join(netip.IPv4Unspecified(), "")
	if err != nil {
		return nil, err
	}
	defer waiter.Leave()
	for {
		issued, failure := s.cache.Get(r)
		switch {
		case issued != nil:
			return issued, nil
		case failure != nil && failure.Kind == sts.Denied:
			return nil, failure
		}
		if waiter.Watch(r) {
			s.cache.Nudge(r)
			continue
		}
		select {
		case <-waiter.C:
		case <-ctx.Done():
			if failure != nil {
				return nil, failure
			}
			return nil, ctx.Err()
		}
	}
}

// served fails the test unless the role has credentials within this time, and returns
// how long it took.
func (s *simulation) served(r *role.Role, within time.Duration) time.Duration {
	s.t.Helper()
	start := time.Now()
	ctx, cancel := context.WithTimeout(s.t.Context(), within)
	defer cancel()
	if _, err := s.await(ctx, r); err != nil {
		s.t.Errorf("%s: not served within %v: %v", r.SessionName, within, err)
	}
	return time.Since(start)
}

// poll is a pod that asks for its credentials all the time, as an SDK does that has
// none: up to 15 s, a pause, and again.
func (s *simulation) poll(ctx context.Context, r *role.Role) {
	for ctx.Err() == nil {
		request, cancel := context.WithTimeout(ctx, 15*time.Second)
		_, _ = s.await(request, r) // whoever polls looks at Get
		cancel()
		sleep(ctx, 5*time.Second)
	}
}

// sleep sleeps in simulated time, or less if ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// everySecond calls check every second of this time, at once for the first time.
func everySecond(d time.Duration, check func()) {
	for end := time.Now().Add(d); time.Now().Before(end); advance(time.Second) {
		check()
	}
}

// filled waits until the roles that are wanted now have been tried.
func (s *simulation) filled() time.Duration {
	start := time.Now()
	s.cache.Fill()
	<-s.cache.Filled()
	return time.Since(start)
}

// tried waits until the role's first attempt has ended.
func (s *simulation) tried(r *role.Role) {
	for {
		if issued, failure := s.cache.Get(r); issued != nil || failure != nil {
			return
		}
		advance(time.Millisecond)
	}
}

// attemptsFor are the attempts for one role.
func (s *simulation) attemptsFor(r *role.Role) (attempts []fakests.Attempt) {
	for _, a := range s.fake.Attempts() {
		if a.RoleARN == r.ARN && a.SessionName == r.SessionName {
			attempts = append(attempts, a)
		}
	}
	return attempts
}

// metric is the value of a counter or gauge, by its labels' values.
func (s *simulation) metric(name string, labels ...string) float64 {
	s.t.Helper()
	families, err := s.registry.Gather()
	if err != nil {
		s.t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			var values []string
			for _, l := range m.GetLabel() {
				values = append(values, l.GetValue())
			}
			if strings.Join(values, ",") == strings.Join(labels, ",") {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	s.t.Fatal(errors.New("no metric " + name + " " + strings.Join(labels, ",")))
	return 0
}

// advance lets simulated time pass; use it in bubbles of testing/synctest alone.
func advance(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // costs no real time
}
