package plugin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/fakests"
)

func check(t *testing.T, arguments ...string) answer {
	t.Helper()
	return plugin(t, env.ControlPlane.Config(), append([]string{"check"}, arguments...)...)
}

// spec is that of an object.
func spec(change func(spec map[string]any)) func(map[string]any) {
	return func(o map[string]any) { change(o["spec"].(map[string]any)) }
}

// firstHook is the first webhook of a configuration.
func firstHook(change func(hook map[string]any)) func(map[string]any) {
	return func(o map[string]any) { change(o["webhooks"].([]any)[0].(map[string]any)) }
}

// installation is a broken one. It has to be named, and nothing else.
type installation struct {
	name, piece, category string
	// removes is what of the manifests is missing, and damage what is wrong besides.
	removes object
	damage  func(t *testing.T, s *setup)
	warning bool
}

var installations = []installation{
	{name: "ClusterRoleBinding of the server", piece: "rights", category: "rights", removes: object{clusterBinds, "", "iam4kube-server", ""}},
	{name: "ClusterRole of the server", piece: "rights", category: "rights", removes: object{clusterRoles, "", "iam4kube-server", ""}},
	{name: "Role of the server", piece: "rights", category: "rights", removes: object{roles, own, "iam4kube-server", ""}},
	{name: "RoleBinding of the server", piece: "rights", category: "rights", removes: object{roleBindings, own, "iam4kube-server", ""}},
	{name: "Role of ip2service", piece: "rights", category: "rights", removes: object{roles, own, "iam4kube-ip2service", ""}},
	{name: "RoleBinding of ip2service", piece: "rights", category: "rights", removes: object{roleBindings, own, "iam4kube-ip2service", ""}},
	{name: "Role of the webhook", piece: "rights", category: "rights", removes: object{roles, own, "iam4kube-webhook", ""}},
	{name: "RoleBinding of the webhook", piece: "rights", category: "rights", removes: object{roleBindings, own, "iam4kube-webhook", ""}},
	{name: "ServiceAccount of the webhook", piece: "no-account", category: "rights", removes: object{accounts, own, "iam4kube-webhook", ""}},
	{name: "ServiceAccount of ip2service", piece: "no-account", category: "rights", removes: object{accounts, own, "iam4kube-ip2service", ""}},

	{name: "Service", piece: "no-service", category: "policies and webhook", removes: object{services, own, "iam4kube", ""}},
	{name: "port of the Service", piece: "service-port", category: "policies and webhook", damage: edited(object{services, own, "iam4kube", ""}, spec(func(spec map[string]any) {
		spec["ports"] = []any{map[string]any{"name": "http", "port": int64(8080), "targetPort": "http", "protocol": "TCP"}}
	}))},
	{name: "selector of the Service", piece: "service-selector", category: "policies and webhook", damage: edited(object{services, own, "iam4kube", ""}, spec(func(spec map[string]any) {
		spec["selector"] = map[string]any{"app": "iam4kube"}
	}))},
	{name: "Deployment of the webhook", piece: "no-webhook", category: "policies and webhook", removes: object{deployments, own, "iam4kube-webhook", ""}},
	{name: "webhook not ready", piece: "webhook-not-ready", category: "policies and webhook", damage: edited(object{deployments, own, "iam4kube-webhook", "status"}, func(o map[string]any) {
		o["status"] = map[string]any{"replicas": int64(2)}
	})},
	{name: "MutatingWebhookConfiguration", piece: "no-configuration", category: "policies and webhook", removes: object{configurations, "", "iam4kube-webhook", ""}},
	{name: "failurePolicy", piece: "failure-policy", category: "policies and webhook", damage: edited(object{configurations, "", "iam4kube-webhook", ""}, firstHook(func(hook map[string]any) {
		hook["failurePolicy"] = "Ignore"
	}))},
	{name: "namespaceSelector", piece: "selector", category: "policies and webhook", damage: edited(object{configurations, "", "iam4kube-webhook", ""}, firstHook(func(hook map[string]any) {
		hook["namespaceSelector"] = map[string]any{}
		hook["failurePolicy"] = "Fail"
		hook["objectSelector"] = map[string]any{"matchLabels": map[string]any{"nobody": "has-it"}} // or no pod could be created here
	}))},
	{name: "Service of the webhook", piece: "no-webhook-service", category: "policies and webhook", removes: object{services, own, "iam4kube-webhook", ""}},
	{name: "policy about labels", piece: "no-policy", category: "policies and webhook", warning: true, removes: object{policies, "", "iam4kube-webhook-label", ""}},
	{name: "policy about NET_ADMIN", piece: "no-policy", category: "policies and webhook", warning: true, removes: object{policies, "", "iam4kube-net-admin", ""}},
	{name: "policy about the server's nodes", piece: "no-policy", category: "policies and webhook", warning: true, removes: object{policies, "", "iam4kube-server-nodes", ""}},
	{name: "binding of the policy about labels", piece: "unbound-policy", category: "policies and webhook", removes: object{bindings, "", "iam4kube-webhook-label", ""}},
	{name: "binding of the policy about NET_ADMIN", piece: "unbound-policy", category: "policies and webhook", removes: object{bindings, "", "iam4kube-net-admin", ""}},
	{name: "binding of the policy about the server's nodes", piece: "unbound-policy", category: "policies and webhook", removes: object{bindings, "", "iam4kube-server-nodes", ""}},
	{name: "disruption budget of the server", piece: "no-object", category: "policies and webhook", warning: true, removes: object{budgets, own, "iam4kube-server", ""}},
	{name: "disruption budget of the webhook", piece: "no-object", category: "policies and webhook", warning: true, removes: object{budgets, own, "iam4kube-webhook", ""}},
	// The name is made of what it holds.
	{name: "ConfigMap of the server", piece: "no-object", category: "policies and webhook", warning: true, removes: object{configMaps, own, "iam4kube-server-94d65959kt", ""}},
	{name: "NetworkPolicy of the server", piece: "no-object", category: "policies and webhook", warning: true, removes: object{networkPolicies, own, "iam4kube-server", ""}},
	{name: "NetworkPolicy of the webhook", piece: "no-object", category: "policies and webhook", warning: true, removes: object{networkPolicies, own, "iam4kube-webhook", ""}},
	{name: "ResourceQuota", piece: "no-object", category: "policies and webhook", warning: true, removes: object{quotas, own, "iam4kube-critical", ""}},
	{name: "Issuer", piece: "no-object", category: "policies and webhook", warning: true, removes: object{issuers, own, "iam4kube-webhook", ""}},
	{name: "Issuer of the CA", piece: "no-object", category: "policies and webhook", warning: true, removes: object{issuers, own, "iam4kube-webhook-selfsigned", ""}},
	{name: "image in the policy", piece: "policy-image", category: "policies and webhook", damage: edited(object{deployments, own, "iam4kube-webhook", ""}, spec(func(spec map[string]any) {
		container := spec["template"].(map[string]any)["spec"].(map[string]any)["containers"].([]any)[0].(map[string]any)
		container["args"] = []any{"--cert-dir=/etc/iam4kube/tls", "--init-image=registry.invalid/iam4kube/ip2service-init:other"}
	}))},

	{name: "caBundle", piece: "no-ca-bundle", category: "certificate", damage: edited(object{configurations, "", "iam4kube-webhook", ""}, firstHook(func(hook map[string]any) {
		delete(hook["clientConfig"].(map[string]any), "caBundle")
	}))},
	{name: "caBundle of another CA", piece: "certificate-untrusted", category: "certificate", damage: func(t *testing.T, s *setup) {
		t.Helper()
		other, _ := authority(t, "other", time.Now().Add(time.Hour))
		s.edit(t, object{configurations, "", "iam4kube-webhook", ""}, caBundle(other))
	}},
	{name: "CA that expired", piece: "ca-expired", category: "certificate", damage: func(t *testing.T, s *setup) {
		t.Helper()
		old, _ := authority(t, "other", time.Now().Add(-time.Minute))
		s.edit(t, object{configurations, "", "iam4kube-webhook", ""}, caBundle(old))
	}},
	{name: "Certificate", piece: "no-certificate", category: "certificate", removes: object{certificates, own, "iam4kube-webhook", ""}},
	{name: "Certificate of the CA", piece: "no-certificate", category: "certificate", removes: object{certificates, own, "iam4kube-webhook-ca", ""}},
	{name: "Certificate not ready", piece: "certificate-not-ready", category: "certificate", damage: edited(object{certificates, own, "iam4kube-webhook", "status"},
		ready("False", "Failed", "issuer not found"))},

	{name: "Deployment of the server", piece: "no-server", category: "server and its AWS identity", removes: object{deployments, own, "iam4kube-server", ""}},
	{name: "no replicas", piece: "no-server", category: "server and its AWS identity", damage: edited(object{deployments, own, "iam4kube-server", ""}, spec(func(spec map[string]any) { spec["replicas"] = int64(0) }))},
	{name: "no replica ready", piece: "server-not-ready", category: "server and its AWS identity", damage: edited(object{deployments, own, "iam4kube-server", "status"}, func(o map[string]any) {
		o["status"] = map[string]any{"replicas": int64(2)}
	})},
	{name: "one replica ready", piece: "server-not-ready", category: "server and its AWS identity", warning: true, damage: edited(object{deployments, own, "iam4kube-server", "status"}, func(o map[string]any) {
		o["status"] = map[string]any{"replicas": int64(2), "readyReplicas": int64(1)}
	})},
	{name: "two pods on one address", piece: "ambiguous-address", category: "server and its AWS identity", damage: func(t *testing.T, s *setup) {
		t.Helper()
		w := healthy()
		w.create(t, s)
		other := *w.pod.DeepCopy()
		other.Name = "orders-1"
		s.createPod(t, &other, w.address.String())
	}},
	{name: "trust policy", piece: "roles-denied", category: "server and its AWS identity", warning: true, damage: func(t *testing.T, s *setup) {
		t.Helper()
		w := healthy()
		w.account[role.AnnotationARN] = env.NewRole(func(r *fakests.Role) { r.Trust.Principals = nil })
		w.create(t, s)
	}},

	{name: "DaemonSet", piece: "no-routing", category: "routing on every node", removes: object{daemonSets, own, "iam4kube-ip2service", ""}, damage: func(t *testing.T, s *setup) {
		t.Helper()
		s.remove(t, object{configurations, "", "iam4kube-webhook", ""})
		s.remove(t, object{deployments, own, "iam4kube-webhook", ""})
	}},
	{name: "ip2service not on a node", piece: "not-routed", category: "routing on every node", damage: func(t *testing.T, s *setup) {
		t.Helper()
		s.kubelet.node(t, "worker-4", nil)
	}},
	{name: "ip2service not ready", piece: "not-routed", category: "routing on every node", damage: edited(object{pods, own, "iam4kube-ip2service-worker-2", "status"}, func(o map[string]any) {
		for _, condition := range o["status"].(map[string]any)["conditions"].([]any) {
			if condition.(map[string]any)["type"] == "Ready" {
				condition.(map[string]any)["status"] = "False"
			}
		}
	})},
	{name: "taint of a new node", piece: "tainted-node", category: "routing on every node", damage: edited(object{nodes, "", "worker-1", ""}, spec(func(spec map[string]any) {
		spec["taints"] = []any{map[string]any{"key": "iam4kube.io/not-ready", "effect": "NoSchedule"}}
	}))},
	// The last: it lasts until STS gives a role again.
	{name: "STS refuses the servers", piece: "aws-identity", category: "server and its AWS identity", damage: func(t *testing.T, s *setup) {
		t.Helper()
		w := healthy()
		env.STS.SetFault(w.account[role.AnnotationARN], fakests.Fault{Effect: fakests.InvalidClientTokenID})
		w.create(t, s)
	}},
}

