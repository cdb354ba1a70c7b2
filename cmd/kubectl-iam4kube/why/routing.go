package why

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/cmd/kubectl-iam4kube/cluster"
	"github.com/iam4kube/iam4kube/cmd/kubectl-iam4kube/finding"
	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
	"github.com/iam4kube/iam4kube/internal/webhook/inject"
)

const (
	identityLabel  = "iam4kube.io/identity"
	identityToken  = "token"
	tokenVariable  = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"
	uriVariables   = "AWS_CONTAINER_CREDENTIALS_"
	tokenMountPath = "/var/run/secrets/iam4kube.io/"
)

// labelValues are what the labels of namespaces may say.
var labelValues = map[string][]string{
	inject.Label: {inject.Enabled, inject.Disabled}, inject.TokenLabel: {inject.Enabled, inject.Disabled}, identityLabel: {identityToken},
}

func (l *look) namespaceLink(ctx context.Context) (finding.Finding, error) {
	namespace, err := l.CoreV1().Namespaces().Get(ctx, l.namespaceName, metav1.GetOptions{})
	if err != nil {
		return unseen("the namespace's labels", err)
	}
	l.namespace = namespace
	var have []string
	for _, label := range slices.Sorted(maps.Keys(labelValues)) {
		value, found := namespace.Labels[label]
		if !found {
			continue
		}
		if !slices.Contains(labelValues[label], value) {
			return finding.NamespaceLabel.Is("the namespace's label %s has the value %q, want %s",
				label, value, strings.Join(labelValues[label], " or ")), nil
		}
		have = append(have, label+"="+value)
	}
	if len(have) == 0 {
		return finding.Good("no label of iam4kube's"), nil
	}
	return finding.Good("%s", strings.Join(have, ", ")), nil
}

// wants is whether the namespace asks for what the label is about, and the pod does not
// object. Where the namespace was not seen it is what the pod shows.
func (l *look) wants(label string) bool {
	return l.namespace != nil && l.namespace.Labels[label] == inject.Enabled && l.pod.Labels[label] != inject.Disabled
}

// insists is whether the namespace insists on tokens: with any value of label or annotation.
func (l *look) insists() bool {
	if l.namespace == nil {
		return false
	}
	_, label := l.namespace.Labels[identityLabel]
	_, annotation := l.namespace.Annotations[identityLabel]
	return label || annotation
}

func (l *look) routingLink(ctx context.Context) (finding.Finding, error) {
	if l.pod.Spec.HostNetwork {
		return l.onHostNetwork(), nil
	}
	for i := range l.pod.Spec.InitContainers {
		if c := &l.pod.Spec.InitContainers[i]; c.Name == inject.ContainerName {
			l.injected = c
			return l.injectedTo(ctx, i)
		}
	}
	f, err := l.nodeWide(ctx)
	if err != nil || f.State == finding.OK || !l.wants(inject.Label) {
		return f, err
	}
	return finding.NotInjected.Is("the namespace has the label %s=%s, and the pod has no init container %s; %s",
		inject.Label, inject.Enabled, inject.ContainerName, f.Text), nil
}

func (l *look) onHostNetwork() finding.Finding {
	if hasToken(l.pod) {
		return finding.Good("the pod has its node's network, and a token")
	}
	return finding.Of(l.subject().Refused(diagnosis.NodeAddress))
}

