package check

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/cmd/kubectl-iam4kube/cluster"
	"github.com/iam4kube/iam4kube/cmd/kubectl-iam4kube/finding"
	"github.com/iam4kube/iam4kube/internal/webhook/inject"
)

func (i *installation) serviceCheck(ctx context.Context) finding.Finding {
	name := i.Namespace + "/" + cluster.Service
	switch s := i.service; {
	case i.serviceErr != nil:
		return unseen("the Service "+name, i.serviceErr)
	case s == nil:
		return finding.NoService.Is("there is no Service %s", name)
	case s.Spec.ClusterIP == "" || s.Spec.ClusterIP == corev1.ClusterIPNone:
		return finding.Headless.Is("the Service %s has no ClusterIP", name)
	case !slices.ContainsFunc(s.Spec.Ports, func(p corev1.ServicePort) bool {
		return p.Port == 80 && p.TargetPort.String() == "http" && (p.Protocol == corev1.ProtocolTCP || p.Protocol == "")
	}):
		return finding.ServicePort.Is("the Service %s has no TCP port 80 with the target port http", name)
	}
	for key, value := range i.service.Spec.Selector {
		if i.server != nil && i.server.Spec.Template.Labels[key] != value {
			return finding.ServiceSelector.Is("the Service %s selects %s=%s, which the pods of %s do not have", name, key, value, cluster.Server)
		}
	}
	slices, err := i.DiscoveryV1().EndpointSlices(i.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=" + cluster.Service})
	if err != nil {
		return unseen("the endpoints of "+name, err)
	}
	return finding.Good("%s, %s, EndpointSlices: %d", name, strings.Join(i.service.Spec.ClusterIPs, " and "), len(slices.Items))
}

func (i *installation) webhookCheck(ctx context.Context) finding.Finding {
	switch {
	case i.webhookErr != nil:
		return unseen("the Deployment "+cluster.Webhook, i.webhookErr)
	case !i.hasWebhook():
		return finding.Finding{}
	case i.webhook == nil:
		return finding.NoWebhook.Is("the MutatingWebhookConfiguration %s is there, and the Deployment %s/%s is not: no pod starts in namespaces that opted in",
			i.configurations()[0].Name, i.Namespace, cluster.Webhook)
	case i.webhook.Status.ReadyReplicas == 0:
		return finding.WebhookNotReady.Is("no replica of %s is ready: %s", cluster.Webhook, i.whyNotReady(ctx, cluster.Webhook))
	}
	return finding.Good("%d of %d replicas are ready", i.webhook.Status.ReadyReplicas, *i.webhook.Spec.Replicas)
}

// whyNotReady is the word of the first pod of a program that is not ready.
func (i *installation) whyNotReady(ctx context.Context, program string) string {
	pods, err := i.PodsOf(ctx, program, "")
	if err != nil {
		return "cannot see why: " + cluster.Reason(err)
	}
	for n := range pods {
		if cluster.Ready(&pods[n]) {
			continue
		}
		return pods[n].Name + ": " + i.why(ctx, &pods[n])
	}
	if len(pods) > 0 {
		return "its pods say that they are"
	}
	return "it has no pods"
}

func (i *installation) configurationCheck(ctx context.Context) finding.Finding {
	configurations := i.configurations()
	switch err := cmp.Or(i.injection.configurationErr, i.tokens.configurationErr); {
	case err != nil:
		return unseen("the MutatingWebhookConfigurations", err)
	case !i.hasWebhook():
		return finding.Finding{}
	case len(configurations) == 0:
		return finding.NoConfiguration.Is("the Deployment %s is there, and neither the MutatingWebhookConfiguration %s nor %s-token: new pods stay as they are",
			cluster.Webhook, cluster.Webhook, cluster.Webhook)
	}
	hooks := i.hooks()
	for _, hook := range hooks {
		if hook.FailurePolicy != nil && *hook.FailurePolicy != admissionv1.Fail {
			return finding.FailurePolicy.Is("webhook %s has the failurePolicy %s: while it is down, pods start that reach their node's metadata service", hook.Name, *hook.FailurePolicy)
		}
		if ns := hook.NamespaceSelector; ns == nil || len(ns.MatchExpressions)+len(ns.MatchLabels) == 0 {
			return finding.Selector.Is("webhook %s has no namespaceSelector, so it gets the pods of all namespaces", hook.Name)
		}
		ref := hook.ClientConfig.Service
		if ref == nil {
			continue
		}
		_, err := i.CoreV1().Services(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
		switch {
		case cluster.Absent(err):
			return finding.NoWebhookService.Is("webhook %s is called at the Service %s/%s, which does not exist", hook.Name, ref.Namespace, ref.Name)
		case err != nil:
			return unseen("the Service of the webhook", err)
		}
	}
	return finding.Good("%s, %d webhooks", configurations[0].Name, len(hooks))
}

func (i *installation) policies(ctx context.Context) finding.Finding {
	policies, err := i.AdmissionregistrationV1().ValidatingAdmissionPolicies().List(ctx, metav1.ListOptions{})
	if err != nil {
		return unseen("admission policies", err)
	}
	bindings, err := i.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings().List(ctx, metav1.ListOptions{})
	if err != nil {
		return unseen("bindings of admission policies", err)
	}
	have := map[string]*admissionv1.ValidatingAdmissionPolicy{}
	for n := range policies.Items {
		have[policies.Items[n].Name] = &policies.Items[n]
	}
	var wanted []string
	if i.server != nil && i.server.Spec.Template.Spec.NodeSelector[cluster.ServerNode] != "" {
		wanted = append(wanted, "iam4kube-server-nodes")
	}
	if i.hasWebhook() || i.injection.policy != nil || i.tokens.policy != nil {
		wanted = append(wanted, "iam4kube-webhook-label", "iam4kube-net-admin")
	}
	for _, name := range wanted {
		if have[name] == nil {
			return finding.NoPolicy.May("there is no ValidatingAdmissionPolicy %s", name)
		}
	}
	for name := range have {
		bound := slices.ContainsFunc(bindings.Items, func(b admissionv1.ValidatingAdmissionPolicyBinding) bool { return b.Spec.PolicyName == name })
		if strings.HasPrefix(name, "iam4kube-") && !bound {
			return finding.Unbound.Is("the ValidatingAdmissionPolicy %s has no binding, so it decides nothing", name)
		}
	}
	if i.webhook != nil && have["iam4kube-net-admin"] != nil {
		image := cluster.Value(cluster.Flags(i.webhook.Spec.Template.Spec), "init-image")
		for _, v := range have["iam4kube-net-admin"].Spec.Variables {
			if v.Name == "images" && !strings.Contains(v.Expression, "'"+image+"'") {
				return finding.PolicyImage.Is("the webhook injects the image %s, and the policy iam4kube-net-admin admits %s", image, v.Expression)
			}
		}
	}
	return finding.Good("%d of iam4kube, each with a binding", countOurs(have))
}

func countOurs(policies map[string]*admissionv1.ValidatingAdmissionPolicy) (n int) {
	for name := range policies {
		if strings.HasPrefix(name, "iam4kube-") {
			n++
		}
	}
	return n
}

// others are the objects of the manifests without which all works until something happens.
func (i *installation) others(ctx context.Context) finding.Finding {
	paths := []string{"/api/v1/%s/resourcequotas/iam4kube-critical"}
	both := []string{"/apis/policy/v1/%s/poddisruptionbudgets/", "/apis/networking.k8s.io/v1/%s/networkpolicies/"}
	if i.server != nil {
		paths = append(paths, both[0]+cluster.Server, both[1]+cluster.Server)
		for _, from := range i.server.Spec.Template.Spec.Containers[0].EnvFrom {
			if from.ConfigMapRef != nil {
				paths = append(paths, "/api/v1/%s/configmaps/"+from.ConfigMapRef.Name)
			}
		}
	}
	if i.hasWebhook() {
		paths = append(paths, both[0]+cluster.Webhook, both[1]+cluster.Webhook)
	}
	if i.hasWebhook() && i.certManaged() {
		const issuers = "/apis/cert-manager.io/v1/%s/issuers/"
		paths = append(paths, issuers+cluster.Webhook, issuers+cluster.Webhook+"-selfsigned")
	}
	for _, path := range paths {
		parts := strings.Split(path, "/")
		kind, name := parts[len(parts)-2], parts[len(parts)-1]
		err := i.Raw(ctx, fmt.Sprintf(path, "namespaces/"+i.Namespace), &struct{}{})
		switch {
		case cluster.Absent(err):
			return finding.NoObject.May("of %s in the namespace %s there is no %s", kind, i.Namespace, name)
		case err != nil:
			return unseen(kind+" of the namespace "+i.Namespace, err)
		}
	}
	return finding.Good("quota, disruption budgets, network policies, issuers and the server's ConfigMap are there")
}

// labels looks for values that nobody knows, in namespaces that are older than the policy.
func (i *installation) labels(ctx context.Context) finding.Finding {
	namespaces, err := i.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return unseen("labels of namespaces", err)
	}
	var wrong []string
	var o opted
	for _, n := range namespaces.Items {
		for label, values := range map[string][]string{
			inject.Label: {inject.Enabled, inject.Disabled}, inject.TokenLabel: {inject.Enabled, inject.Disabled}, "iam4kube.io/identity": {"token"},
		} {
			if value, found := n.Labels[label]; found && !slices.Contains(values, value) {
				wrong = append(wrong, fmt.Sprintf("%s (%s: %q)", n.Name, label, value))
			}
		}
		o.add(n.Labels)
	}
	if len(wrong) > 0 {
		return finding.NamespaceLabel.Is("labels with values that nobody knows, of the namespaces %s", finding.List(wrong))
	}
	return i.opted(o)
}

// expiringSoon is when somebody should look: cert-manager renews 30 days before.
const expiringSoon = 7 * 24 * time.Hour

// roots are the CA certificates of the webhooks.
func (i *installation) roots() (pool *x509.CertPool, ends time.Time, err error) {
	pool = x509.NewCertPool()
	for _, hook := range i.hooks() {
		bundle := hook.ClientConfig.CABundle
		if len(bundle) == 0 {
			return nil, ends, fmt.Errorf("webhook %s has no caBundle", hook.Name)
		}
		for block, rest := pem.Decode(bundle); block != nil; block, rest = pem.Decode(rest) {
			certificate, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, ends, fmt.Errorf("webhook %s has a caBundle that is none: %w", hook.Name, err)
			}
			pool.AddCert(certificate)
			if ends.IsZero() || certificate.NotAfter.After(ends) {
				ends = certificate.NotAfter
			}
		}
	}
	if ends.IsZero() {
		return nil, ends, errors.New("the caBundle holds no certificate")
	}
	return pool, ends, nil
}

