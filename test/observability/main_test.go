// Package observability tests what operators and users see of a server: metrics, events,
// logs, dumps; and what its ServiceAccount may do. The servers run against a real API
// server and the fake STS.
package observability

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/netns"
)

// env is shared by the tests; each makes namespaces, roles and addresses of its own.
var env *environment.Environment

// TestMain runs the tests in a network namespace, because the debug listener's port is
// fixed and others may use it, too.
func TestMain(m *testing.M) {
	if netns.Check() != nil { // still where modules can be fetched
		if err := build(); err != nil {
			fmt.Fprintln(os.Stderr, "observability:", err)
			os.Exit(1)
		}
	}
	netns.Main(m, func() int {
		return environment.Main(m, func(e *environment.Environment) { env = e })
	})
}

func build() error {
	_, controlPlane := controlplane.Build(context.Background())
	_, race := environment.Build("cmd/server", "-race")
	_, released := environment.Build("cmd/server")
	return errors.Join(controlPlane, race, released)
}

const (
	rolesPath = "/latest/meta-data/iam/security-credentials/"
	zonePath  = "/latest/meta-data/placement/availability-zone"
	// within bounds what comes in a moment, on a machine that is busy.
	within = 30 * time.Second
)

// workload is a pod with a ServiceAccount of the same name.
type workload struct {
	controlplane.Pod
	from netip.Addr
	arn  string
}

// newNamespace makes a namespace whose pods and ServiceAccounts go with the test, so that
// the next test's server does not tell of them.
func newNamespace(t *testing.T, name string) string {
	t.Helper()
	if err := env.CreateNamespace(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, now, all := context.Background(), int64(0), metav1.ListOptions{}
		core := env.Client.CoreV1()
		if err := errors.Join(
			core.Pods(name).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &now}, all),
			core.ServiceAccounts(name).DeleteCollection(ctx, metav1.DeleteOptions{}, all),
		); err != nil {
			t.Error(err)
		}
	})
	return name
}

// newWorkload describes a pod with an address of its own, and the role that its
// ServiceAccount will name; nothing is created.
func newWorkload(namespace, name, arn string) workload {
	from := env.Address()
	return workload{
		Pod:  controlplane.Pod{Namespace: namespace, Name: name, ServiceAccount: name, IPs: []string{from.String()}},
		from: from,
		arn:  arn,
	}
}

// createAccount creates the ServiceAccount with its annotation, if it has a role.
func (w workload) createAccount(t *testing.T) workload {
	t.Helper()
	account := controlplane.ServiceAccount{Namespace: w.Namespace, Name: w.ServiceAccount}
	if w.arn != "" {
		account.Annotations = map[string]string{role.AnnotationARN: w.arn}
	}
	if err := env.CreateServiceAccount(t.Context(), account); err != nil {
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

func (w workload) create(t *testing.T) workload {
	t.Helper()
	return w.createAccount(t).createPod(t)
}

// path is that of the pod's credentials.
func (w workload) path() string { return rolesPath + role.Role{ARN: w.arn}.Name() }

// get asks as the pod for its credentials and expects this status.
func (w workload) get(t *testing.T, s *environment.Server, want int) (body string) {
	t.Helper()
	status, body := s.Get(t, w.from, w.path())
	if status != want {
		t.Fatalf("%s/%s: status %d, want %d: %s", w.Namespace, w.Name, status, want, body)
	}
	return body
}

// getCredentials asks as the pod for its credentials and returns their AccessKeyId.
func (w workload) getCredentials(t *testing.T, s *environment.Server) (accessKeyID string) {
	t.Helper()
	var document struct{ Code, AccessKeyId string }
	body := w.get(t, s, http.StatusOK)
	if err := json.Unmarshal([]byte(body), &document); err != nil || document.Code != "Success" {
		t.Fatalf("%v: %s", err, body)
	}
	return document.AccessKeyId
}

// events are what kubectl describe shows of the pod.
func (w workload) events(t *testing.T) []corev1.Event {
	t.Helper()
	list, err := env.Client.CoreV1().Events(w.Namespace).List(t.Context(), metav1.ListOptions{FieldSelector: fields.Set{
		"involvedObject.kind": "Pod", "involvedObject.namespace": w.Namespace, "involvedObject.name": w.Name,
	}.String()})
	if err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// waitEvent returns the pod's only event, once there is one that satisfies the condition.
func (w workload) waitEvent(t *testing.T, condition func(corev1.Event) bool) (event corev1.Event) {
	t.Helper()
	environment.Eventually(t, within, func() error {
		all := w.events(t)
		if len(all) != 1 || !condition(all[0]) {
			return fmt.Errorf("events of %s/%s: %+v", w.Namespace, w.Name, all)
		}
		event = all[0]
		return nil
	})
	return event
}
