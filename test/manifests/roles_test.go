package manifests

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/test/checkout"
)

const (
	allowedRoles = "iam.amazonaws.com/allowedRoles"
	roleARN      = "iam.amazonaws.com/roleArn"
)

// annotate tries to create a ServiceAccount with a role in a namespace, and reports whether the
// policy refused it.
func annotate(t *testing.T, namespace string, annotations map[string]string) (refused bool, err error) {
	t.Helper()
	_, err = cp.Client.CoreV1().ServiceAccounts(namespace).Create(t.Context(), &corev1.ServiceAccount{
		ObjectMeta: metav1.ObjectMeta{Name: "app", Annotations: annotations},
	}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil && apierrors.IsForbidden(err) && strings.Contains(err.Error(), "iam4kube-allowed-roles") {
		return true, nil
	}
	return false, err
}

// withRoles makes a namespace with the annotation; it is the server's own, so that no case
// depends on when an API server hears of a change.
func withRoles(t *testing.T, annotations map[string]string) string {
	t.Helper()
	namespace, err := cp.Client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "roles-", Annotations: annotations},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return namespace.Name
}

// TestPolicyAllowsTheRolesThatTheServerAllows: the cases of internal/server/role, on a real API
// server, for component allowed-roles.
func TestPolicyAllowsTheRolesThatTheServerAllows(t *testing.T) {
	if err := apply(t.Context(), mustBuild(t, withComponents(t, "both", "allowed-roles"))); err != nil {
		t.Fatal(err)
	}
	const role = "arn:aws:iam::123456789012:role/shop/orders"
	empty := withRoles(t, map[string]string{allowedRoles: ""})
	eventually(t, func() error { // until the policy is in effect
		if refused, err := annotate(t, empty, map[string]string{roleARN: role}); err != nil || !refused {
			return fmt.Errorf("an empty list allows: %w", err)
		}
		return nil
	})
	text, err := os.ReadFile(checkout.Path("internal", "server", "role", "testdata", "allowed.json"))
	var cases []struct {
		List    string
		Spaces  int
		ARN     string
		Allowed bool
	}
	if err == nil {
		err = json.Unmarshal(text, &cases)
	}
	if err != nil || len(cases) < 50 {
		t.Fatalf("%d cases: %v", len(cases), err)
	}
	for _, tc := range cases {
		namespace := withRoles(t, map[string]string{allowedRoles: tc.List + strings.Repeat(" ", tc.Spaces)})
		if refused, err := annotate(t, namespace, map[string]string{roleARN: tc.ARN}); err != nil || refused == tc.Allowed {
			t.Errorf("%.100q and %q: refused %t, the server allows it: %t; %v", tc.List, tc.ARN, refused, tc.Allowed, err)
		}
	}
	t.Run("no list", func(t *testing.T) {
		if refused, err := annotate(t, withRoles(t, nil), map[string]string{roleARN: role}); err != nil || refused {
			t.Errorf("refused %t, %v", refused, err)
		}
	})
	t.Run("no role", func(t *testing.T) {
		for _, annotations := range []map[string]string{nil, {roleARN: ""}, {"a": "b"}} {
			if refused, err := annotate(t, empty, annotations); err != nil || refused {
				t.Errorf("%v: refused %t, %v", annotations, refused, err)
			}
		}
	})
	t.Run("a role that was there before", func(t *testing.T) { changedRoles(t, role) })
}

// changedRoles: an account whose role its namespace has lost can be changed, but not to another
// such role.
func changedRoles(t *testing.T, role string) {
	t.Helper()
	namespace := withRoles(t, map[string]string{allowedRoles: role})
	accounts := cp.Client.CoreV1().ServiceAccounts(namespace)
	account, err := accounts.Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "app", Annotations: map[string]string{roleARN: role}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	list, err := cp.Client.CoreV1().Namespaces().Get(t.Context(), namespace, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	list.Annotations[allowedRoles] = "arn:aws:iam::123456789012:role/other"
	if _, err := cp.Client.CoreV1().Namespaces().Update(t.Context(), list, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if refused, err := annotate(t, namespace, map[string]string{roleARN: role}); err != nil || !refused {
			return fmt.Errorf("the new list allows: %w", err)
		}
		return nil
	})
	account.Labels = map[string]string{"a": "b"}
	if account, err = accounts.Update(t.Context(), account, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	account.Annotations[roleARN] = role + "2"
	_, err = accounts.Update(t.Context(), account, metav1.UpdateOptions{})
	if err == nil || !strings.Contains(err.Error(), "namespace "+namespace+" has no pattern for "+role+"2") {
		t.Errorf("another role that the list does not have: %v", err)
	}
}

// TestPolicyThatDeniesByDefault: as --roles-by-default deny, with the patch of docs/server.md.
func TestPolicyThatDeniesByDefault(t *testing.T) {
	objects := documented(t, "server.md")[0]
	for _, program := range helms(t) {
		have := rendered(t, program, "--set", "components={allowed-roles},server.args={--roles-by-default=deny}")
		want := byName(t, append(mustBuild(t, manifest("namespace")), objects...), false)
		if diff := cmp.Diff(want, byName(t, have, true)); diff != "" {
			t.Errorf("%s: - kustomize, + Helm\n%s", filepath.Base(program), diff)
		}
	}
	if err := apply(t.Context(), objects); err != nil {
		t.Fatal(err)
	}
	namespace := withRoles(t, nil)
	eventually(t, func() error {
		if refused, err := annotate(t, namespace, map[string]string{roleARN: "arn:aws:iam::123456789012:role/a"}); err != nil || !refused {
			return fmt.Errorf("a namespace without a list has any role: %w", err)
		}
		return nil
	})
}
