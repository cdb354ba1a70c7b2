package check

import (
	"cmp"
	"context"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/cmd/kubectl-iam4kube/cluster"
	"github.com/iam4kube/iam4kube/cmd/kubectl-iam4kube/finding"
	"github.com/iam4kube/iam4kube/internal/webhook/inject"
)

// mutation is what the API server has done to new pods, by the webhook, or by a policy in its
// place. An error is nil also where there is no such object.
type mutation struct {
	configuration               *admissionv1.MutatingWebhookConfiguration
	policy                      *admissionv1.MutatingAdmissionPolicy
	configurationErr, policyErr error
}

func (i *installation) mutation(ctx context.Context, configuration, policy string) (m mutation) {
	m.configuration, m.configurationErr = present(i.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(ctx, configuration, metav1.GetOptions{}))
	m.policy, m.policyErr = present(i.AdmissionregistrationV1().MutatingAdmissionPolicies().Get(ctx, policy, metav1.GetOptions{}))
	return m
}

func (m mutation) err() error { return cmp.Or(m.configurationErr, m.policyErr) }

// absent is whether certainly nobody does it.
func (m mutation) absent() bool { return m.configuration == nil && m.policy == nil && m.err() == nil }

// configurations are those of the webhook.
func (i *installation) configurations() (all []*admissionv1.MutatingWebhookConfiguration) {
	for _, m := range []mutation{i.injection, i.tokens} {
		if m.configuration != nil {
			all = append(all, m.configuration)
		}
	}
	return all
}

// hooks are those of all configurations.
func (i *installation) hooks() (all []admissionv1.MutatingWebhook) {
	for _, c := range i.configurations() {
		all = append(all, c.Webhooks...)
	}
	return all
}

func (i *installation) mutatingPolicies(ctx context.Context) finding.Finding {
	var names []string
	for _, m := range []mutation{i.injection, i.tokens} {
		switch p := m.policy; {
		case m.policyErr != nil:
			return unseen("MutatingAdmissionPolicies", m.policyErr)
		case p == nil:
		case p.Spec.FailurePolicy != nil && *p.Spec.FailurePolicy != admissionv1.Fail:
			return finding.FailurePolicy.Is("the MutatingAdmissionPolicy %s has the failurePolicy %s: when it fails, pods start without what it does, and reach their node's metadata service",
				p.Name, *p.Spec.FailurePolicy)
		default:
			names = append(names, p.Name)
		}
	}
	if len(names) == 0 {
		return finding.Finding{}
	}
	bindings, err := i.AdmissionregistrationV1().MutatingAdmissionPolicyBindings().List(ctx, metav1.ListOptions{})
	if err != nil {
		return unseen("bindings of MutatingAdmissionPolicies", err)
	}
	for _, name := range names {
		if !slices.ContainsFunc(bindings.Items, func(b admissionv1.MutatingAdmissionPolicyBinding) bool { return b.Spec.PolicyName == name }) {
			return finding.Unbound.Is("the MutatingAdmissionPolicy %s has no binding: it does nothing", name)
		}
	}
	return finding.Good("%s, in place of the webhook", strings.Join(names, " and "))
}

// certManaged is whether cert-manager is meant to write the CA: docs/webhook.md says how it is without.
func (i *installation) certManaged() bool {
	configurations := i.configurations()
	return len(configurations) == 0 || slices.ContainsFunc(configurations, func(c *admissionv1.MutatingWebhookConfiguration) bool {
		return c.Annotations["cert-manager.io/inject-ca-from"] != ""
	})
}

// opted are numbers of namespaces, by their labels.
type opted struct {
	injected, tokens int
	// tokensAlone are those of tokens whose pods are not injected.
	tokensAlone int
}

func (o *opted) add(labels map[string]string) {
	if labels[inject.Label] == inject.Enabled {
		o.injected++
	}
	if labels[inject.TokenLabel] == inject.Enabled {
		o.tokens++
		if labels[inject.Label] != inject.Enabled {
			o.tokensAlone++
		}
	}
}

// opted looks for namespaces whose label nobody hears.
func (i *installation) opted(o opted) finding.Finding {
	told := i.webhook != nil && len(i.configurations()) == 0 // by configurationCheck
	const nobody = "%d namespaces have the label %s=%s, and there is neither a webhook nor a policy for that"
	switch {
	case o.injected > 0 && i.injection.absent() && i.webhookErr == nil && !told:
		return finding.NoWebhook.Is(nobody, o.injected, inject.Label, inject.Enabled)
	case o.tokens > 0 && i.tokens.absent() && !told:
		return finding.NoTokens.Is(nobody, o.tokens, inject.TokenLabel, inject.Enabled)
	case o.tokensAlone > 0 && i.daemons == nil && i.daemonsErr == nil && !i.tokens.absent():
		return finding.NoRouting.Is("%d namespaces have the label %s=%s and not %s=%s, and there is no DaemonSet %s: what their pods ask with their tokens is led nowhere",
			o.tokensAlone, inject.TokenLabel, inject.Enabled, inject.Label, inject.Enabled, cluster.IP2Service)
	}
	return finding.Good("%d namespaces opted in to injection, %d to tokens", o.injected, o.tokens)
}