func (i *installation) caBundle(context.Context) finding.Finding {
	if len(i.configurations()) == 0 {
		return finding.Finding{}
	}
	_, ends, err := i.roots()
	switch {
	case err != nil:
		return finding.NoCABundle.Is("%v: the API server cannot verify the webhook, and pods of namespaces that opted in are refused", err)
	case time.Now().After(ends):
		return finding.CAExpired.Is("the CA in the webhook's configuration expired at %s", ends.UTC().Format(time.RFC3339))
	}
	return finding.Good("valid until %s", ends.UTC().Format(time.RFC3339))
}

// certificate is the part of cert-manager's type that is looked at.
type certificate struct {
	Metadata metav1.ObjectMeta `json:"metadata"`
	Status   struct {
		Conditions []metav1.Condition `json:"conditions"`
		NotAfter   *metav1.Time       `json:"notAfter"`
	} `json:"status"`
}

func (i *installation) certificates(ctx context.Context) finding.Finding {
	if !i.hasWebhook() || !i.certManaged() {
		return finding.Finding{}
	}
	for _, name := range []string{"iam4kube-webhook-ca", cluster.Webhook} {
		var c certificate
		err := i.Raw(ctx, "/apis/cert-manager.io/v1/namespaces/"+i.Namespace+"/certificates/"+name, &c)
		switch {
		case cluster.Absent(err):
			return finding.NoCertificate.Is("there is no Certificate %s/%s of cert-manager", i.Namespace, name)
		case err != nil:
			return unseen("certificates of cert-manager", err)
		}
		ready := slices.IndexFunc(c.Status.Conditions, func(c metav1.Condition) bool { return c.Type == "Ready" })
		if ready < 0 {
			return finding.CertificateNotReady.Is("cert-manager has not looked at Certificate %s yet", name)
		}
		if condition := c.Status.Conditions[ready]; condition.Status != metav1.ConditionTrue {
			return finding.CertificateNotReady.Is("Certificate %s: %s: %s", name, condition.Reason, condition.Message)
		}
	}
	return finding.Good("cert-manager says that both are ready")
}