// serverAccount is broken last of all: the servers' tokens are none of one that is made anew.
var serverAccount = installation{name: "ServiceAccount of the server", piece: "no-account", category: "rights", removes: object{accounts, own, "iam4kube-server", ""}}

// Every object of the manifests is taken away once, but for the namespace, without which there
// is nothing to look at (TestCheck), and the template that is never applied for its own sake.
func TestEachPieceOfTheManifestsIsRemoved(t *testing.T) {
	removed := map[string]bool{"namespaces iam4kube": true, "podtemplates iam4kube-webhook-init-image": true}
	for _, tc := range append(installations, serverAccount) {
		removed[tc.removes.resource.Resource+" "+tc.removes.name] = true
	}
	pieces := 0
	for _, overlay := range []string{"namespace", "both"} {
		for document := range bytes.SplitSeq(kustomize(t, overlay), []byte("\n---\n")) {
			var o metav1.PartialObjectMetadata
			if err := yaml.Unmarshal(document, &o); err != nil {
				t.Fatal(err)
			}
			pieces++
			resource, _ := meta.UnsafeGuessKindToResource(o.GroupVersionKind())
			if piece := resource.Resource + " " + o.Name; !removed[piece] {
				t.Errorf("no test takes away %s", piece)
			}
		}
	}
	if pieces < 30 || len(installations) < 30 {
		t.Errorf("%d objects, %d installations", pieces, len(installations))
	}
}

