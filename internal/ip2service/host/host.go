// Package host looks at the network namespace that ip2service works in: which addresses
// are its own, and what there is in it that lets packets pass our rules by. It only
// looks; what follows from that is the caller's to say.
package host

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/jsimonetti/rtnetlink/v2"
	"github.com/mdlayher/netlink"

	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
)

// Host is what was seen.
type Host struct {
	addresses map[netip.Addr]bool
	// podBridges are bridges that pods are attached to and that have an address in this
	// family, which makes them the pods' gateway.
	podBridges map[routes.Family][]string
	beside     []string
	// sourceRoutes says whether packets are accepted that name the way of their answers.
	sourceRoutes bool
}

// Look looks.
func Look() (*Host, error) {
	conn, err := rtnetlink.Dial(&netlink.Config{})
	if err != nil {
		return nil, fmt.Errorf("rtnetlink: %w", err)
	}
	defer func() { _ = conn.Close() }()
	links, err := conn.Link.List()
	if err != nil {
		return nil, fmt.Errorf("rtnetlink: list interfaces: %w", err)
	}
	addresses, err := conn.Address.List()
	if err != nil {
		return nil, fmt.Errorf("rtnetlink: list addresses: %w", err)
	}
	h := &Host{addresses: map[netip.Addr]bool{}, podBridges: map[routes.Family][]string{}}
	bridges := podBridges(links)
	for _, a := range addresses {
		if a.Attributes == nil {
			continue
		}
		// Of a link with a peer Address is the far end's, if-addr(7).
		own := a.Attributes.Local
		if own == nil {
			own = a.Attributes.Address
		}
		ip, ok := netip.AddrFromSlice(own)
		if !ok {
			continue
		}
		ip = ip.Unmap()
		h.addresses[ip] = true
		family := routes.FamilyOf(ip)
		if name := bridges[a.Index]; name != "" && !ip.IsLinkLocalUnicast() && !slices.Contains(h.podBridges[family], name) {
			h.podBridges[family] = append(h.podBridges[family], name)
		}
	}
	sourceRoutes := acceptsSourceRoutes("all")
	for _, l := range links {
		if l.Attributes == nil {
			continue
		}
		if isBeside(l.Attributes.Name) {
			h.beside = append(h.beside, l.Attributes.Name)
		}
		// Of loopback, packets have not come from anywhere.
		h.sourceRoutes = h.sourceRoutes || sourceRoutes && l.Attributes.Name != "lo" && acceptsSourceRoutes(l.Attributes.Name)
	}
	return h, nil
}

// podBridges are the names, by index, of bridges with a veth port. A bridge without one
// has no pods: that of an idle Docker, or of virtual machines.
func podBridges(links []rtnetlink.LinkMessage) map[uint32]string {
	kind := func(l rtnetlink.LinkMessage) string {
		if l.Attributes == nil || l.Attributes.Info == nil {
			return ""
		}
		return l.Attributes.Info.Kind
	}
	occupied := map[uint32]bool{}
	for _, l := range links {
		if kind(l) == "veth" && l.Attributes.Master != nil {
			occupied[*l.Attributes.Master] = true
		}
	}
	bridges := map[uint32]string{}
	for _, l := range links {
		if kind(l) == "bridge" && occupied[l.Index] {
			bridges[l.Index] = l.Attributes.Name
		}
	}
	return bridges
}

// isBeside knows the interfaces of data paths that packets of pods may take past netfilter:
// of Cilium, of Calico with its eBPF data plane, and of plugins with Open vSwitch, whose flows
// translate, route and leave by a port without the host's IP layer (OVN-Kubernetes, Kube-OVN,
// Antrea; the tunnel is OVN's).
func isBeside(name string) bool {
	return strings.HasPrefix(name, "genev_sys_") || slices.Contains([]string{
		"cilium_host", "cilium_net", "bpfin.cali", "bpfout.cali",
		"ovs-system", "ovn-k8s-mp0", "ovn0", "antrea-gw0",
	}, name)
}

// Owns says whether the address is one of the host, or one that no other host can have.
func (h *Host) Owns(a netip.Addr) bool {
	return h.addresses[a] || !a.IsGlobalUnicast()
}

// Has says whether the address is one of the host's own.
func (h *Host) Has(a netip.Addr) bool { return h.addresses[a] }

// Unserved says why pods of this host cannot be served in the family, nil if nothing is
// known against it.
//
// On a bridge, an endpoint's answer to a pod on the same bridge does not come by the
// host's IP layer, so the translation is not undone and the pod waits for ever, unless
// the bridge lets netfilter see what it forwards.
func (h *Host) Unserved(family routes.Family) error {
	bridges := h.podBridges[family]
	if len(bridges) == 0 {
		return nil
	}
	setting := map[routes.Family]string{routes.IPv4: "bridge-nf-call-iptables", routes.IPv6: "bridge-nf-call-ip6tables"}[family]
	value, err := os.ReadFile("/proc/sys/net/bridge/" + setting)
	if err == nil && strings.TrimSpace(string(value)) != "0" {
		return nil
	}
	state := "is 0"
	if err != nil {
		state = "is not there, because the module br_netfilter is not loaded"
	}
	return fmt.Errorf("pods are attached to the bridge %s and net.bridge.%s %s, so connections of pods to a server on this node would hang: modprobe br_netfilter and sysctl -w net.bridge.%s=1",
		strings.Join(bridges, ", "), setting, state, setting)
}

// Beside are the names of interfaces which make it likely that packets pass netfilter by.
func (h *Host) Beside() []string { return h.beside }

// acceptsSourceRoutes reads the setting of IPv4, which has to be on for an interface and for
// all of them. IPv6 has had no such routes since Linux 2.6.21 (RFC 5095).
func acceptsSourceRoutes(name string) bool {
	value, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + name + "/accept_source_route")
	return err == nil && strings.TrimSpace(string(value)) != "0"
}

// SourceRoutes says whether the host accepts packets with a source route: their answers go
// where the sender wants, so that who can send with another's address gets them, too.
func (h *Host) SourceRoutes() bool { return h.sourceRoutes }

// Addresses are all addresses of the host.
func (h *Host) Addresses() []netip.Addr {
	return slices.SortedFunc(maps.Keys(h.addresses), netip.Addr.Compare)
}