// serving asks a replica of the webhook as the API server does.
func (i *installation) serving(ctx context.Context) finding.Finding {
	if len(i.configurations()) == 0 || i.webhook == nil {
		return finding.Finding{}
	}
	roots, ends, err := i.roots()
	if err != nil || time.Now().After(ends) {
		return finding.Finding{} // told before
	}
	pods, err := i.PodsOf(ctx, cluster.Webhook, "status.phase=Running")
	if err != nil {
		return unseen("the webhook's pods", err)
	}
	if len(pods) == 0 {
		return finding.Finding{} // told before
	}
	const port = 9443
	forward, err := i.Forward(ctx, &pods[0], port)
	if err != nil {
		return unseen("the certificate that "+pods[0].Name+" shows", err)
	}
	defer forward.Close()
	name := cluster.Webhook + "." + i.Namespace + ".svc"
	d := tls.Dialer{Config: &tls.Config{RootCAs: roots, ServerName: name, MinVersion: tls.VersionTLS12}}
	connection, err := d.DialContext(ctx, "tcp", forward.Port(port))
	if untrusted := (*tls.CertificateVerificationError)(nil); errors.As(err, &untrusted) {
		return finding.Untrusted.Is("the API server cannot trust what %s shows: %v", pods[0].Name, untrusted.Err)
	}
	if err != nil {
		return unseen("the certificate that "+pods[0].Name+" shows", err)
	}
	defer func() { _ = connection.Close() }()
	secured, ok := connection.(*tls.Conn)
	if !ok {
		return unseen("the certificate", errors.New("no TLS"))
	}
	ends = secured.ConnectionState().PeerCertificates[0].NotAfter
	if time.Until(ends) < expiringSoon {
		return finding.Expiring.May("the certificate that %s shows expires at %s, and was not renewed", pods[0].Name, ends.UTC().Format(time.RFC3339))
	}
	return finding.Good("%s, valid until %s", name, ends.UTC().Format(time.RFC3339))
}