// injectedTo looks at where the init container leads to.
func (l *look) injectedTo(ctx context.Context, place int) (finding.Finding, error) {
	if place > 0 {
		return finding.NotFirst.Is("init container %s is before %s", l.pod.Spec.InitContainers[0].Name, inject.ContainerName), nil
	}
	to := cluster.Flags(corev1.PodSpec{Containers: []corev1.Container{*l.injected}})["to"]
	service, err := l.CoreV1().Services(l.Namespace).Get(ctx, cluster.Service, metav1.GetOptions{})
	switch {
	case cluster.Hidden(err):
		return finding.Hidden("whether %s, to which the injected init container leads, is the Service's address: %s", strings.Join(to, " and "), cluster.Reason(err)), nil
	case cluster.Absent(err):
		return finding.OldAddress.Is("the pod was injected with %s, and the Service %s/%s does not exist", strings.Join(to, " and "), l.Namespace, cluster.Service), nil
	case err != nil:
		return finding.Finding{}, err
	}
	for _, address := range to {
		if !leadsTo(address, service) {
			return finding.OldAddress.Is("the pod's rules lead to %s, and the Service %s/%s has %s", address, l.Namespace, cluster.Service, strings.Join(service.Spec.ClusterIPs, " and ")), nil
		}
	}
	return finding.Good("injected: init container %s of image %s leads to %s", inject.ContainerName, l.injected.Image, strings.Join(to, " and ")), nil
}

// leadsTo is whether an address with a port is one of the Service's.
func leadsTo(address string, service *corev1.Service) bool {
	target, err := netip.ParseAddrPort(address)
	return err == nil && slices.Contains(service.Spec.ClusterIPs, target.Addr().String())
}

// nodeWide looks at ip2service on the pod's node.
func (l *look) nodeWide(ctx context.Context) (finding.Finding, error) {
	pods, err := l.PodsOf(ctx, cluster.IP2Service, "spec.nodeName="+l.pod.Spec.NodeName)
	if err != nil {
		return unseen("whether the node "+l.pod.Spec.NodeName+" routes (the pod is not injected)", err)
	}
	for i := range pods {
		if cluster.Ready(&pods[i]) {
			return finding.Good("node-wide: %s is ready on node %s", pods[i].Name, l.pod.Spec.NodeName), nil
		}
	}
	if len(pods) > 0 {
		return finding.NotRouted.Is("the pod is not injected, and %s on node %s is not ready: %s", pods[0].Name, l.pod.Spec.NodeName, cluster.State(&pods[0])), nil
	}
	node, err := l.CoreV1().Nodes().Get(ctx, l.pod.Spec.NodeName, metav1.GetOptions{})
	if err == nil {
		if _, special := node.Labels[cluster.ServerNode]; special {
			return finding.ServerNode.Is("the pod is not injected, and node %s is the server's own", node.Name), nil
		}
	}
	return finding.NotRouted.Is("the pod is not injected, and ip2service does not run on node %s", l.pod.Spec.NodeName), nil
}

func (l *look) initContainerLink(context.Context) (finding.Finding, error) {
	if l.injected == nil {
		return finding.Finding{}, nil
	}
	for _, status := range l.pod.Status.InitContainerStatuses {
		if status.Name != inject.ContainerName {
			continue
		}
		last := status.LastTerminationState.Terminated
		switch ended, waiting := status.State.Terminated, status.State.Waiting; {
		case ended != nil && ended.ExitCode == 0:
			return finding.Good("has ended well after %v, restarts: %d", ended.FinishedAt.Sub(ended.StartedAt.Time), status.RestartCount), nil
		case ended != nil:
			return finding.InitFailed.Is("exit code %d: %s", ended.ExitCode, lastLine(ended.Message)), nil
		case waiting != nil && last != nil:
			return finding.InitFailed.Is("%s, exit code %d: %s", waiting.Reason, last.ExitCode, lastLine(last.Message)), nil
		case waiting != nil && strings.Contains(waiting.Reason, "Image"):
			return finding.InitImage.Is("image %s: %s: %s", l.injected.Image, waiting.Reason, waiting.Message), nil
		case waiting != nil:
			return finding.InitRunning.Is("has not started: %s", strings.TrimSpace(waiting.Reason+" "+waiting.Message)), nil
		case status.State.Running != nil:
			return finding.InitRunning.Is("runs since %s", status.State.Running.StartedAt.UTC().Format("15:04:05Z")), nil
		}
	}
	return finding.InitRunning.Is("the kubelet has not told of it yet"), nil
}

