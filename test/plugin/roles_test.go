package plugin

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"os/exec"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/fakests"
)

// A role is led back to its ServiceAccounts and pods, and the trust policy that is printed is
// the one under which STS gives it to this ServiceAccount, whoever prints it.
func TestWhoAndTrust(t *testing.T) {
	flags := []string{"--session-tags", "--cluster", "east", "--source-identity"}
	s := install(t)
	// What the servers run with is read from the Deployment.
	s.edit(t, object{deployments, own, "iam4kube-server", ""}, spec(func(spec map[string]any) {
		container := spec["template"].(map[string]any)["spec"].(map[string]any)["containers"].([]any)[0].(map[string]any)
		for _, flag := range flags {
			container["args"] = append(container["args"].([]any), flag)
		}
	}))
	w := healthy()
	w.account[role.AnnotationExternalID] = "7Qx-shop"
	w.create(t, s)
	w.ready(t, s, http.StatusNoContent)
	arn := w.account[role.AnnotationARN]
	_, body := s.servers[0].ask(t, w.address, rolesPath+arn[strings.LastIndex(arn, "/")+1:])

	var found struct {
		ServiceAccounts []struct {
			Namespace, Name, ARN, State string
			Pods                        []struct{ Name, AccessKeyID, Since, Until string }
		}
		CannotSee []string
	}
	for _, name := range []string{arn, arn[strings.LastIndex(arn, "/")+1:]} {
		environment.Eventually(t, within, func() error { // the event comes a moment later
			text, status := pluginText(t, env.ControlPlane.Config(), "who", name, "-o", "json")
			found.ServiceAccounts = nil
			if err := json.Unmarshal([]byte(text), &found); err != nil || status != 0 {
				t.Fatalf("%d: %v: %s", status, err, text)
			}
			if len(found.ServiceAccounts) != 1 || len(found.ServiceAccounts[0].Pods) != 1 {
				t.Fatal(text)
			}
			a := found.ServiceAccounts[0]
			if a.Namespace != w.namespace || a.Name != "orders" || a.ARN != arn || a.State != "valid" ||
				a.Pods[0].Name != w.name || a.Pods[0].AccessKeyID == "" || !strings.Contains(body, `"`+a.Pods[0].AccessKeyID+`"`) || a.Pods[0].Until == "" || a.Pods[0].Since == "" {
				return errors.New(text)
			}
			return nil
		})
	}
	if text, status := pluginText(t, env.ControlPlane.Config(), "who", "nobody"); status != 0 || !strings.Contains(text, "No ServiceAccount names the role nobody") {
		t.Errorf("%d: %s", status, text)
	}

	byPlugin, status := pluginText(t, env.ControlPlane.Config(), "trust", w.namespace+"/orders")
	if status != 0 {
		t.Fatal(byPlugin)
	}
	byServer := serverTrust(t, append([]string{w.namespace + "/orders"}, flags...)...)
	if byPlugin != byServer {
		t.Errorf("the plugin\n%s\nthe server\n%s", byPlugin, byServer)
	}
	wantTrust(t, s, w, byServer, flags)
	issuer := []string{"trust", w.namespace + "/orders", "--issuer", "https://oidc.example.com"}
	if text, status := pluginText(t, env.ControlPlane.Config(), issuer...); status != 2 || text != "" {
		t.Errorf("an external ID for an issuer: %d, %s", status, text)
	}
}

// serverTrust is `server trust`, with the server's own rights and AWS configuration.
func serverTrust(t *testing.T, arguments ...string) string {
	t.Helper()
	config, err := env.ServiceAccountConfig(t.Context(), environment.Namespace, environment.ServiceAccount)
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	command := exec.CommandContext(t.Context(), environment.Program(t), append(append([]string{"trust"}, arguments...), "--kubeconfig", env.Kubeconfig(t, config))...)
	command.Env = append(environment.Environ(), env.AWSEnviron()...)
	command.Stderr = &stderr
	text, err := command.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	return string(text)
}

