package webhook

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/internal/webhook/inject"
)

// A value of a label that means nothing is refused, wherever it is new.
func TestLabelsOfANamespaceHaveTheirValues(t *testing.T) {
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
	check := func(label, value string, err error, refused bool) error {
		if refused && (err == nil || !strings.Contains(err.Error(), "the label "+label+" of a namespace has to be ") || !strings.HasSuffix(strings.TrimSpace(err.Error()), strings.TrimSpace("not: "+value))) ||
			!refused && err != nil {
			return fmt.Errorf("%s %q: refused: %w, want %v", label, value, err, refused)
		}
		return nil
	}
	switches := map[string]bool{"true": true, "Enabled": true, "yes": true, "": true, "enable": true, inject.Enabled: false, inject.Disabled: false}
	for label, values := range map[string]map[string]bool{
		inject.Label: switches, inject.TokenLabel: switches,
		labelIdentity: {"true": true, "Token": true, "tokens": true, "": true, "address": true, "token": false},
	} {
		for value, refused := range values {
			eventually(t, func() error { // until the policy is in effect
				fresh := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "fresh", Labels: map[string]string{label: value}}}
				_, err := namespaces.Create(t.Context(), fresh, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
				return check(label, value, err, refused)
			})
			was, err := namespaces.Get(t.Context(), before, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			was.Labels[label] = value
			_, err = namespaces.Update(t.Context(), was, metav1.UpdateOptions{DryRun: []string{metav1.DryRunAll}})
			if err := check(label, value, err, refused && (label != inject.Label || value != "true")); err != nil {
				t.Errorf("from true: %v", err)
			}
		}
	}
	// What it had before the policy stays, whatever else changes, and may go.
	setLabel(t, before, "other", "label")
	setLabel(t, before, inject.Label, nil)
	setLabel(t, before, "other", nil)
}
