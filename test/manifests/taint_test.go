package manifests

import (
	"fmt"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/iam4kube/iam4kube/test/controlplane"
)

const startupTaint = "iam4kube.io/not-ready"

// ip2serviceOn has the rights of ip2service's pod on a node, by a token that is bound to it.
func ip2serviceOn(t *testing.T, node string) kubernetes.Interface {
	t.Helper()
	const account = "iam4kube-ip2service"
	pod, err := cp.CreatePod(t.Context(), controlplane.Pod{Namespace: own, Name: "ip2service-" + node, ServiceAccount: account, Node: node})
	if err != nil {
		t.Fatal(err)
	}
	token, err := cp.Client.CoreV1().ServiceAccounts(own).CreateToken(t.Context(), account, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	config := rest.AnonymousClientConfig(cp.Config())
	config.BearerToken = token.Status.Token
	return kubernetes.NewForConfigOrDie(config)
}

// newNode makes a node as its kubelet registers it, with a taint of another kind, too.
func newNode(t *testing.T, name string) {
	t.Helper()
	if err := cp.CreateNode(t.Context(), controlplane.Node{Name: name}); err != nil {
		t.Fatal(err)
	}
	patch := `{"spec": {"taints": [{"key": "gpu", "effect": "NoSchedule"}, {"key": "` + startupTaint + `", "effect": "NoSchedule"}]}}`
	if _, err := cp.Client.CoreV1().Nodes().Patch(t.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// TestATokenOfIP2ServiceRemovesTheTaintOfItsOwnNodeAlone: whoever has taken over a node has one.
func TestATokenOfIP2ServiceRemovesTheTaintOfItsOwnNodeAlone(t *testing.T) {
	if err := apply(t.Context(), mustBuild(t, manifest("startup-taint"))); err != nil {
		t.Fatal(err)
	}
	newNode(t, "new-a")
	newNode(t, "new-b")
	unbound, err := cp.ServiceAccountConfig(t.Context(), own, "iam4kube-ip2service")
	if err != nil {
		t.Fatal(err)
	}
	ofA, ofNone := ip2serviceOn(t, "new-a"), kubernetes.NewForConfigOrDie(unbound)
	const notOwn, notTheTaint = "no node but its own", "nothing of a node but remove the taint"
	const removed = `{"spec": {"taints": [{"key": "gpu", "effect": "NoSchedule"}]}}`
	for _, tc := range []struct {
		name    string
		client  kubernetes.Interface
		node    string
		patch   string
		refused string
	}{
		{"another node", ofA, "new-b", removed, notOwn},
		{"a token of no pod", ofNone, "new-a", removed, notOwn},
		{"a label", ofA, "new-a", `{"metadata": {"labels": {"` + serverNode + `": "true"}}}`, notTheTaint},
		{"an annotation", ofA, "new-a", `{"metadata": {"annotations": {"a": "b"}}}`, notTheTaint},
		{"a finalizer", ofA, "new-a", `{"metadata": {"finalizers": ["example.com/a"]}}`, notTheTaint},
		{"an owner", ofA, "new-a", `{"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "b", "uid": "b"}]}}`, notTheTaint},
		{"cordon", ofA, "new-a", `{"spec": {"unschedulable": true}}`, notTheTaint},
		{"the provider's ID", ofA, "new-a", `{"spec": {"providerID": "aws:///a"}}`, notTheTaint},
		{"pods' addresses", ofA, "new-a", `{"spec": {"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24"]}}`, notTheTaint},
		{"all taints", ofA, "new-a", `{"spec": {"taints": []}}`, notTheTaint},
		{"another taint", ofA, "new-a", `{"spec": {"taints": [{"key": "` + startupTaint + `", "effect": "NoSchedule"}]}}`, notTheTaint},
		{"one taint more", ofA, "new-a", `{"spec": {"taints": [{"key": "gpu", "effect": "NoSchedule"}, {"key": "mine", "effect": "NoExecute"}]}}`, notTheTaint},
		{"the taint and a label", ofA, "new-a", strings.TrimSuffix(removed, "}") + `, "metadata": {"labels": {"a": "b"}}}`, notTheTaint},
		{"the taint", ofA, "new-a", removed, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			eventually(t, func() error { // until the policy is in effect
				_, err := tc.client.CoreV1().Nodes().Patch(t.Context(), tc.node, types.MergePatchType, []byte(tc.patch), metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}})
				if refused := err != nil && strings.Contains(err.Error(), "iam4kube-startup-taint"); refused != (tc.refused != "") || !refused && err != nil ||
					refused && !strings.Contains(err.Error(), tc.refused) {
					return fmt.Errorf("want refused %q: %w", tc.refused, err)
				}
				return nil
			})
		})
	}
	if _, err := ofA.CoreV1().Nodes().Patch(t.Context(), "new-a", types.MergePatchType, []byte(removed), metav1.PatchOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := cp.Client.CoreV1().Nodes().Patch(t.Context(), "new-b", types.MergePatchType, []byte(`{"metadata": {"labels": {"a": "b"}}}`), metav1.PatchOptions{}); err != nil {
		t.Errorf("an administrator: %v", err)
	}
}

func TestForeignPodsStayOffNewNodes(t *testing.T) {
	objects := mustBuild(t, manifest("startup-taint"))
	if err := apply(t.Context(), objects); err != nil {
		t.Fatal(err)
	}
	namespace := newNamespace(t, nil)
	tolerates := func(keys ...string) func(*corev1.PodSpec) {
		return func(s *corev1.PodSpec) {
			for _, key := range keys {
				s.Tolerations = append(s.Tolerations, corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists})
			}
		}
	}
	for _, tc := range []struct {
		name    string
		change  func(*corev1.PodSpec)
		refused bool
	}{
		{"nothing", tolerates(), false},
		{"another taint", tolerates("gpu"), false},
		{"the taint", tolerates("gpu", startupTaint), true},
		{"the taint by its value", func(s *corev1.PodSpec) { s.Tolerations = []corev1.Toleration{{Key: startupTaint, Value: "x"}} }, true},
		// The policy of the server's nodes lets this one be.
		{"everything, kept off the server's nodes", func(s *corev1.PodSpec) { s.Tolerations, s.Affinity = everything, affinity(elsewhere) }, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			eventually(t, func() error {
				err := create(t, namespace, spec(tc.change), nil)
				if refused := err != nil && strings.Contains(err.Error(), "iam4kube-new-nodes"); refused != tc.refused || !refused && err != nil {
					return fmt.Errorf("want refused: %v: %w", tc.refused, err)
				}
				return nil
			})
		})
	}
	for _, w := range workloads(t, objects) {
		admitted(t, w)
	}
}
