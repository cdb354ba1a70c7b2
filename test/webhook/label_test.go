package webhook

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/internal/webhook/inject"
)

// A value of the label that means nothing is refused, wherever it is new.
func TestLabelOfANamespaceHasTwoValues(t *testing.T) {
	before := newNamespace(t, "true", nil)
	if err := cp.ApplyFiles(t.Context(), manifest("webhook-label-policy.yaml")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cp.Client.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings().Delete(background, "iam4kube-webhook-label", metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	namespaces := cp.Client.CoreV1().Namespaces()
	check := func(value string, err error, refused bool) error {
		if refused && (err == nil || !strings.Contains(err.Error(), "has to be enabled (its new pods are injected) or disabled") || !strings.HasSuffix(strings.TrimSpace(err.Error()), strings.TrimSpace("not: "+value))) ||
			!refused && err != nil {
			return fmt.Errorf("%q: refused: %w, want %v", value, err, refused)
		}
		return nil
	}
	for value, refused := range map[string]bool{
		"true": true, "Enabled": true, "yes": true, "": true, "enable": true, inject.Enabled: false, inject.Disabled: false,
	} {
		eventually(t, func() error { // until the policy is in effect
			fresh := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "fresh", Labels: map[string]string{inject.Label: value}}}
			_, err := namespaces.Create(t.Context(), fresh, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			return check(value, err, refused)
		})
		was, err := namespaces.Get(t.Context(), before, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		was.Labels[inject.Label] = value
		_, err = namespaces.Update(t.Context(), was, metav1.UpdateOptions{DryRun: []string{metav1.DryRunAll}})
		if err := check(value, err, refused && value != "true"); err != nil {
			t.Errorf("from true: %v", err)
		}
	}
	// What it had before the policy stays, whatever else changes, and may go.
	setLabel(t, before, "other", "label")
	setLabel(t, before, inject.Label, nil)
	setLabel(t, before, "other", nil)
}
