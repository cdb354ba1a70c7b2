package observability

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/iam4kube/iam4kube/internal/logging"
	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
	"github.com/iam4kube/iam4kube/internal/server/imdstoken"
	"github.com/iam4kube/iam4kube/test/checkout"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
)

// TestServiceAccountMayDoNoMore lists all that the server's ServiceAccount may do besides
// what any ServiceAccount may, by the API server's own account of it, in its own namespace
// and in another.
func TestServiceAccountMayDoNoMore(t *testing.T) {
	nobody := newWorkload(newNamespace(t, "rbac-nobody"), "nobody", "").createAccount(t)
	everywhere := []string{
		"create events", "get events", "update events",
		"list namespaces", "watch namespaces", "list nodes", "watch nodes", "list pods", "watch pods", "list serviceaccounts", "watch serviceaccounts",
	}
	for namespace, want := range map[string][]string{
		"default":             everywhere,
		environment.Namespace: append([]string{"create secrets", "list secrets iam4kube-token-key", "watch secrets iam4kube-token-key"}, everywhere...),
	} {
		have, anybody := rights(t, environment.Namespace, environment.ServiceAccount, namespace), rights(t, nobody.Namespace, nobody.Name, namespace)
		maps.DeleteFunc(have, func(right string, _ bool) bool { return anybody[right] })
		wanted := map[string]bool{}
		for _, line := range want {
			verb, rest, _ := strings.Cut(line, " ")
			wanted[verb+"  "+rest] = true // the core group's name is empty
		}
		if !maps.Equal(have, wanted) {
			t.Errorf("in namespace %s:\nhave %q\nwant %q", namespace, slices.Sorted(maps.Keys(have)), slices.Sorted(maps.Keys(wanted)))
		}
	}
}

// rights are what a ServiceAccount may do in a namespace: VERB GROUP RESOURCE [NAME].
func rights(t *testing.T, accountNamespace, account, namespace string) map[string]bool {
	t.Helper()
	cfg, err := env.ServiceAccountConfig(t.Context(), accountNamespace, account)
	if err != nil {
		t.Fatal(err)
	}
	review, err := kubernetes.NewForConfigOrDie(cfg).AuthorizationV1().SelfSubjectRulesReviews().Create(t.Context(), &authorizationv1.SelfSubjectRulesReview{
		Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: namespace},
	}, metav1.CreateOptions{})
	if err != nil || review.Status.Incomplete {
		t.Fatalf("%v: %+v", err, review)
	}
	rights := map[string]bool{}
	for _, rule := range review.Status.ResourceRules {
		for _, name := range append(rule.ResourceNames, "")[:max(1, len(rule.ResourceNames))] {
			for _, resource := range rule.Resources {
				for _, verb := range rule.Verbs {
					rights[strings.TrimSpace(strings.Join([]string{verb, strings.Join(rule.APIGroups, ","), resource, name}, " "))] = true
				}
			}
		}
	}
	return rights
}

