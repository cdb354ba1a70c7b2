package check

import (
	"context"
	"slices"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/cmd/kubectl-iam4kube/finding"
)

// injectionPolicy is that of the component injection-policy, which injects in the webhook's place.
const injectionPolicy = "iam4kube-inject"

func (i *installation) policyCheck(ctx context.Context) finding.Finding {
	switch {
	case i.policyErr != nil:
		return unseen("the MutatingAdmissionPolicy "+injectionPolicy, i.policyErr)
	case i.policy == nil:
		return finding.Finding{}
	case i.policy.Spec.FailurePolicy != nil && *i.policy.Spec.FailurePolicy != admissionv1.Fail:
		return finding.FailurePolicy.Is("the MutatingAdmissionPolicy %s has the failurePolicy %s: when it fails, pods start that reach their node's metadata service",
			injectionPolicy, *i.policy.Spec.FailurePolicy)
	}
	bindings, err := i.AdmissionregistrationV1().MutatingAdmissionPolicyBindings().List(ctx, metav1.ListOptions{})
	if err != nil {
		return unseen("bindings of MutatingAdmissionPolicies", err)
	}
	if !slices.ContainsFunc(bindings.Items, func(b admissionv1.MutatingAdmissionPolicyBinding) bool { return b.Spec.PolicyName == injectionPolicy }) {
		return finding.Unbound.Is("the MutatingAdmissionPolicy %s has no binding: nothing is injected", injectionPolicy)
	}
	return finding.Good("%s, in place of the webhook", injectionPolicy)
}
