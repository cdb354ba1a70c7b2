package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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

// installations are broken ones. Each has to be named, and nothing else.
var installations = []struct {
	name, piece, category string
	damage                func(t *testing.T, s *setup)
	warning               bool
}{
	{name: "ClusterRoleBinding of the server", piece: "rights", category: "rights", damage: removed(object{clusterBinds, "", "iam4kube-server", ""})},
	{name: "ClusterRole of the server", piece: "rights", category: "rights", damage: removed(object{clusterRoles, "", "iam4kube-server", ""})},
	{name: "Role of the server", piece: "rights", category: "rights", damage: removed(object{roles, own, "iam4kube-server", ""})},
	{name: "RoleBinding of the server", piece: "rights", category: "rights", damage: removed(object{roleBindings, own, "iam4kube-server", ""})},
	{name: "Role of ip2service", piece: "rights", category: "rights", damage: removed(object{roles, own, "iam4kube-ip2service", ""})},
	{name: "RoleBinding of ip2service", piece: "rights", category: "rights", damage: removed(object{roleBindings, own, "iam4kube-ip2service", ""})},
	{name: "Role of the webhook", piece: "rights", category: "rights", damage: removed(object{roles, own, "iam4kube-webhook", ""})},
	{name: "RoleBinding of the webhook", piece: "rights", category: "rights", damage: removed(object{roleBindings, own, "iam4kube-webhook", ""})},
	{name: "ServiceAccount of the webhook", piece: "no-account", category: "rights", damage: removed(object{accounts, own, "iam4kube-webhook", ""})},
	{name: "ServiceAccount of ip2service", piece: "no-account", category: "rights", damage: removed(object{accounts, own, "iam4kube-ip2service", ""})},

	{name: "Service", piece: "no-service", category: "policies and webhook", damage: removed(object{services, own, "iam4kube", ""})},
	{name: "port of the Service", piece: "service-port", category: "policies and webhook", damage: edited(object{services, own, "iam4kube", ""}, spec(func(spec map[string]any) {
		spec["ports"] = []any{map[string]any{"name": "http", "port": int64(8080), "targetPort": "http", "protocol": "TCP"}}
	}))},
	{name: "selector of the Service", piece: "service-selector", category: "policies and webhook", damage: edited(object{services, own, "iam4kube", ""}, spec(func(spec map[string]any) {
		spec["selector"] = map[string]any{"app": "iam4kube"}
	}))},
	{name: "Deployment of the webhook", piece: "no-webhook", category: "policies and webhook", damage: removed(object{deployments, own, "iam4kube-webhook", ""})},
	{name: "webhook not ready", piece: "webhook-not-ready", category: "policies and webhook", damage: edited(object{deployments, own, "iam4kube-webhook", "status"}, func(o map[string]any) {
		o["status"] = map[string]any{"replicas": int64(2)}
	})},
	{name: "MutatingWebhookConfiguration", piece: "no-configuration", category: "policies and webhook", damage: removed(object{configurations, "", "iam4kube-webhook", ""})},
	{name: "failurePolicy", piece: "failure-policy", category: "policies and webhook", damage: edited(object{configurations, "", "iam4kube-webhook", ""}, firstHook(func(hook map[string]any) {
		hook["failurePolicy"] = "Ignore"
	}))},
	{name: "namespaceSelector", piece: "selector", category: "policies and webhook", damage: edited(object{configurations, "", "iam4kube-webhook", ""}, firstHook(func(hook map[string]any) {
		hook["namespaceSelector"] = map[string]any{}
		hook["failurePolicy"] = "Fail"
		hook["objectSelector"] = map[string]any{"matchLabels": map[string]any{"nobody": "has-it"}} // or no pod could be created here
	}))},
	{name: "Service of the webhook", piece: "no-webhook-service", category: "policies and webhook", damage: removed(object{services, own, "iam4kube-webhook", ""})},
	{name: "policy about labels", piece: "no-policy", category: "policies and webhook", warning: true, damage: removed(object{policies, "", "iam4kube-webhook-label", ""})},
	{name: "policy about NET_ADMIN", piece: "no-policy", category: "policies and webhook", warning: true, damage: removed(object{policies, "", "iam4kube-net-admin", ""})},
	{name: "policy about the server's nodes", piece: "no-policy", category: "policies and webhook", warning: true, damage: removed(object{policies, "", "iam4kube-server-nodes", ""})},
	{name: "binding of a policy", piece: "unbound-policy", category: "policies and webhook", damage: removed(object{bindings, "", "iam4kube-net-admin", ""})},
	{name: "disruption budget of the server", piece: "no-object", category: "policies and webhook", warning: true, damage: removed(object{budgets, own, "iam4kube-server", ""})},
	{name: "disruption budget of the webhook", piece: "no-object", category: "policies and webhook", warning: true, damage: removed(object{budgets, own, "iam4kube-webhook", ""})},
	{name: "NetworkPolicy of the server", piece: "no-object", category: "policies and webhook", warning: true, damage: removed(object{networkPolicies, own, "iam4kube-server", ""})},
	{name: "ResourceQuota", piece: "no-object", category: "policies and webhook", warning: true, damage: removed(object{quotas, own, "iam4kube-critical", ""})},
	{name: "Issuer", piece: "no-object", category: "policies and webhook", warning: true, damage: removed(object{issuers, own, "iam4kube-webhook", ""})},
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
	{name: "Certificate", piece: "no-certificate", category: "certificate", damage: removed(object{certificates, own, "iam4kube-webhook", ""})},
	{name: "Certificate not ready", piece: "certificate-not-ready", category: "certificate", damage: edited(object{certificates, own, "iam4kube-webhook", "status"},
		ready("False", "Failed", "issuer not found"))},

	{name: "Deployment of the server", piece: "no-server", category: "server and its AWS identity", damage: removed(object{deployments, own, "iam4kube-server", ""})},
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

	{name: "DaemonSet", piece: "no-routing", category: "routing on every node", damage: func(t *testing.T, s *setup) {
		t.Helper()
		s.remove(t, object{daemonSets, own, "iam4kube-ip2service", ""})
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

func removed(o object) func(*testing.T, *setup) {
	return func(t *testing.T, s *setup) { t.Helper(); s.remove(t, o) }
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
		t.Run(tc.name, func(t *testing.T) {
			t.Run("broken", func(t *testing.T) {
				tc.damage(t, s)
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
	w := healthy()
	w.create(t, s)
	w.ready(t, s, http.StatusNoContent)
	well(t)
	t.Run("another version", func(t *testing.T) {
		path, err := newer()
		if err != nil {
			t.Fatal(err)
		}
		var a answer
		a.text, a.status = runPlugin(t, path, env.ControlPlane.Config(), "check", "-o", "json")
		if err := json.Unmarshal([]byte(a.text), &a); err != nil {
			t.Fatal(err)
		}
		if bad := a.bad("broken", "warning", "cannot-see"); a.status != 0 || len(bad) != 1 || bad[0].Piece != "version-skew" {
			t.Errorf("%d: %s", a.status, a.text)
		}
	})
	t.Run("injected by a policy", func(t *testing.T) {
		text, err := os.ReadFile("../../manifests/components/injection-policy/policy.yaml")
		if err == nil {
			err = env.ControlPlane.Apply(t.Context(), text)
		}
		if err != nil {
			t.Fatal(err)
		}
		admission := env.ControlPlane.Client.AdmissionregistrationV1()
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
}
