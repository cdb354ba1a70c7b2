// Package sts tests what of STS can only be seen with the whole server and a real API
// server: annotations, trust policies, and answers to pods. It counts attempts, so it has
// the fake STS and one server at a time for itself. What takes hours is in package
// credentials, with simulated time.
package sts

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/iam4kube/iam4kube/internal/server"
	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/fakests"
)

// env is shared by the tests; each makes namespaces, roles and addresses of its own.
var env *environment.Environment

func TestMain(m *testing.M) {
	os.Exit(environment.Main(m, func(e *environment.Environment) { env = e }))
}

const rolesPath = "/latest/meta-data/iam/security-credentials/"

// within bounds what takes milliseconds on a machine with nothing else to do.
const within = 30 * time.Second

// start starts a server, with these changes to its flags.
func start(t *testing.T, change ...func(*server.Config)) *environment.Server {
	t.Helper()
	cfg := env.Config(t)
	for _, c := range change {
		c(&cfg)
	}
	return env.Start(t, cfg)
}

func newNamespace(t *testing.T, name string) string {
	t.Helper()
	if err := env.CreateNamespace(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	return name
}

// annotations name a role, and whatever else is given as name, value, ...
func annotations(arn string, more ...string) map[string]string {
	all := map[string]string{role.AnnotationARN: arn}
	for i := 0; i < len(more); i += 2 {
		all[more[i]] = more[i+1]
	}
	return all
}

func createAccount(t *testing.T, namespace, name string, annotations map[string]string) {
	t.Helper()
	err := env.CreateServiceAccount(t.Context(), controlplane.ServiceAccount{Namespace: namespace, Name: name, Annotations: annotations})
	if err != nil {
		t.Fatal(err)
	}
}

// annotate changes annotations of a ServiceAccount; nil removes one.
func annotate(t *testing.T, namespace, name string, annotations map[string]any) {
	t.Helper()
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": annotations}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = env.Client.CoreV1().ServiceAccounts(namespace).Patch(t.Context(), name, types.MergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// createPod creates a running pod and returns its address.
func createPod(t *testing.T, namespace, name, account string) netip.Addr {
	t.Helper()
	from := env.Address()
	_, err := env.CreatePod(t.Context(), controlplane.Pod{Namespace: namespace, Name: name, ServiceAccount: account, IPs: []string{from.String()}})
	if err != nil {
		t.Fatal(err)
	}
	return from
}

// path is that of the role's credentials.
func path(arn string) string { return rolesPath + role.Role{ARN: arn}.Name() }

// document is EC2's answer for credentials, or for their failure.
type document struct {
	Code, AccessKeyId, SecretAccessKey, Token, Message string
}

// get asks for the credentials of a role.
func get(t *testing.T, s *environment.Server, from netip.Addr, arn string) (status int, d document, body string) {
	t.Helper()
	status, body = s.Get(t, from, path(arn))
	if status == http.StatusOK {
		d = parse(t, body)
	}
	return status, d, body
}

func parse(t *testing.T, body string) (d document) {
	t.Helper()
	if err := json.Unmarshal([]byte(body), &d); err != nil {
		t.Errorf("%v: %s", err, body)
	}
	return d
}

// session is what STS knows of the credentials, which have to be its own.
func (d document) session(t *testing.T) fakests.Issued {
	t.Helper()
	issued, known := env.STS.Issued(d.AccessKeyId)
	if !known || issued.SecretAccessKey != d.SecretAccessKey || issued.SessionToken != d.Token || d.Code != "Success" {
		t.Errorf("not what STS has issued: %s %s", d.Code, d.Message)
	}
	return issued
}

// waitAttempt waits until an attempt for the role has ended.
func waitAttempt(t *testing.T, arn string) fakests.Attempt {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	attempts, err := env.STS.WaitFor(ctx, func(attempts []fakests.Attempt) bool {
		ended := attemptsOf(arn, attempts)
		return len(ended) > 0 && ended[0].Outcome != fakests.OutcomePending
	})
	if err != nil {
		t.Fatalf("no attempt for %s: %v", arn, err)
	}
	return attemptsOf(arn, attempts)[0]
}

// attemptsFor are the attempts for the role so far.
func attemptsFor(arn string) []fakests.Attempt { return attemptsOf(arn, env.STS.Attempts()) }

func attemptsOf(arn string, all []fakests.Attempt) (attempts []fakests.Attempt) {
	for _, a := range all {
		if a.RoleARN == arn {
			attempts = append(attempts, a)
		}
	}
	return attempts
}

// named returns a role with the name, in one of any number of accounts.
func named(account int, name string, change ...func(*fakests.Role)) (arn string) {
	return env.NewRole(append([]func(*fakests.Role){func(r *fakests.Role) {
		r.ARN = fmt.Sprintf("arn:aws:iam::%012d:role/%s", account, name)
	}}, change...)...)
}