// TestServiceAccountMayNot asks the authorizer about what would be worst. The list above
// says the same by other means; here are the controls: questions answered with yes.
func TestServiceAccountMayNot(t *testing.T) {
	for _, c := range []struct {
		verb, resource, subresource, namespace, name string
		allowed                                      bool
	}{
		{verb: "list", resource: "pods", allowed: true},
		{verb: "create", resource: "events", namespace: "default", allowed: true},
		{verb: "list", resource: "secrets", namespace: environment.Namespace, name: imdstoken.SecretName, allowed: true},
		{verb: "watch", resource: "secrets", namespace: environment.Namespace, name: imdstoken.SecretName, allowed: true},
		{verb: "list", resource: "secrets"},
		{verb: "list", resource: "secrets", namespace: environment.Namespace},
		{verb: "get", resource: "secrets", namespace: environment.Namespace, name: "other"},
		{verb: "get", resource: "secrets", namespace: "default", name: imdstoken.SecretName},
		{verb: "list", resource: "secrets", namespace: "default", name: imdstoken.SecretName},
		{verb: "create", resource: "secrets", namespace: "default"},
		{verb: "update", resource: "secrets", namespace: environment.Namespace, name: imdstoken.SecretName},
		{verb: "delete", resource: "secrets", namespace: environment.Namespace, name: imdstoken.SecretName},
		{verb: "create", resource: "pods", namespace: environment.Namespace},
		{verb: "create", resource: "pods", subresource: "exec", namespace: "default"},
		{verb: "update", resource: "pods", subresource: "status", namespace: "default"},
		{verb: "delete", resource: "pods", namespace: "default"},
		{verb: "create", resource: "serviceaccounts", subresource: "token", namespace: environment.Namespace, name: environment.ServiceAccount},
		{verb: "patch", resource: "serviceaccounts", namespace: "default", name: "default"},
		{verb: "impersonate", resource: "serviceaccounts", namespace: "default", name: "default"},
		{verb: "impersonate", resource: "users", name: "admin"},
		{verb: "delete", resource: "events", namespace: "default"},
		{verb: "update", resource: "nodes", name: "node"},
		{verb: "get", resource: "nodes", subresource: "proxy", name: "node"},
	} {
		review, err := env.Client.AuthorizationV1().SubjectAccessReviews().Create(t.Context(), &authorizationv1.SubjectAccessReview{
			Spec: authorizationv1.SubjectAccessReviewSpec{
				User:   "system:serviceaccount:" + environment.Namespace + ":" + environment.ServiceAccount,
				Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + environment.Namespace, "system:authenticated"},
				ResourceAttributes: &authorizationv1.ResourceAttributes{
					Verb: c.verb, Resource: c.resource, Subresource: c.subresource, Namespace: c.namespace, Name: c.name,
				},
			},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if review.Status.Allowed != c.allowed {
			t.Errorf("%+v: allowed %v", c, review.Status.Allowed)
		}
	}
}

// TestNoVerbIsSuperfluous takes one verb after the other away from a server and shows what
// no longer works. Of list, which only API servers without streaming lists need, see
// TestListsWithoutStreaming.
func TestNoVerbIsSuperfluous(t *testing.T) {
	for _, c := range []struct {
		verb, resource string
		breaks         func(t *testing.T, s *environment.Server)
	}{
		{"watch", "pods", clientGoComplains},
		{"watch", "serviceaccounts", clientGoComplains},
		{"watch", "nodes", clientGoComplains},
		{"watch", "secrets", clientGoComplains},
		{"create", "secrets", neverReady},
		{"create", "events", failsToTellTwice},
		{"get", "events", failsToTellTwice},
		{"update", "events", failsToTellTwice},
	} {
		t.Run(c.verb+" "+c.resource, func(t *testing.T) {
			c.breaks(t, startWithout(t, env.ControlPlane, c.verb, c.resource))
		})
	}
	t.Run("nothing", func(t *testing.T) {
		s := startWithout(t, env.ControlPlane, "", "")
		s.WaitReady(t)
		w := newWorkload(newNamespace(t, "without-nothing"), "app", unknownRole).create(t)
		tellTwice(t, s, w)
		environment.Eventually(t, within, func() error {
			if n := s.Metric(t, "iam4kube_events_total", "outcome", "written"); n < 1 {
				return fmt.Errorf("%v events written", n)
			}
			return nil
		})
	})
}

// clientGoComplains: a list is repeated in place of the watch, with a line in the log.
func clientGoComplains(t *testing.T, s *environment.Server) {
	t.Helper()
	_, verb, resource := splitName(t)
	want := fmt.Sprintf("cannot %s resource %q", verb, resource)
	environment.Eventually(t, within, func() error {
		for _, line := range s.Logs.Lines("") {
			if line[logging.Library] == logging.ClientGo && strings.Contains(fmt.Sprint(line["error"], line["err"]), want) {
				return nil
			}
		}
		return errors.New(s.Logs.String())
	})
}

func splitName(t *testing.T) (test, verb, resource string) {
	t.Helper()
	test, rest, _ := strings.Cut(t.Name(), "/")
	verb, resource, _ = strings.Cut(rest, "_")
	return test, verb, resource
}

// neverReady: nobody makes the token key.
func neverReady(t *testing.T, s *environment.Server) {
	t.Helper()
	if _, err := s.Logs.Wait(t.Context(), "could not create the Secret with the token key"); err != nil {
		t.Fatal(err)
	}
	if status, body := s.Readyz(t); status != http.StatusServiceUnavailable {
		t.Errorf("%d %s", status, body)
	}
}

// failsToTellTwice: an event is not written, or one that exists does not count up.
func failsToTellTwice(t *testing.T, s *environment.Server) {
	t.Helper()
	s.WaitReady(t)
	_, verb, _ := splitName(t)
	tellTwice(t, s, newWorkload(newNamespace(t, "without-"+verb), "app", unknownRole).create(t))
	line, err := s.Logs.Wait(t.Context(), "could not write an event")
	if err != nil {
		t.Fatal(err)
	}
	if cause, _ := line["error"].(string); !strings.Contains(cause, fmt.Sprintf("cannot %s resource %q", verb, "events")) {
		t.Errorf("log line: %v", line)
	}
}

// tellTwice lets the server tell of a denial that another replica has told of.
func tellTwice(t *testing.T, s *environment.Server, w workload) {
	t.Helper()
	other := env.Start(t, env.Config(t))
	other.WaitReady(t)
	w.get(t, other, http.StatusOK)
	w.waitEvent(t, func(e corev1.Event) bool { return e.Reason == string(diagnosis.RoleDenied) })
	w.get(t, s, http.StatusOK)
}

// TestListsWithoutStreaming: Kubernetes 1.31 and older, and 1.33, have no streaming lists
// switched on. There the server lists before it watches, and needs the verb list.
func TestListsWithoutStreaming(t *testing.T) {
	cp, err := controlplane.Start(t.Context(), controlplane.Options{APIServerArgs: []string{"--feature-gates=WatchList=false"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cp.Stop(); err != nil {
			t.Error(err)
		}
	})
	err = errors.Join(cp.CreateNamespace(t.Context(), environment.Namespace),
		cp.ApplyFiles(t.Context(), checkout.Path("manifests", "base", "server-rbac.yaml")))
	if err != nil {
		t.Fatal(err)
	}
	for _, resource := range []string{"pods", "serviceaccounts", "nodes", "secrets"} {
		t.Run("list "+resource, func(t *testing.T) {
			s := startWithout(t, cp, "list", resource)
			clientGoComplains(t, s)
			if status, body := s.Readyz(t); status != http.StatusServiceUnavailable || !strings.Contains(body, "has not arrived") {
				t.Errorf("%d %s", status, body)
			}
		})
	}
	t.Run("nothing", func(t *testing.T) {
		startWithout(t, cp, "", "").WaitReady(t)
	})
}

// startWithout starts a server in a namespace of its own, with the rights of the manifest
// but for one verb on one resource.
func startWithout(t *testing.T, cp *controlplane.ControlPlane, verb, resource string) *environment.Server {
	t.Helper()
	name := strings.Trim("rbac-without-"+verb+"-"+resource, "-")
	ctx := t.Context()
	rbac := cp.Client.RbacV1()
	cluster, err := rbac.ClusterRoles().Get(ctx, environment.ServiceAccount, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	own, err := rbac.Roles(environment.Namespace).Get(ctx, environment.ServiceAccount, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	meta := metav1.ObjectMeta{Name: name}
	subjects := []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: name, Name: name}}
	create := func(do ...func(context.Context) error) {
		for _, f := range do {
			if err := f(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	create(
		func(ctx context.Context) error { return cp.CreateNamespace(ctx, name) },
		func(ctx context.Context) error {
			return cp.CreateServiceAccount(ctx, controlplane.ServiceAccount{Namespace: name, Name: name})
		},
		func(ctx context.Context) error {
			_, err := rbac.ClusterRoles().Create(ctx, &rbacv1.ClusterRole{ObjectMeta: meta, Rules: without(cluster.Rules, verb, resource)}, metav1.CreateOptions{})
			return err
		},
		func(ctx context.Context) error {
			_, err := rbac.ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
				ObjectMeta: meta, Subjects: subjects, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
			}, metav1.CreateOptions{})
			return err
		},
		func(ctx context.Context) error {
			_, err := rbac.Roles(name).Create(ctx, &rbacv1.Role{ObjectMeta: meta, Rules: without(own.Rules, verb, resource)}, metav1.CreateOptions{})
			return err
		},
		func(ctx context.Context) error {
			_, err := rbac.RoleBindings(name).Create(ctx, &rbacv1.RoleBinding{
				ObjectMeta: meta, Subjects: subjects, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
			}, metav1.CreateOptions{})
			return err
		},
	)
	rights, err := cp.ServiceAccountConfig(ctx, name, name)
	if err != nil {
		t.Fatal(err)
	}
	// The program, because in it the log has client-go's lines too.
	s, _ := env.StartReleased(t, "--drain", "0s", "--namespace", name, "--kubeconfig", cp.Kubeconfig(t, rights))
	return s
}

func without(rules []rbacv1.PolicyRule, verb, resource string) []rbacv1.PolicyRule {
	var left []rbacv1.PolicyRule
	for _, rule := range rules {
		for _, r := range rule.Resources {
			one := *rule.DeepCopy()
			one.Resources = []string{r}
			if r == resource {
				one.Verbs = slices.DeleteFunc(one.Verbs, func(v string) bool { return v == verb })
			}
			if len(one.Verbs) > 0 {
				left = append(left, one)
			}
		}
	}
	return left
}
