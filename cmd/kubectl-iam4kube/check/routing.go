package check

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"github.com/iam4kube/iam4kube/cmd/kubectl-iam4kube/cluster"
	"github.com/iam4kube/iam4kube/cmd/kubectl-iam4kube/finding"
)

func (i *installation) routing(context.Context) finding.Finding {
	switch {
	case i.daemonsErr != nil:
		return unseen("the DaemonSet "+cluster.IP2Service, i.daemonsErr)
	case i.daemons == nil && (i.hasWebhook() || i.injection.policy != nil || i.webhookErr != nil || i.injection.err() != nil):
		return finding.Good("not node-wide: pods are injected")
	case i.daemons == nil:
		return finding.NoRouting.Is("there is neither a DaemonSet %s/%s nor a webhook or a policy that injects: no pod is led to the servers", i.Namespace, cluster.IP2Service)
	}
	return finding.Good("%d of %d pods are ready", i.daemons.Status.NumberReady, i.daemons.Status.DesiredNumberScheduled)
}

// notReadyTaint is what a node has until its ip2service has taken it off.
const notReadyTaint = "iam4kube.io/not-ready"

// nodes looks for one that is meant to route, by the DaemonSet's own words, and does not.
func (i *installation) nodes(ctx context.Context) finding.Finding {
	if i.daemons == nil {
		return finding.Finding{}
	}
	nodes, err := i.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return unseen("the nodes", err)
	}
	pods, err := i.PodsOf(ctx, cluster.IP2Service, "")
	if err != nil {
		return unseen("the pods of "+cluster.IP2Service, err)
	}
	wanted := nodeaffinity.GetRequiredNodeAffinity(&corev1.Pod{Spec: i.daemons.Spec.Template.Spec})
	routed, others := 0, 0
	for n := range nodes.Items {
		node := &nodes.Items[n]
		if match, err := wanted.Match(node); err != nil || !match {
			others++
			continue
		}
		at := slices.IndexFunc(pods, func(p corev1.Pod) bool { return p.Spec.NodeName == node.Name })
		switch {
		case at < 0:
			return finding.NotRouted.Is("no pod of %s is on node %s", cluster.IP2Service, node.Name)
		case !cluster.Ready(&pods[at]):
			return finding.NotRouted.Is("%s on node %s is not ready: %s", pods[at].Name, node.Name, i.why(ctx, &pods[at]))
		case slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Key == notReadyTaint }):
			return finding.Tainted.Is("node %s still has the taint %s", node.Name, notReadyTaint)
		}
		routed++
	}
	return finding.Good("%d route, %d are not meant to", routed, others)
}

// why is what a pod that is not ready says, or the kubelet of it.
func (i *installation) why(ctx context.Context, pod *corev1.Pod) string {
	if pod.Status.Phase == corev1.PodRunning {
		if _, notReady, err := i.Aux(ctx, pod); err == nil && notReady != "" {
			return notReady
		}
	}
	return cluster.State(pod)
}
