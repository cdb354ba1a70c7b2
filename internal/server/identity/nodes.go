package identity

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Node is what is kept of a Kubernetes Node: its well-known topology labels,
// https://kubernetes.io/docs/reference/labels-annotations-taints/
type Node struct {
	Name, Zone, Region string
}

func keepNode(n *metav1.PartialObjectMetadata) *Node {
	return &Node{Name: n.Name, Zone: shared(n.Labels[corev1.LabelTopologyZone]), Region: shared(n.Labels[corev1.LabelTopologyRegion])}
}

// NodeOf returns the node that the pod runs on; its labels are empty if it is not
// known.
func (x *Index) NodeOf(p *Pod) Node {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.nodes[p.Node]
}
