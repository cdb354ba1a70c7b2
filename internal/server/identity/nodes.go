package identity

import (
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
)

// Node is what is kept of a Kubernetes Node: its well-known topology labels,
// https://kubernetes.io/docs/reference/labels-annotations-taints/, and the ranges of its
// pods' addresses. It is comparable.
type Node struct {
	Name string
	// Zone and Region are AWS's, empty on a node of another provider.
	Zone, Region string
	// PodCIDRs are spec.podCIDRs, at most one of each family; the others are zero.
	PodCIDRs [2]netip.Prefix
}

func keepNode(n *corev1.Node) *Node {
	kept := &Node{Name: n.Name}
	if mayBeAtAWS(n.Spec.ProviderID) {
		kept.Zone, kept.Region = shared(n.Labels[corev1.LabelTopologyZone]), shared(n.Labels[corev1.LabelTopologyRegion])
	}
	for i, cidr := range n.Spec.PodCIDRs {
		if prefix, err := netip.ParsePrefix(cidr); err == nil && i < len(kept.PodCIDRs) {
			kept.PodCIDRs[i] = prefix.Masked()
		}
	}
	return kept
}

// mayBeAtAWS says whether the labels can name a region of AWS. Another provider's controller
// puts its own names there, such as fsn1, with which no AWS client can do anything. A node
// without a provider was labelled by hand. EKS has eks-hybrid for nodes off AWS.
func mayBeAtAWS(providerID string) bool {
	provider, _, _ := strings.Cut(providerID, "://")
	return provider == "" || provider == "aws" || provider == "eks-hybrid"
}

// NodeOf returns the node that the pod runs on; its labels are empty if it is not
// known.
func (x *Index) NodeOf(p *Pod) Node {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.nodes[p.Host.Name()]
}

// podCIDR is the node's range in the address's family, the zero Prefix if it has none.
func (n Node) podCIDR(a netip.Addr) netip.Prefix {
	for _, p := range n.PodCIDRs {
		if p.IsValid() && p.Addr().Is4() == a.Is4() {
			return p
		}
	}
	return netip.Prefix{}
}

// isOwn says that the address is one of the pod's node's range.
func (x *Index) isOwn(p *Pod, a netip.Addr) bool {
	return x.nodes[p.Host.Name()].podCIDR(a).Contains(a)
}

// isForeign says that the pod's node has a range, and the address is not in it. Where
// addresses are given out without regard to spec.podCIDRs, that alone is nothing wrong.
func (x *Index) isForeign(p *Pod, a netip.Addr) bool {
	cidr := x.nodes[p.Host.Name()].podCIDR(a)
	return cidr.IsValid() && !cidr.Contains(a)
}

// owner picks the pod that an address belongs to: the only one, or the only one that is
// not terminating. What a pod's addresses are is its node's word, and a node may lie. So
// among several a pod within its own node's range stands before those of nodes that have
// another range; and while one terminates there, nobody from elsewhere takes its place.
// It needs mu.
func (x *Index) owner(a netip.Addr, pods []*Pod) (*Pod, diagnosis.Piece) {
	switch len(pods) {
	case 0:
		return nil, diagnosis.Pod
	case 1:
		return pods[0], ""
	}
	var live, own *Pod
	var lives, owns, foreigners int
	ownEnds := false
	for _, p := range pods {
		isOwn, isForeign := x.isOwn(p, a), x.isForeign(p, a)
		if p.Terminating {
			ownEnds = ownEnds || isOwn
			continue
		}
		live = p
		lives++
		if isOwn {
			own = p
			owns++
		}
		if isForeign {
			foreigners++
		}
	}
	switch {
	case lives == 1 && (!ownEnds || foreigners != 1):
		return live, ""
	case owns == 1 && foreigners == lives-1:
		return own, ""
	}
	return nil, diagnosis.SinglePod
}

// hostPods are how many pods name an address as their node's.
type hostPods struct{ live, terminating int }

func (h hostPods) plus(p *Pod, n int) hostPods {
	if p.Terminating {
		h.terminating += n
	} else {
		h.live += n
	}
	return h
}

// isNodeAddress says whether pods name the address as their node's. Of a node that is not
// there, once the nodes are listed, those that terminate do not count: they outlive it by the
// time that it takes to end them, and another pod may have its address by then. The word of a
// node that has a range counts for nothing about addresses in any node's range: those are
// pods', and it would take them from other nodes' pods. It needs mu.
func (x *Index) isNodeAddress(a netip.Addr) bool {
	names := x.hosts[a]
	if len(names) == 0 {
		return false
	}
	podAddress := x.inPodCIDR(a)
	for name, pods := range names {
		node, exists := x.nodes[name]
		gone := !exists && x.nodesListed && pods.live == 0
		if !gone && (!podAddress || !node.podCIDR(a).IsValid()) {
			return true
		}
	}
	return false
}

// inPodCIDR says whether the address is in the range of any node. It needs mu.
func (x *Index) inPodCIDR(a netip.Addr) bool {
	for bits := range a.BitLen() + 1 {
		if prefix, err := a.Prefix(bits); err == nil && x.podCIDRs[prefix] > 0 {
			return true
		}
	}
	return false
}

// setNode files a node, in place of its earlier state. It needs mu.
func (x *Index) setNode(n Node) {
	x.removeNode(n.Name)
	x.nodes[n.Name] = n
	for _, prefix := range n.PodCIDRs {
		if prefix.IsValid() {
			x.podCIDRs[prefix]++
		}
	}
}

// removeNode needs mu, like setNode.
func (x *Index) removeNode(name string) {
	for _, prefix := range x.nodes[name].PodCIDRs {
		if x.podCIDRs[prefix]--; x.podCIDRs[prefix] <= 0 {
			delete(x.podCIDRs, prefix)
		}
	}
	delete(x.nodes, name)
}