// lastLine is that of a log.
func lastLine(log string) string {
	lines := strings.Split(strings.TrimSpace(log), "\n")
	return lines[len(lines)-1]
}

// own are variables by which a container says itself where its credentials come from, or that
// it asks nobody.
var own = []string{"AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_EC2_METADATA_DISABLED"}

func (l *look) tokenLink(context.Context) (finding.Finding, error) {
	if l.insists() && !hasToken(l.pod) {
		return finding.Of(l.subject().Refused(diagnosis.TokenRequired)), nil
	}
	if l.wants(inject.TokenLabel) && !hasToken(l.pod) {
		return finding.NoToken.Is("the namespace has the label %s=%s, and no container of the pod has a token of iam4kube", inject.TokenLabel, inject.Enabled), nil
	}
	for _, container := range l.pod.Spec.Containers {
		for _, variable := range container.Env {
			foreign := variable.Name == tokenVariable && !strings.HasPrefix(variable.Value, tokenMountPath)
			if slices.Contains(own, variable.Name) && variable.Value != "false" || foreign {
				return finding.OwnCredentials.May("container %s sets %s by itself, so it may not ask iam4kube at all", container.Name, variable.Name), nil
			}
		}
	}
	if hasToken(l.pod) {
		return finding.Good("the pod proves itself by a token of audience iam4kube.io"), nil
	}
	return finding.Finding{}, nil
}

// hasToken is whether one of the containers has what the webhook gives for a token.
func hasToken(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Spec.Containers, func(c corev1.Container) bool {
		var file, uri bool
		for _, v := range c.Env {
			file = file || v.Name == tokenVariable && strings.HasPrefix(v.Value, tokenMountPath)
			uri = uri || strings.HasPrefix(v.Name, uriVariables)
		}
		return file && uri
	})
}

// address is the pod's first, the zero Addr before it has one.
func address(pod *corev1.Pod) netip.Addr {
	ip, _ := netip.ParseAddr(pod.Status.PodIP)
	return ip
}

func (l *look) addressLink(context.Context) (finding.Finding, error) {
	ip := address(l.pod)
	if !ip.IsValid() {
		return finding.PodPending.Is("the pod has no address yet: %s", cluster.State(l.pod)), nil
	}
	if l.pod.Spec.HostNetwork {
		return finding.Finding{}, nil
	}
	for _, replica := range l.dumped() {
		known, others := owners(replica.Pods, l.pod, ip)
		switch {
		case !known:
			return finding.Of(l.subject().Missing(diagnosis.Pod)), nil
		case len(others) > 0:
			f := finding.Of(l.subject().Missing(diagnosis.SinglePod))
			f.Text += fmt.Sprintf(" Server %s sees it also on %s.", replica.Pod.Name, finding.List(others))
			return f, nil
		}
	}
	if why := l.unread(); why != "" {
		return finding.Hidden("whether all servers know the pod by its address %s, %d do: %s", ip, len(l.dumped()), why), nil
	}
	return finding.Good("%s, known to %d of %d servers", ip, len(l.replicas), len(l.replicas)), nil
}

// owners is whether the pod is known by the address, and who else claims it: of several
// live pods, the only one that is not terminating has it.
func owners(pods []cluster.PodState, pod *corev1.Pod, ip netip.Addr) (known bool, others []string) {
	for _, p := range pods {
		if p.HostNetwork || p.Static || p.Ended || !slices.Contains(p.Addresses, ip) {
			continue
		}
		if p.Namespace == pod.Namespace && p.Name == pod.Name {
			known = true
		} else if !p.Terminating || pod.DeletionTimestamp != nil {
			others = append(others, "pod "+p.Namespace+"/"+p.Name)
		}
	}
	return known, others
}
