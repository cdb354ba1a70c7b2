package server

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/test/controlplane"
)

// workload is a pod with a ServiceAccount, as far as they were created.
type workload struct {
	controlplane.Pod
	from netip.Addr
	arn  string
}

// newNamespace makes a namespace for one test.
func newNamespace(t *testing.T, name string) string {
	t.Helper()
	if err := env.CreateNamespace(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	return name
}

// newWorkload describes a pod with an address and a role of its own; nothing is created
// but the role.
func newWorkload(namespace, name string) workload {
	from := env.Address()
	return workload{
		Pod:  controlplane.Pod{Namespace: namespace, Name: name, ServiceAccount: name, IPs: []string{from.String()}},
		from: from,
		arn:  env.NewRole(),
	}
}

func (w workload) annotations() map[string]string {
	return map[string]string{role.AnnotationARN: w.arn}
}

func (w workload) createAccount(t *testing.T, annotations map[string]string) {
	t.Helper()
	err := env.CreateServiceAccount(t.Context(), controlplane.ServiceAccount{
		Namespace: w.Namespace, Name: w.ServiceAccount, Annotations: annotations,
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (w workload) createPod(t *testing.T) {
	t.Helper()
	if _, err := env.CreatePod(t.Context(), w.Pod); err != nil {
		t.Fatal(err)
	}
}

// create creates the ServiceAccount with its annotation, and the pod.
func (w workload) create(t *testing.T) workload {
	t.Helper()
	w.createAccount(t, w.annotations())
	w.createPod(t)
	return w
}

const rolesPath = "/latest/meta-data/iam/security-credentials/"

// path is that of the pod's credentials.
func (w workload) path() string {
	return rolesPath + role.Role{ARN: w.arn}.Name()
}

// document is EC2's answer for credentials.
type document struct {
	Code, LastUpdated, Type, AccessKeyId, SecretAccessKey, Token, Expiration, Message string
}

// owner checks that the body are credentials that STS has issued, and returns the role
// and session name that they were issued for.
func owner(t *testing.T, body string) (arn, sessionName string) {
	t.Helper()
	var d document
	if err := json.Unmarshal([]byte(body), &d); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	issued, known := env.STS.Issued(d.AccessKeyId)
	if !known || issued.SecretAccessKey != d.SecretAccessKey || issued.SessionToken != d.Token || d.Code != "Success" {
		t.Fatalf("not what STS has issued: %s", body)
	}
	return issued.RoleARN, issued.SessionName
}

func TestServesRoleAndCredentials(t *testing.T) {
	w := newWorkload(newNamespace(t, "serves"), "app").create(t)
	s := env.Start(t, env.Config(t))
	status, body := s.Get(t, w.from, rolesPath)
	if status != http.StatusOK || rolesPath+body != w.path() {
		t.Fatalf("role: %d %q", status, body)
	}
	status, body = s.Get(t, w.from, w.path())
	if status != http.StatusOK {
		t.Fatalf("credentials: %d %s", status, body)
	}
	if arn, session := owner(t, body); arn != w.arn || session != "serves@app" {
		t.Fatalf("credentials of %s for %s", arn, session)
	}
	s.WaitReady(t)
	status, body = s.Get(t, w.from, infoPath)
	profile := strings.Replace(w.arn, ":role/", ":instance-profile/", 1)
	if status != http.StatusOK || !strings.Contains(body, `"Code": "Success"`) || !strings.Contains(body, `"InstanceProfileArn": "`+profile+`"`) {
		t.Errorf("iam/info: %d %s", status, body)
	}
}
