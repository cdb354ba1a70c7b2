package webhook

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/internal/webhook/inject"
)

// TestNetRawHasToBeDropped: what component drop-net-raw asks of pods of namespaces that opted in.
func TestNetRawHasToBeDropped(t *testing.T) {
	startReady(t)
	if err := cp.ApplyFiles(t.Context(), manifest("../components/drop-net-raw/policy.yaml")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cp.Client.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings().Delete(background, "iam4kube-net-raw", metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	namespace, other := newNamespace(t, inject.Enabled, nil), newNamespace(t, "", nil)
	context := func(add, drop []corev1.Capability) *corev1.SecurityContext {
		return &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: add, Drop: drop}}
	}
	all, raw := []corev1.Capability{"ALL"}, []corev1.Capability{"NET_RAW"}
	for _, tc := range []struct {
		name    string
		context *corev1.SecurityContext
		refused bool
	}{
		{"nothing said", nil, true},
		{"another one dropped", context(nil, []corev1.Capability{"CHOWN"}), true},
		{"dropped and added", context(raw, all), true},
		{"dropped, and all added", context([]corev1.Capability{"CAP_ALL"}, raw), true},
		{"dropped and privileged", &corev1.SecurityContext{Privileged: new(true), Capabilities: &corev1.Capabilities{Drop: all}}, true},
		{"dropped", context(nil, raw), false},
		{"dropped, in another spelling", context(nil, []corev1.Capability{"cap_net_raw"}), false},
		{"all dropped", context([]corev1.Capability{"CHOWN"}, all), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "app"}, Spec: plainSpec()}
			pod.Spec.Containers[0].SecurityContext = tc.context
			init := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "app"}, Spec: plainSpec()}
			init.Spec.Containers[0].SecurityContext = context(nil, all)
			init.Spec.InitContainers = []corev1.Container{{Name: "mine", Image: initImage, SecurityContext: tc.context}}
			for name, pod := range map[string]*corev1.Pod{pod.Spec.Containers[0].Name: pod, "mine": init} {
				eventually(t, func() error { // until the policy is in effect
					_, err := create(t, namespace, pod, metav1.DryRunAll)
					if refused := err != nil && strings.Contains(err.Error(), "iam4kube-net-raw") && strings.HasSuffix(err.Error(), "these do not: "+name); refused != tc.refused || !refused && err != nil {
						return fmt.Errorf("%s: want refused: %v: %w", name, tc.refused, err)
					}
					return nil
				})
				if _, err := create(t, other, pod, metav1.DryRunAll); err != nil {
					t.Errorf("%s, in a namespace that did not opt in: %v", name, err)
				}
			}
		})
	}
	t.Run("an ephemeral container", func(t *testing.T) {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "app"}, Spec: plainSpec()}
		pod.Spec.Containers[0].SecurityContext = context(nil, all)
		pod, err := create(t, namespace, pod)
		if err != nil {
			t.Fatal(err)
		}
		for refused, drop := range map[bool][]corev1.Capability{true: nil, false: all} {
			changed := pod.DeepCopy()
			changed.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
				Name: "debug", Image: "registry.invalid/debug:1", SecurityContext: context(nil, drop),
			}}}
			_, err := cp.Client.CoreV1().Pods(namespace).UpdateEphemeralContainers(t.Context(), pod.Name, changed, metav1.UpdateOptions{DryRun: []string{metav1.DryRunAll}})
			if have := err != nil && strings.HasSuffix(err.Error(), "these do not: debug"); have != refused || !have && err != nil {
				t.Errorf("that drops %v: %v", drop, err)
			}
		}
	})
}