// wantTrust gives the fake STS a role with what the policy says, and lets a server with the
// flags ask for it.
func wantTrust(t *testing.T, s *setup, w *workload, text string, flags []string) {
	t.Helper()
	var policy struct {
		Statement []struct {
			Action    string
			Principal struct{ AWS string }
			Condition struct{ StringEquals map[string]string }
		}
	}
	if err := json.Unmarshal([]byte(text), &policy); err != nil || len(policy.Statement) != 3 {
		t.Fatal(text, err)
	}
	trust := fakests.Trust{RequestTags: map[string]string{}}
	for _, statement := range policy.Statement {
		trust.Principals = []string{statement.Principal.AWS}
		trust.TagSession = trust.TagSession || statement.Action == "sts:TagSession"
		trust.SetSourceIdentity = trust.SetSourceIdentity || statement.Action == "sts:SetSourceIdentity"
		for key, value := range statement.Condition.StringEquals {
			switch tag, isTag := strings.CutPrefix(key, "aws:RequestTag/"); {
			case isTag:
				trust.RequestTags[tag] = value
			case key == "sts:RoleSessionName":
				trust.SessionNames = []string{value}
			case key == "sts:ExternalId":
				trust.ExternalID = value
			}
		}
	}
	if len(trust.RequestTags) != 3 || trust.SessionNames == nil || trust.ExternalID == "" {
		t.Fatalf("%+v", trust)
	}
	other := healthy()
	other.name = "orders-2"
	arn := env.NewRole(func(r *fakests.Role) { r.Trust = trust })
	// The same ServiceAccount now names that role.
	accounts := env.Client.CoreV1().ServiceAccounts(w.namespace)
	account, err := accounts.Get(t.Context(), "orders", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	account.Annotations[role.AnnotationARN] = arn
	if _, err := accounts.Update(t.Context(), account, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	s.addServer(t, "iam4kube-server-tags", "10.244.1.30", flags...)
	tagged := &setup{servers: s.servers[len(s.servers)-1:]}
	w.ready(t, tagged, http.StatusNoContent)
}

// user is somebody with the rights of a cluster role in one namespace, and none elsewhere.
func user(t *testing.T, namespace, clusterRole string, rules ...rbacv1.PolicyRule) *rest.Config {
	t.Helper()
	if err := env.CreateServiceAccount(t.Context(), controlplane.ServiceAccount{Namespace: namespace, Name: "user"}); err != nil {
		t.Fatal(err)
	}
	_, err := env.Client.RbacV1().Roles(namespace).Create(t.Context(), &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: clusterRole}, Rules: rules}, metav1.CreateOptions{})
	if err == nil {
		_, err = env.Client.RbacV1().RoleBindings(namespace).Create(t.Context(), &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: clusterRole}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: clusterRole},
			Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Name: "user", Namespace: namespace}},
		}, metav1.CreateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	config, err := env.ServiceAccountConfig(t.Context(), namespace, "user")
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// What a user of one namespace may not see is never said to be well, and what the servers have
// told in events is.
func TestWhyWithRightsInOneNamespace(t *testing.T) {
	s := install(t)
	view := rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"pods", "serviceaccounts", "events", "namespaces"}, Verbs: []string{"get", "list"}}
	w := healthy()
	w.account[role.AnnotationARN] = env.NewRole(func(r *fakests.Role) { r.Trust.Principals = []string{"arn:aws:iam::999988887777:user/other"} })
	w.create(t, s)
	config := user(t, w.namespace, "viewer", view)
	w.ready(t, s, http.StatusForbidden)
	var a answer
	environment.Eventually(t, within, func() error { // the event comes a moment later
		if a = plugin(t, config, "why", "pod/"+w.name, "-n", w.namespace); a.Broken != "denied" {
			return errors.New(a.text)
		}
		return nil
	})
	if l := a.of("STS"); a.status != 1 || !strings.Contains(l.Text, "AccessDenied") || !strings.Contains(l.Text, "Event of") {
		t.Errorf("%d: %+v", a.status, l)
	}
	for _, hidden := range []string{"routing", "address", "allowed"} {
		if l := a.of(hidden); l.State != "cannot-see" {
			t.Errorf("%+v", l)
		}
	}
	for _, seen := range []string{"pod", "namespace", "ServiceAccount", "annotation"} {
		if l := a.of(seen); l.State != "ok" {
			t.Errorf("%+v", l)
		}
	}
	if a.of("hand-out").State != "skipped" {
		t.Errorf("%+v", a.of("hand-out"))
	}

	// With pods alone, nothing is known of the role.
	other := healthy()
	other.create(t, s)
	few := user(t, other.namespace, "pods", rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"get"}})
	a = plugin(t, few, "why", other.name, "-n", other.namespace)
	if a.status != 3 || a.Broken != "" || a.Role != nil {
		t.Errorf("%d: %s", a.status, a.text)
	}
	for _, l := range a.Links {
		if want := map[bool]string{true: "ok", false: "cannot-see"}[l.Link == "pod"]; l.State != want {
			t.Errorf("%+v, want %s", l, want)
		}
	}
	// And `check` says of nothing that it is well but of what everybody may see.
	a = plugin(t, few, "check")
	if a.status != 3 || len(a.bad("broken")) != 0 {
		t.Errorf("%d: %s", a.status, a.text)
	}
	for _, l := range a.bad("ok", "warning") {
		if l.Link != "API server" {
			t.Errorf("%+v", l)
		}
	}
	if text, status := pluginText(t, few, "who", "orders", "-n", other.namespace); status != 2 || text != "" {
		t.Errorf("%d: %s", status, text)
	}
}

// Only what is meant to be on the command line is.
func TestArguments(t *testing.T) {
	for _, arguments := range [][]string{
		{"why"},
		{"why", "deployment/orders"},
		{"why", "pod/"},
		{"why", "pod/a/b"},
		{"check", "now"},
		{"check", "-o", "yaml"},
		{"who"},
		{"trust", "orders"},
		{"trust", "shop/orders", "--issuer", "https://a", "--principal", "b"},
		{"check", "--unknown"},
		{"unknown"},
	} {
		if text, status := pluginText(t, env.ControlPlane.Config(), arguments...); status != 2 || text != "" {
			t.Errorf("%q: %d, %s", arguments, status, text)
		}
	}
}
