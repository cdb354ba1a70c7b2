// Package outage tests what the server promises while the API server or STS is away, and
// while the server itself stops. It stops what other tests share, so it is a package of its
// own.
package outage

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/internal/server"
	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
)

// env is shared by the tests; each makes namespaces, roles and addresses of its own. Those
// that stop the API server are not parallel to others.
var env *environment.Environment

func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "5"); err != nil { // they wait more than they compute
		panic(err)
	}
	os.Exit(environment.Main(m, func(e *environment.Environment) { env = e }))
}

const rolesPath = "/latest/meta-data/iam/security-credentials/"

// workload is a pod with an address, a ServiceAccount and a role of its own.
type workload struct {
	controlplane.Pod
	from netip.Addr
	arn  string
}

func newNamespace(t *testing.T, name string) string {
	t.Helper()
	if err := env.CreateNamespace(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	return name
}

// newWorkload creates the role, nothing else.
func newWorkload(namespace, name string) workload {
	from := env.Address()
	return workload{
		Pod:  controlplane.Pod{Namespace: namespace, Name: name, ServiceAccount: name, IPs: []string{from.String()}},
		from: from,
		arn:  env.NewRole(),
	}
}

// onAddressOf gives the workload another one's address.
func (w workload) onAddressOf(other workload) workload {
	w.from, w.IPs = other.from, other.IPs
	return w
}

func (w workload) path() string { return rolesPath + role.Role{ARN: w.arn}.Name() }

// createAccount creates the ServiceAccount with its annotation.
func (w workload) createAccount(t *testing.T) workload {
	t.Helper()
	err := env.CreateServiceAccount(t.Context(), controlplane.ServiceAccount{
		Namespace: w.Namespace, Name: w.ServiceAccount, Annotations: map[string]string{role.AnnotationARN: w.arn},
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (w workload) createPod(t *testing.T) workload {
	t.Helper()
	if _, err := env.CreatePod(t.Context(), w.Pod); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w workload) deletePod(t *testing.T) {
	t.Helper()
	if err := env.DeletePod(t.Context(), w.Namespace, w.Name, 0); err != nil {
		t.Fatal(err)
	}
}

// create creates all of it.
func (w workload) create(t *testing.T) workload {
	t.Helper()
	return w.createAccount(t).createPod(t)
}

// newGate returns a gate before the API server, and flags for a server behind it.
func newGate(t *testing.T) (*controlplane.Gate, server.Config) {
	t.Helper()
	direct, err := env.ServiceAccountConfig(t.Context(), environment.Namespace, environment.ServiceAccount)
	if err != nil {
		t.Fatal(err)
	}
	gate, err := controlplane.NewGate(direct.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(gate.Close)
	cfg := env.Config(t)
	cfg.Kubeconfig = env.Kubeconfig(t, gate.Config(direct))
	return gate, cfg
}

func set(t *testing.T, gate *controlplane.Gate, mode controlplane.GateMode) {
	t.Helper()
	if err := gate.Set(mode); err != nil {
		t.Fatal(err)
	}
}

// check returns an error unless the body are credentials that STS has issued for the
// workload.
func (w workload) check(status int, body string) error {
	var document struct{ Code, AccessKeyId, SecretAccessKey, Token, Expiration string }
	if status != http.StatusOK {
		return fmt.Errorf("status %d: %s", status, body)
	}
	if err := json.Unmarshal([]byte(body), &document); err != nil {
		return fmt.Errorf("%w: %s", err, body)
	}
	issued, known := env.STS.Issued(document.AccessKeyId)
	if !known || issued.SecretAccessKey != document.SecretAccessKey || issued.SessionToken != document.Token || document.Code != "Success" {
		return fmt.Errorf("not what STS has issued: %s", body)
	}
	if want := w.Namespace + "@" + w.ServiceAccount; issued.RoleARN != w.arn || issued.SessionName != want {
		return fmt.Errorf("credentials of %s for %s, want %s for %s", issued.RoleARN, issued.SessionName, w.arn, want)
	}
	expiration, err := time.Parse(time.RFC3339, document.Expiration)
	if err != nil {
		return err
	}
	// The answer may have been on its way for a moment, in the last one of their life.
	if expiration.Before(time.Now().Add(-time.Second)) {
		return fmt.Errorf("credentials that expired at %s", document.Expiration)
	}
	return nil
}

// get asks for the workload's credentials once.
func (w workload) get(ctx context.Context, s *environment.Server, client *http.Client) error {
	response, body, err := s.Do(ctx, client, http.MethodGet, w.path(), nil)
	if err != nil {
		return err
	}
	return w.check(response.StatusCode, body)
}

// request asks for the workload's credentials in the background.
func (w workload) request(t *testing.T, s *environment.Server) <-chan error {
	t.Helper()
	client, done := s.Client(t, w.from), make(chan error, 1)
	go func() { done <- w.get(t.Context(), s, client) }()
	return done
}

// warm returns once each workload is served.
func warm(t *testing.T, s *environment.Server, workloads ...workload) {
	t.Helper()
	for _, w := range workloads {
		if err := w.get(t.Context(), s, s.Client(t, w.from)); err != nil {
			t.Fatal(err)
		}
	}
}

// pass lets a part of an outage's length pass.
func pass(t *testing.T, d time.Duration) {
	t.Helper()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	}
}
