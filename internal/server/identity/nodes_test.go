package identity

import (
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func node(name string, cidrs ...string) *Node {
	return keepNode(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDRs: cidrs}})
}

func onNode(name string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.NodeName = name }
}

// A node says what addresses its pods have, and what its own are. Where nodes have ranges,
// it cannot take what is in another's.
func TestNodesThatLie(t *testing.T) {
	const address = "10.1.0.5" // of the honest node's range
	honest, liar := node("honest", "10.1.0.0/24", "fd00:1::/64"), node("liar", "10.2.0.0/24", "fd00:2::/64")
	victim, thief := pod("victim", address, onNode("honest")), pod("thief", address, onNode("liar"))
	for _, tc := range []struct {
		name  string
		nodes []*Node
		pods  []*corev1.Pod
		want  string
	}{
		{"the victim alone", []*Node{honest, liar}, []*corev1.Pod{victim}, "victim"},
		{"both", []*Node{honest, liar}, []*corev1.Pod{victim, thief}, "victim"},
		{"the victim ends", []*Node{honest, liar}, []*corev1.Pod{with(victim, terminating), thief}, "single-pod"},
		{"the thief ends", []*Node{honest, liar}, []*corev1.Pod{victim, with(thief, terminating)}, "victim"},
		{"both end", []*Node{honest, liar}, []*corev1.Pod{with(victim, terminating), with(thief, terminating)}, "single-pod"},
		{"two thieves", []*Node{honest, liar}, []*corev1.Pod{victim, thief, pod("other", address, onNode("liar"))}, "victim"},
		{"two of the honest node", []*Node{honest, liar}, []*corev1.Pod{victim, pod("other", address, onNode("honest")), thief}, "single-pod"},
		// Nobody says that the address is not the node's without a range.
		{"no range of the liar's", []*Node{honest, node("liar")}, []*corev1.Pod{victim, thief}, "single-pod"},
		{"no range of that family", []*Node{honest, node("liar", "fd00:2::/64")}, []*corev1.Pod{victim, thief}, "single-pod"},
		{"no ranges", []*Node{node("honest"), node("liar")}, []*corev1.Pod{victim, thief}, "single-pod"},
		{"no nodes", nil, []*corev1.Pod{victim, thief}, "single-pod"},
		{"a range that overlaps", []*Node{honest, node("liar", "10.1.0.0/16")}, []*corev1.Pod{victim, thief}, "single-pod"},
		// Addresses that have nothing to do with the ranges, as with Calico's own IPAM.
		{"from elsewhere, one", []*Node{honest, liar}, []*corev1.Pod{thief}, "thief"},
		{"from elsewhere, two", []*Node{node("honest", "10.3.0.0/24"), liar}, []*corev1.Pod{victim, thief}, "single-pod"},
		{"from elsewhere, one ends", []*Node{node("honest", "10.3.0.0/24"), liar}, []*corev1.Pod{with(victim, terminating), thief}, "thief"},

		{"a node's address", []*Node{honest, liar}, []*corev1.Pod{victim, pod("x", "10.2.0.1", onNode("liar"), onHost(address))}, "victim"},
		{"a node's, of its own range", []*Node{honest, liar}, []*corev1.Pod{victim, pod("x", "10.1.0.1", onNode("honest"), onHost(address))}, "victim"},
		{"a node's, nobody is there", []*Node{honest, liar}, []*corev1.Pod{pod("x", "10.2.0.1", onNode("liar"), onHost(address))}, "pod"},
		{"a node's, without a range", []*Node{honest, node("liar")}, []*corev1.Pod{victim, pod("x", "10.2.0.1", onNode("liar"), onHost(address))}, "node"},
		{"a node's, no ranges", []*Node{node("honest"), node("liar")}, []*corev1.Pod{victim, pod("x", "10.2.0.1", onNode("liar"), onHost(address))}, "node"},
		{"a node's, out of the ranges", []*Node{node("honest", "10.3.0.0/24"), liar}, []*corev1.Pod{victim, pod("x", "10.2.0.1", onNode("liar"), onHost(address))}, "node"},
	} {
		// Whatever comes first.
		for _, order := range []string{"nodes first", "pods first", "listed", "changed"} {
			t.Run(fmt.Sprint(tc.name, " ", order), func(t *testing.T) {
				w := newWorld()
				nodes := nodeSink{w.Index}
				pods := slices.Clone(tc.pods)
				if order == "pods first" || order == "listed" {
					slices.Reverse(pods)
					w.listPods(pods...)
				}
				switch order {
				case "listed":
					nodes.Replace([]*Node{node("before", "10.1.0.0/16")})
					nodes.Replace(tc.nodes)
				case "changed":
					for _, n := range tc.nodes {
						nodes.Set(node(n.Name, "0.0.0.0/0", "::/0"))
					}
					nodes.Set(node("before", "10.1.0.0/16"))
					nodes.Delete(node("before"))
					fallthrough
				default:
					for _, n := range tc.nodes {
						nodes.Set(n)
					}
				}
				w.listPods(pods...)
				if got := w.who(address); got != tc.want {
					t.Errorf("the address is of %q, want %q", got, tc.want)
				}
				nodes.Replace(nil)
				if len(w.podCIDRs) > 0 {
					t.Errorf("ranges are left: %v", w.podCIDRs)
				}
			})
		}
	}
}

// A pod that terminates may outlive its node, whose address another pod can have by then.
// Before all nodes are known nobody is gone, and one that does not terminate has a node that is
// not known yet.
func TestAddressOfANodeThatIsGone(t *testing.T) {
	const address = "10.0.0.9"
	outlives := pod("outlives", "10.0.0.1", onNode("old"), onHost(address), terminating)
	heir := pod("heir", address, onNode("new"))
	w := newWorld()
	nodes := nodeSink{w.Index}
	w.listPods(heir, outlives)
	if got := w.who(address); got != "node" {
		t.Errorf("before the nodes are listed: %q", got)
	}
	nodes.Replace([]*Node{node("old"), node("new")})
	if got := w.who(address); got != "node" {
		t.Errorf("while the node exists: %q", got)
	}
	nodes.Delete(node("old"))
	if got := w.who(address); got != "heir" {
		t.Errorf("after the node: %q", got)
	}
	nodes.Set(node("old"))
	if got := w.who(address); got != "node" {
		t.Errorf("the node is back: %q", got)
	}
	nodes.Replace([]*Node{node("new")})
	if got := w.who(address); got != "heir" {
		t.Errorf("not in the next list: %q", got)
	}
	w.setPod(pod("other", "10.0.0.2", onNode("new"), onHost(address)))
	if got := w.who(address); got != "node" {
		t.Errorf("another node has it now: %q", got)
	}
	w.deletePod(pod("other", ""))
	w.setPod(pod("unbound", "10.0.0.3", onNode(""), onHost(address)))
	if got := w.who(address); got != "node" {
		t.Errorf("a pod that names no node: %q", got)
	}
}
