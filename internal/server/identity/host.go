package identity

import (
	"iter"
	"net/netip"
	"unique"

	corev1 "k8s.io/api/core/v1"
)

// Host is the node of a pod as the pod tells of it. It is comparable, and one pointer: a
// hundred pods of a node share what is behind it.
type Host struct{ told unique.Handle[host] }

type host struct {
	name string
	// addresses end with the first that is not valid. A pod has no more: of status.hostIPs
	// the API server takes one of each family, and status.hostIP is another at worst.
	addresses [3]netip.Addr
}

// HostOf is the node of that name with these addresses, three at most.
func HostOf(name string, addresses ...netip.Addr) Host {
	h := host{name: name}
	copy(h.addresses[:], addresses)
	return Host{unique.Make(h)}
}

func hostOf(p *corev1.Pod) Host {
	var addresses []netip.Addr
	for _, ip := range p.Status.HostIPs {
		addresses = appendAddress(addresses, ip.IP)
	}
	return HostOf(p.Spec.NodeName, appendAddress(addresses, p.Status.HostIP)...)
}

// Name is spec.nodeName.
func (h Host) Name() string {
	if h == (Host{}) {
		return ""
	}
	return h.told.Value().name
}

// Addresses are status.hostIPs.
func (h Host) Addresses() iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		if h == (Host{}) {
			return
		}
		for _, a := range h.told.Value().addresses {
			if !a.IsValid() || !yield(a) {
				return
			}
		}
	}
}
