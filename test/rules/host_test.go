package rules

import (
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/iam4kube/iam4kube/internal/ip2service/host"
	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
	"github.com/iam4kube/iam4kube/test/netns"
)

func look(t *testing.T) *host.Host {
	t.Helper()
	h, err := host.Look()
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// A server on one of the host's addresses, or on one that no other host can have, does not
// see the pod's; a pod, routed or on a bridge, does.
func TestHostOwnsItsAddressesAndNotThoseOfPods(t *testing.T) {
	netns.AddPod(t, "10.244.0.2", "fd00:10:244::2")
	h := look(t)
	for address, want := range map[string]bool{
		"10.255.255.1": true, "fdff::1": true, // the gateway of pods
		"127.0.0.1": true, "::1": true, "127.9.9.9": true, "169.254.1.1": true, "fe80::1": true,
		"0.0.0.0": true, "::": true, "224.0.0.1": true, "255.255.255.255": true,
		"10.244.0.2": false, "fd00:10:244::2": false, "10.255.255.2": false, "203.0.113.9": false,
	} {
		if have := h.Owns(netip.MustParseAddr(address)); have != want {
			t.Errorf("Owns(%s) = %v", address, have)
		}
	}
	if all := h.Addresses(); !slices.IsSortedFunc(all, netip.Addr.Compare) || !slices.Contains(all, netip.MustParseAddr("10.255.255.1")) {
		t.Errorf("addresses %v", all)
	}
}

// An agent's address is one of the host's; the others of its kind are not.
func TestHostHasTheAddressOfAnAgent(t *testing.T) {
	inHost(t, []string{"link add agent type veth peer name other", "address add 169.254.170.23/32 dev agent", "address add fd00:ec2::23/128 dev agent nodad"}, func() {
		for address, want := range map[string]bool{"169.254.170.23": true, "fd00:ec2::23": true, "169.254.170.2": false} {
			if have := look(t).Has(netip.MustParseAddr(address)); have != want {
				t.Errorf("Has(%s) = %v", address, have)
			}
		}
	})
}

// inHost calls do in a namespace of its own with these links, given as arguments of ip.
func inHost(t *testing.T, links []string, do func()) {
	t.Helper()
	other := netns.AddPod(t)
	for _, link := range links {
		if output, err := other.Run(t.Context(), "ip", strings.Fields(link)...); err != nil {
			t.Fatalf("ip %s: %v: %s", link, err, output)
		}
	}
	if err := other.Do(func() error { do(); return nil }); err != nil {
		t.Fatal(err)
	}
}

// On a link with a peer, the far end's address is not the host's.
func TestHostDoesNotOwnThePeer(t *testing.T) {
	inHost(t, []string{"address add 10.5.5.1 peer 10.5.5.2/32 dev eth0"}, func() {
		h := look(t)
		if !h.Owns(netip.MustParseAddr("10.5.5.1")) || h.Owns(netip.MustParseAddr("10.5.5.2")) {
			t.Errorf("addresses %v, want that of this end alone", h.Addresses())
		}
	})
}

func TestInterfacesOfBPFDataPlanesAreSeen(t *testing.T) {
	for name, links := range map[string][]string{
		"":                       {"link add lxc1 type veth peer name cilium"},
		"cilium_host cilium_net": {"link add cilium_host type veth peer name cilium_net"},
		"ovn-k8s-mp0 ovs-system": {"link add ovs-system type veth peer name ovn-k8s-mp0"},
		"genev_sys_6081 ovn0":    {"link add ovn0 type veth peer name genev_sys_6081"},
		"antrea-gw0":             {"link add antrea-gw0 type veth peer name geneve0"},
		"bpfin.cali bpfout.cali": {"link add bpfin.cali type veth peer name bpfout.cali"},
	} {
		inHost(t, links, func() {
			beside := look(t).Beside()
			slices.Sort(beside)
			if have := strings.Join(beside, " "); have != name {
				t.Errorf("%v: %q", links, have)
			}
		})
	}
}

// The setting of all interfaces and that of one have to be on, and a new interface's is.
func TestSourceRoutesAreSeen(t *testing.T) {
	for _, c := range []struct {
		name string
		set  map[string]string
		want bool
	}{
		{"off", map[string]string{"all": "0", "eth0": "1"}, false},
		{"of one interface", map[string]string{"all": "1", "eth0": "1"}, true},
		{"of none", map[string]string{"all": "1", "eth0": "0"}, false},
		{"of loopback alone", map[string]string{"all": "1", "eth0": "0", "lo": "1"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			inHost(t, nil, func() {
				for name, value := range c.set {
					if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+name+"/accept_source_route", []byte(value), 0); err != nil {
						t.Fatal(err)
					}
				}
				if have := look(t).SourceRoutes(); have != c.want {
					t.Errorf("%v, want %v", have, c.want)
				}
			})
		})
	}
}

