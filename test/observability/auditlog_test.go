package observability

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/internal/server/audit"
	"github.com/iam4kube/iam4kube/internal/server/podtoken"
	"github.com/iam4kube/iam4kube/test/environment"
)

// auditRecords are those in a server's audit log, of which none may hold a secret.
func auditRecords(t *testing.T, path string) (all []audit.Record) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if leak := env.Leak(string(text)); leak != "" {
		t.Errorf("a secret: %s", leak)
	}
	for line := range strings.Lines(string(text)) {
		var r audit.Record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		all = append(all, r)
	}
	return all
}

// token is what the kubelet would project into the pod.
func (w workload) token(t *testing.T) string {
	t.Helper()
	pod, err := env.Client.CoreV1().Pods(w.Namespace).Get(t.Context(), w.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	seconds := int64(3600)
	request, err := env.Client.CoreV1().ServiceAccounts(w.Namespace).CreateToken(t.Context(), w.ServiceAccount, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{
			Audiences: []string{podtoken.Audience}, ExpirationSeconds: &seconds,
			BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return request.Status.Token
}

// TestAuditLog: of a hand-out, a denial and a stolen token there is a record each that names
// everybody; after SIGHUP the records are in a new file; and at the end none is missing.
func TestAuditLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	s, process := env.StartProcess(t, "--drain", "0s", "--max-wait", "10s", "--audit-log", path)
	s.WaitReady(t)
	ns := newNamespace(t, "auditlog")
	good, thief := newWorkload(ns, "good", env.NewRole()).create(t), newWorkload(ns, "thief", env.NewRole()).create(t)
	denied := newWorkload(ns, "denied", unknownRole).create(t)
	key := good.getCredentials(t, s)
	good.getCredentials(t, s) // is no news
	if status, body := s.Get(t, denied.from, denied.path()); status != http.StatusOK || !strings.Contains(body, "AssumeRoleUnauthorizedAccess") {
		t.Errorf("%d %s", status, body)
	}
	stolen := good.token(t)
	response, body, err := s.Do(t.Context(), s.Client(t, thief.from), http.MethodGet, "/v1/credentials", http.Header{"Authorization": {stolen}})
	if err != nil || response.StatusCode != http.StatusForbidden {
		t.Errorf("%v %s", err, body)
	}
	environment.Eventually(t, within, func() error {
		if n := s.Metric(t, "iam4kube_audit_records_total", "outcome", "written"); n != 3 {
			return fmt.Errorf("%v records", n)
		}
		return nil
	})
	if err := errors.Join(os.Rename(path, path+".1"), process.Signal(syscall.SIGHUP)); err != nil {
		t.Fatal(err)
	}
	environment.Eventually(t, within, func() error { _, err := os.Stat(path); return err })
	other := thief.getCredentials(t, s)
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}

	before, after := auditRecords(t, path+".1"), auditRecords(t, path)
	if len(before) != 3 || len(after) != 1 {
		t.Fatalf("%+v, %+v", before, after)
	}
	out, denial, theft := before[0], before[1], before[2]
	if out.Event != audit.HandedOut || out.Pod != "good" || out.ServiceAccount != "good" || out.Namespace != ns || out.PodUID == "" || out.RoleARN != good.arn ||
		out.SessionName != ns+"@good" || out.AccessKeyID != key || out.Protocol != "imdsv1" || out.Proof != "address" || out.SourceIP != good.from || out.Replica == "" {
		t.Errorf("%+v", out)
	}
	if denial.Event != audit.Denied || denial.Kind != "denied" || denial.Pod != "denied" || denial.RoleARN != unknownRole || denial.Status != 200 || !strings.Contains(denial.Cause, "AccessDenied") {
		t.Errorf("%+v", denial)
	}
	if theft.Event != audit.Refused || theft.Kind != "other-pod" || theft.Pod != "good" || !slices.Equal(theft.SourcePods, []string{ns + "/thief"}) || theft.Proof != "token" {
		t.Errorf("%+v", theft)
	}
	if after[0].AccessKeyID != other || after[0].Pod != "thief" {
		t.Errorf("%+v", after[0])
	}
	for _, file := range []string{path, path + ".1"} {
		if text, err := os.ReadFile(file); err != nil || strings.Contains(string(text), stolen) {
			t.Errorf("%v: the token is in %s", err, file)
		}
	}
}
