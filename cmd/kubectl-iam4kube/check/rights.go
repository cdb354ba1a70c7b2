package check

import (
	"context"
	"strings"
	"sync"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/cmd/kubectl-iam4kube/cluster"
	"github.com/iam4kube/iam4kube/cmd/kubectl-iam4kube/finding"
)

// right is one that a program needs; a path is one that is no resource.
type right struct{ verb, group, resource, namespace, name, path string }

func (r right) String() string {
	if r.path != "" {
		return r.verb + " " + r.path
	}
	text := r.verb + " " + r.resource
	if r.name != "" {
		text += "/" + r.name
	}
	return text
}

func (i *installation) serverRights(ctx context.Context) finding.Finding {
	if i.server == nil && i.serverErr == nil {
		return finding.Finding{} // told elsewhere
	}
	rights := []right{
		{verb: "create", resource: "events"},
		{verb: "get", path: "/openid/v1/jwks"},
		{verb: "get", path: "/.well-known/openid-configuration"},
		{verb: "create", resource: "secrets", namespace: i.Namespace},
		{verb: "list", resource: "secrets", namespace: i.Namespace, name: "iam4kube-token-key"},
		{verb: "watch", resource: "secrets", namespace: i.Namespace, name: "iam4kube-token-key"},
	}
	if i.server != nil && cluster.WebIdentity(cluster.Flags(i.server.Spec.Template.Spec)) { // of the component web-identity
		rights = append(rights, right{verb: "list", resource: "secrets", namespace: i.Namespace, name: "iam4kube-issuer-key"},
			right{verb: "watch", resource: "secrets", namespace: i.Namespace, name: "iam4kube-issuer-key"})
	}
	for _, resource := range []string{"pods", "serviceaccounts", "nodes", "namespaces"} {
		rights = append(rights, right{verb: "list", resource: resource}, right{verb: "watch", resource: resource})
	}
	return i.rights(ctx, cluster.Server, "manifests/base/server-rbac.yaml", rights)
}

func (i *installation) ip2serviceRights(ctx context.Context) finding.Finding {
	if !i.routes() {
		return finding.Finding{}
	}
	return i.rights(ctx, cluster.IP2Service, "manifests/base/ip2service-rbac.yaml", []right{
		{verb: "list", group: "discovery.k8s.io", resource: "endpointslices", namespace: i.Namespace},
		{verb: "watch", group: "discovery.k8s.io", resource: "endpointslices", namespace: i.Namespace},
	})
}

func (i *installation) webhookRights(ctx context.Context) finding.Finding {
	if i.webhook == nil {
		return finding.Finding{}
	}
	return i.rights(ctx, cluster.Webhook, "manifests/base/webhook-rbac.yaml", []right{
		{verb: "list", resource: "services", namespace: i.Namespace, name: cluster.Service},
		{verb: "watch", resource: "services", namespace: i.Namespace, name: cluster.Service},
	})
}

// rights asks the API server itself what a ServiceAccount may do.
func (i *installation) rights(ctx context.Context, account, manifest string, rights []right) finding.Finding {
	_, err := i.CoreV1().ServiceAccounts(i.Namespace).Get(ctx, account, metav1.GetOptions{})
	switch {
	case cluster.Absent(err):
		return finding.NoAccount.Is("there is no ServiceAccount %s/%s (%s)", i.Namespace, account, manifest)
	case err != nil:
		return unseen("ServiceAccount "+account, err)
	}
	allowed, errs := make([]bool, len(rights)), make([]error, len(rights))
	var asking sync.WaitGroup
	for n, r := range rights {
		asking.Go(func() { allowed[n], errs[n] = i.may(ctx, account, r) })
	}
	asking.Wait()
	var missing []string
	for n, r := range rights {
		if errs[n] != nil {
			return unseen("what "+account+" may do", errs[n])
		}
		if !allowed[n] {
			missing = append(missing, r.String())
		}
	}
	if len(missing) > 0 {
		return finding.Rights.Is("ServiceAccount %s/%s may not: %s (%s)", i.Namespace, account, strings.Join(missing, ", "), manifest)
	}
	return finding.Good("%s has all that it needs", account)
}

func (i *installation) may(ctx context.Context, account string, r right) (bool, error) {
	spec := authorizationv1.SubjectAccessReviewSpec{
		User:   "system:serviceaccount:" + i.Namespace + ":" + account,
		Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + i.Namespace, "system:authenticated"},
	}
	if r.path != "" {
		spec.NonResourceAttributes = &authorizationv1.NonResourceAttributes{Path: r.path, Verb: r.verb}
	} else {
		spec.ResourceAttributes = &authorizationv1.ResourceAttributes{Verb: r.verb, Group: r.group, Resource: r.resource, Namespace: r.namespace, Name: r.name}
	}
	review, err := i.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		return false, err
	}
	return review.Status.Allowed, nil
}