func edited(o object, change func(map[string]any)) func(*testing.T, *setup) {
	return func(t *testing.T, s *setup) { t.Helper(); s.edit(t, o, change) }
}

// Nothing is wrong with a healthy set-up, and each broken one is named as that one alone.
func TestCheck(t *testing.T) {
	s := install(t)
	well := func(t *testing.T) {
		t.Helper()
		var a answer
		environment.Eventually(t, within, func() error {
			if a = check(t); a.status != 0 || len(a.bad("broken", "warning", "cannot-see")) != 0 {
				return errors.New(a.text)
			}
			return nil
		})
	}
	well(t)
	for _, tc := range installations {
		tc.run(t, s)
	}
	w := healthy()
	w.create(t, s)
	w.ready(t, s, http.StatusNoContent)
	well(t)
	t.Run("with the documented rights", func(t *testing.T) {
		if err := env.ApplyFiles(t.Context(), "../../docs/examples/kubectl-check.yaml"); err != nil {
			t.Fatal(err)
		}
		rights := user(t, own, "nothing-more")
		subjects := []rbacv1.Subject{{Kind: "ServiceAccount", Name: "user", Namespace: own}}
		const name = "iam4kube-check"
		ref := rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name}
		_, err := env.Client.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name}, RoleRef: ref, Subjects: subjects}, metav1.CreateOptions{})
		if err == nil {
			ref.Kind = "Role"
			_, err = env.Client.RbacV1().RoleBindings(own).Create(t.Context(), &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name}, RoleRef: ref, Subjects: subjects}, metav1.CreateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
		environment.Eventually(t, within, func() error {
			if a := plugin(t, rights, "check"); a.status != 0 || len(a.bad("broken", "warning", "cannot-see")) != 0 {
				return errors.New(a.text)
			}
			return nil
		})
	})
	s.tokens(t, well)
	t.Run("injected by a policy", func(t *testing.T) {
		text, err := os.ReadFile("../../manifests/components/injection-policy/policy.yaml")
		if err == nil {
			err = env.Apply(t.Context(), text)
		}
		if err != nil {
			t.Fatal(err)
		}
		admission := env.Client.AdmissionregistrationV1()
		unbind := sync.OnceValue(func() error {
			return admission.MutatingAdmissionPolicyBindings().Delete(context.Background(), "iam4kube-inject", metav1.DeleteOptions{})
		})
		t.Cleanup(func() {
			if err := errors.Join(unbind(), admission.MutatingAdmissionPolicies().Delete(context.Background(), "iam4kube-inject", metav1.DeleteOptions{})); err != nil {
				t.Error(err)
			}
		})
		s.remove(t, object{configurations, "", "iam4kube-webhook", ""})
		s.remove(t, object{deployments, own, "iam4kube-webhook", ""})
		s.remove(t, object{daemonSets, own, "iam4kube-ip2service", ""})
		well(t)
		if err := unbind(); err != nil {
			t.Fatal(err)
		}
		if bad := check(t).bad("broken", "warning", "cannot-see"); len(bad) != 1 || bad[0].Piece != "unbound-policy" {
			t.Errorf("without its binding: %+v", bad)
		}
	})
	t.Run("no namespace", func(t *testing.T) {
		if a := check(t, "--iam4kube-namespace", "nowhere"); a.status != 1 || len(a.bad("broken")) != 1 || a.bad("broken")[0].Piece != "no-namespace" {
			t.Errorf("%d: %s", a.status, a.text)
		}
	})
	serverAccount.run(t, s)
}

