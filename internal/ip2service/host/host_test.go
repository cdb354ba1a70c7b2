package host

import (
	"maps"
	"testing"

	"github.com/jsimonetti/rtnetlink/v2"
)

func link(index uint32, name, kind string, master uint32) rtnetlink.LinkMessage {
	l := rtnetlink.LinkMessage{Index: index, Attributes: &rtnetlink.LinkAttributes{Name: name}}
	if kind != "" {
		l.Attributes.Info = &rtnetlink.LinkInfo{Kind: kind}
	}
	if master != 0 {
		l.Attributes.Master = &master
	}
	return l
}

func TestOnlyBridgesWithPodsCount(t *testing.T) {
	for name, c := range map[string]struct {
		links []rtnetlink.LinkMessage
		want  map[uint32]string
	}{
		"nothing":                        {nil, map[uint32]string{}},
		"pods on a bridge":               {[]rtnetlink.LinkMessage{link(2, "cni0", "bridge", 0), link(3, "veth1", "veth", 2), link(4, "veth2", "veth", 2)}, map[uint32]string{2: "cni0"}},
		"the port is listed first":       {[]rtnetlink.LinkMessage{link(3, "veth1", "veth", 7), link(7, "cni0", "bridge", 0)}, map[uint32]string{7: "cni0"}},
		"an idle Docker":                 {[]rtnetlink.LinkMessage{link(2, "docker0", "bridge", 0), link(3, "veth1", "veth", 0)}, map[uint32]string{}},
		"virtual machines on a bridge":   {[]rtnetlink.LinkMessage{link(2, "virbr0", "bridge", 0), link(3, "vnet0", "tun", 2)}, map[uint32]string{}},
		"a network card on a bridge":     {[]rtnetlink.LinkMessage{link(2, "br0", "bridge", 0), link(3, "eth0", "", 2)}, map[uint32]string{}},
		"a pod in a VRF":                 {[]rtnetlink.LinkMessage{link(2, "vrf0", "vrf", 0), link(3, "veth1", "veth", 2)}, map[uint32]string{}},
		"two bridges":                    {[]rtnetlink.LinkMessage{link(2, "cni0", "bridge", 0), link(3, "br1", "bridge", 0), link(4, "veth1", "veth", 3)}, map[uint32]string{3: "br1"}},
		"an interface without a message": {[]rtnetlink.LinkMessage{{Index: 2}}, map[uint32]string{}},
	} {
		if have := podBridges(c.links); !maps.Equal(have, c.want) {
			t.Errorf("%s: %v, want %v", name, have, c.want)
		}
	}
}

func TestInterfacesOfOtherDataPaths(t *testing.T) {
	for name, want := range map[string]bool{
		"cilium_host": true, "cilium_net": true, "bpfin.cali": true, "bpfout.cali": true,
		"ovs-system": true, "ovn-k8s-mp0": true, "ovn0": true, "antrea-gw0": true, "genev_sys_6081": true,
		// Others' Geneve tunnels, and what a plugin with Open vSwitch calls its pods.
		"geneve0": false, "genev": false, "ovs-vsctl": false, "antrea-egress0": false,
		// Cilium's tunnel and Calico's pods are there without BPF routing too.
		"cilium_vxlan": false, "cali1a2b3c": false, "lxc1a2b3c": false, "eth0": false, "": false,
	} {
		if isBeside(name) != want {
			t.Errorf("%q: %v", name, !want)
		}
	}
}
