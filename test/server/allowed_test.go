package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/fakests"
)

// annotate changes an annotation of a namespace; null takes it away.
func annotate(t *testing.T, namespace, name, value string) {
	t.Helper()
	patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:%s}}}`, name, value)
	if _, err := env.Client.CoreV1().Namespaces().Patch(t.Context(), namespace, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// The list of a namespace is in force within a second, for what is in memory too, on every
// path; what it does not allow is not asked of STS.
func TestAllowedRoles(t *testing.T) {
	t.Parallel()
	namespace := newNamespace(t, "allowed")
	w := newWorkload(namespace, "app").create(t)
	s := env.Start(t, env.Config(t))
	s.WaitReady(t)
	if status, body := s.Get(t, w.from, w.path()); status != http.StatusOK {
		t.Fatalf("%d %s", status, body)
	}
	token := w.token(t)
	check := func(what string, allowed bool) {
		t.Helper()
		want := map[string]int{rolesPath: 200, w.path(): 200, readyPath: 204, containerPath: 200}
		if !allowed {
			want = map[string]int{rolesPath: 404, w.path(): 404, readyPath: 403, containerPath: 403}
		}
		environment.Eventually(t, time.Second, func() error {
			for path, status := range want {
				got, body := s.Get(t, w.from, path)
				if got != status || !allowed && !strings.Contains(body, "not-allowed") {
					return fmt.Errorf("%s: %s: %d %s", what, path, got, body)
				}
				if secret := env.Leak(body); !allowed && secret != "" {
					return fmt.Errorf("%s: %s opens credentials", what, path)
				}
			}
			return nil
		})
		status, arn, code := containerCredentials(t, s, w.from, "Authorization: "+token)
		if (status == http.StatusOK && arn == w.arn) != allowed || !allowed && code != "not-allowed" {
			t.Errorf("%s: with a token: %d %s %s", what, status, arn, code)
		}
	}
	check("no list", true)
	annotate(t, namespace, role.AnnotationAllowed, `"arn:aws:iam::123456789012:role/another, arn:aws:iam::1*:role/*"`)
	check("another's list", false)
	environment.Eventually(t, time.Minute, func() error {
		events, err := env.Client.CoreV1().Events(namespace).List(t.Context(), metav1.ListOptions{FieldSelector: "reason=IAMRoleNotAllowed,involvedObject.kind=Pod"})
		if err != nil {
			return err
		}
		for _, e := range events.Items {
			if strings.Contains(e.Message, `"arn:aws:iam::1*:role/*" is not the ARN of a role`) {
				return nil
			}
		}
		return errors.New("no event says what of the list is wrong")
	})
	annotate(t, namespace, role.AnnotationAllowed, fmt.Sprintf("%q", w.arn))
	check("its own role", true)
	annotate(t, namespace, role.AnnotationAllowed, `""`)
	check("an empty list", false)
	annotate(t, namespace, role.AnnotationAllowed, "null")
	check("no list again", true)
}

// Without a list, nobody has a role where the admin says so.
func TestRolesByDefault(t *testing.T) {
	t.Parallel()
	closed, open := newNamespace(t, "default-closed"), newNamespace(t, "default-open")
	annotate(t, open, role.AnnotationAllowed, `"arn:aws:iam::*:role/*"`)
	refused, served := newWorkload(closed, "app").create(t), newWorkload(open, "app").create(t)
	s, _ := env.StartProcess(t, "--roles-by-default", "deny")
	s.WaitReady(t)
	if status, body := s.Get(t, served.from, served.path()); status != http.StatusOK {
		t.Errorf("%d %s", status, body)
	}
	if status, body := s.Get(t, refused.from, refused.path()); status != http.StatusNotFound || !strings.Contains(body, "--roles-by-default=deny") {
		t.Errorf("%d %s", status, body)
	}
	// Other servers of other tests ask for it; this one's log would say so.
	for line := range strings.SplitSeq(s.Logs.String(), "\n") {
		if strings.Contains(line, refused.arn) && strings.Contains(line, "assume") {
			t.Errorf("STS was asked for a role that is not allowed: %s", line)
		}
	}
	if n := s.Metric(t, "iam4kube_service_accounts", "role", "not-allowed"); n == 0 {
		t.Error("not counted")
	}
}

// Sessions say where they come from, and nobody but the admin chooses what they say.
func TestSessionTags(t *testing.T) {
	t.Parallel()
	namespace := newNamespace(t, "tags")
	w, without := newWorkload(namespace, "app"), newWorkload(namespace, "without")
	w.arn = env.NewRole(func(r *fakests.Role) { r.Trust.TagSession, r.Trust.SetSourceIdentity = true, true })
	const policy = "arn:aws:iam::aws:policy/ReadOnlyAccess"
	annotations := w.annotations()
	annotations[role.AnnotationPolicyARNs] = policy + ", arn:aws:iam::123456789012:policy/team/narrow"
	// A tenant's word for a tag.
	for _, name := range []string{"kubernetes-namespace", "iam.amazonaws.com/kubernetes-namespace", "iam.amazonaws.com/roleSessionTags"} {
		annotations[name] = "kubernetes-namespace=kube-system"
	}
	w.createAccount(t, annotations)
	w.createPod(t)
	without.create(t)
	s, _ := env.StartProcess(t, "--session-tags", "--cluster", "east-1", "--session-tag", "eks-cluster-name=east-1", "--session-tag", "team=a b", "--source-identity")
	s.WaitReady(t)
	status, body := s.Get(t, w.from, w.path())
	if status != http.StatusOK {
		t.Fatalf("%d %s", status, body)
	}
	var d document
	if err := json.Unmarshal([]byte(body), &d); err != nil {
		t.Fatal(err)
	}
	got, known := env.STS.Issued(d.AccessKeyId)
	if !known {
		t.Fatal("no session")
	}
	want := []fakests.Tag{
		{Key: "kubernetes-namespace", Value: namespace},
		{Key: "kubernetes-service-account", Value: "app"},
		{Key: "kubernetes-cluster", Value: "east-1"},
		{Key: "eks-cluster-name", Value: "east-1"},
		{Key: "team", Value: "a b"},
	}
	keys := []string{"kubernetes-namespace", "kubernetes-service-account", "kubernetes-cluster", "eks-cluster-name", "team"}
	if !slices.Equal(got.Tags, want) || !slices.Equal(got.Transitive, keys) || got.SourceIdentity != got.SessionName || !slices.Equal(got.PolicyARNs, []string{policy, "arn:aws:iam::123456789012:policy/team/narrow"}) {
		t.Errorf("%+v", got)
	}
	// A role that does not allow tags says what it has to allow.
	if status, body := s.Get(t, without.from, without.path()); status != http.StatusOK || !strings.Contains(body, "sts:TagSession") || env.Leak(body) != "" {
		t.Errorf("%d %s", status, body)
	}
}