// tokens is about the component token, with injection and alone, and about a webhook without cert-manager.
func (s *setup) tokens(t *testing.T, well func(*testing.T)) {
	t.Helper()
	bad := func(t *testing.T, want ...string) {
		t.Helper()
		environment.Eventually(t, within, func() error {
			var have []string
			for _, l := range check(t).bad("broken", "warning", "cannot-see") {
				have = append(have, l.Piece)
			}
			if !slices.Equal(have, want) {
				return fmt.Errorf("%q, want %q", have, want)
			}
			return nil
		})
	}
	asks := func(t *testing.T, labels map[string]string) {
		t.Helper()
		w := healthy()
		w.labels = labels
		w.create(t, s)
		w.ready(t, s, http.StatusNoContent)
	}
	tokens, injection := object{configurations, "", "iam4kube-webhook-token", ""}, object{configurations, "", "iam4kube-webhook", ""}
	enabled := map[string]string{"iam4kube.io/token": "enabled"}
	t.Run("tokens that nobody gives", func(t *testing.T) {
		asks(t, enabled)
		bad(t, "no-tokens")
	})
	text, err := os.ReadFile("../../manifests/components/token/webhook.yaml")
	if err == nil {
		err = env.Apply(t.Context(), text)
	}
	if err != nil {
		t.Fatal(err)
	}
	bad(t, "no-ca-bundle")
	s.edit(t, tokens, caBundle(s.ca))
	t.Run("tokens", func(t *testing.T) {
		asks(t, enabled)
		well(t)
		t.Run("led nowhere", func(t *testing.T) {
			s.remove(t, object{daemonSets, own, "iam4kube-ip2service", ""})
			bad(t, "no-routing")
		})
	})
	t.Run("tokens alone", func(t *testing.T) {
		s.remove(t, injection)
		asks(t, enabled)
		well(t)
		asks(t, map[string]string{"iam4kube.io/inject": "enabled"})
		bad(t, "no-webhook")
	})
	t.Run("without cert-manager", func(t *testing.T) {
		for _, name := range []string{"iam4kube-webhook", "iam4kube-webhook-ca"} {
			s.remove(t, object{certificates, own, name, ""})
			issuer := map[string]string{"iam4kube-webhook": "iam4kube-webhook", "iam4kube-webhook-ca": "iam4kube-webhook-selfsigned"}[name]
			s.remove(t, object{issuers, own, issuer, ""})
		}
		for _, o := range []object{tokens, injection} {
			s.edit(t, o, func(o map[string]any) { delete(o["metadata"].(map[string]any), "annotations") })
		}
		well(t)
	})
	if err := env.Client.AdmissionregistrationV1().MutatingWebhookConfigurations().Delete(t.Context(), "iam4kube-webhook-token", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

// run breaks the installation, and wants `check` to name it alone.
func (tc installation) run(t *testing.T, s *setup) {
	t.Helper()
	t.Run(tc.name, func(t *testing.T) {
		t.Run("broken", func(t *testing.T) {
			if tc.removes.name != "" {
				s.remove(t, tc.removes)
			}
			if tc.damage != nil {
				tc.damage(t, s)
			}
			state, status := "broken", 1
			if tc.warning {
				state, status = "warning", 0
			}
			var a answer
			environment.Eventually(t, within, func() error { // a moment until all replicas have heard
				a = check(t)
				if bad := a.bad("broken", "warning", "cannot-see"); len(bad) != 1 || bad[0].Piece != tc.piece || bad[0].State != state {
					return fmt.Errorf("want %s alone: %+v", tc.piece, bad)
				}
				return nil
			})
			bad := a.bad(state)
			if a.status != status || bad[0].Remedy == "" || bad[0].Docs == "" {
				t.Errorf("status %d, want %d: %+v", a.status, status, bad)
			}
			for _, category := range a.Categories {
				if slices.ContainsFunc(category.Checks, func(l link) bool { return l.Piece == tc.piece }) && category.Name != tc.category {
					t.Errorf("in %q", category.Name)
				}
			}
		})
	})
}