const bridgeSettings = "/proc/sys/net/bridge/"

// Case 13.
func TestBridgeOfPodsNeedsNetfilterOnIt(t *testing.T) {
	var (
		bridge = []string{"link add cni0 type bridge"}
		port   = []string{"link add port type veth peer name pod", "link set port master cni0"}
		ipv4   = []string{"address add 10.244.0.1/24 dev cni0", "address add fe80::1/64 dev cni0"} // the latter makes no gateway
		ipv6   = []string{"address add fd00:10:244::1/64 dev cni0"}
	)
	for name, c := range map[string]struct {
		links    []string
		settings map[string]string
		unserved map[routes.Family]bool
	}{
		"seen by netfilter": {
			slices.Concat(bridge, port, ipv4, ipv6), map[string]string{"bridge-nf-call-iptables": "1", "bridge-nf-call-ip6tables": "1"}, nil,
		},
		"not seen": {
			slices.Concat(bridge, port, ipv4, ipv6),
			map[string]string{"bridge-nf-call-iptables": "0", "bridge-nf-call-ip6tables": "0"},
			map[routes.Family]bool{routes.IPv4: true, routes.IPv6: true},
		},
		"not seen by IPv6": {
			slices.Concat(bridge, port, ipv4, ipv6),
			map[string]string{"bridge-nf-call-iptables": "1", "bridge-nf-call-ip6tables": "0"},
			map[routes.Family]bool{routes.IPv6: true},
		},
		"gateway of IPv4 alone": {
			slices.Concat(bridge, port, ipv4),
			map[string]string{"bridge-nf-call-iptables": "0", "bridge-nf-call-ip6tables": "0"},
			map[routes.Family]bool{routes.IPv4: true},
		},
		"not a gateway":   {slices.Concat(bridge, port), map[string]string{"bridge-nf-call-iptables": "0"}, nil},
		"without ports":   {slices.Concat(bridge, ipv4), map[string]string{"bridge-nf-call-iptables": "0"}, nil},
		"no bridge":       {nil, map[string]string{"bridge-nf-call-iptables": "0"}, nil},
		"no br_netfilter": {slices.Concat(bridge, port, ipv4), nil, map[routes.Family]bool{routes.IPv4: true}},
	} {
		t.Run(name, func(t *testing.T) {
			inHost(t, c.links, func() {
				if c.settings == nil {
					withoutBridgeSettings(t, func() { checkUnserved(t, c.unserved, "br_netfilter is not loaded") })
					return
				}
				for setting, value := range c.settings {
					if err := os.WriteFile(bridgeSettings+setting, []byte(value), 0); err != nil {
						t.Fatalf("the module br_netfilter has to be loaded (modprobe br_netfilter): %v", err)
					}
				}
				checkUnserved(t, c.unserved, "is 0")
			})
		})
	}
}

func checkUnserved(t *testing.T, want map[routes.Family]bool, because string) {
	t.Helper()
	h := look(t)
	for family, setting := range map[routes.Family]string{routes.IPv4: "bridge-nf-call-iptables", routes.IPv6: "bridge-nf-call-ip6tables"} {
		err := h.Unserved(family)
		if (err != nil) != want[family] {
			t.Errorf("%s: %v, want an error: %v", family, err, want[family])
		}
		if err == nil {
			continue
		}
		for _, part := range []string{"cni0", because, "sysctl -w net.bridge." + setting + "=1"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %v, want it to say %q", family, err, part)
			}
		}
	}
}

// withoutBridgeSettings calls do, in the network namespace of the caller, where the kernel
// looks as if it had no br_netfilter.
func withoutBridgeSettings(t *testing.T, do func()) {
	t.Helper()
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with its mounts
		if err := unix.Setns(int(here.Fd()), unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			return
		}
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			t.Error(err)
			return
		}
		if _, err := os.Stat(bridgeSettings); err == nil {
			if err := unix.Mount("none", bridgeSettings, "tmpfs", 0, ""); err != nil {
				t.Error(err)
				return
			}
		}
		do()
	}()
	<-done
}
