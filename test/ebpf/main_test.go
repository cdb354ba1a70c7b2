// Package ebpf tests what only the data path through eBPF has: how a process can reach an
// address without netfilter seeing it, and what becomes of programs, pins and cgroups that
// others change. What both data paths promise is tested, for both, in test/routing. There is
// no API server here.
package ebpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/iam4kube/iam4kube/internal/ip2service/bpf"
	"github.com/iam4kube/iam4kube/internal/ip2service/nftables"
	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
	"github.com/iam4kube/iam4kube/test/netns"
	"github.com/iam4kube/iam4kube/test/node"
	"github.com/iam4kube/iam4kube/test/socketlb"
)

func TestMain(m *testing.M) {
	if netns.Check() != nil { // still where modules can be fetched
		_, err := node.Program(true)
		_, cilium := socketlb.Object()
		if err := errors.Join(err, cilium); err != nil {
			fmt.Fprintln(os.Stderr, "ebpf:", err)
			os.Exit(1)
		}
	}
	netns.MainInPods(m, nil)
}

// pins is the folder of --bpf-dir.
const pins = "/sys/fs/bpf/iam4kube"

const podIPv4, podIPv6 = "10.244.0.2", "fd00:10:244::2"

func ends(all ...string) (parsed []netip.AddrPort) {
	for _, a := range all {
		parsed = append(parsed, netip.MustParseAddrPort(a))
	}
	return parsed
}

// metadata are the addresses that are intercepted.
var metadata = ends("169.254.169.254:80", "[fd00:ec2::254]:80")

// routesTo lead to these endpoints.
func routesTo(endpoints ...netip.AddrPort) routes.Routes {
	return routes.Routes{Hooks: routes.Node, Intercept: metadata, New: endpoints, Live: endpoints}
}

// rig is a node with a pod, two endpoints, and the metadata service of its machine.
type rig struct {
	far       *netns.FarSide
	pod       *netns.Pod
	a, b      *node.Endpoint
	other     netip.AddrPort // of a pod that is no endpoint
	endpoints []netip.AddrPort
	kernel    *bpf.Kernel
	gateway   net.HardwareAddr // of the pod
}

func newRig(t testing.TB) *rig {
	t.Helper()
	far := netns.NewFarSide(t)
	// What connections that were led, or cut, still send when nothing leads or cuts them any more.
	// Leaks are looked for before that, below.
	t.Cleanup(func() { far.TakeLeaks(t) })
	r := &rig{far: far, pod: netns.AddPod(t, podIPv4, podIPv6), kernel: bpf.New(pins)}
	r.a = node.AddEndpoint(t, "a", "10.244.1.2", "fd00:10:244:1::2")
	r.b = node.AddEndpoint(t, "b", "10.244.1.3", "fd00:10:244:1::3")
	node.AddEndpoint(t, "other", "10.244.1.4")
	r.other = ends("10.244.1.4:8080")[0]
	r.endpoints = ends("10.244.1.2:8080", "10.244.1.3:8080", "[fd00:10:244:1::2]:8080", "[fd00:10:244:1::3]:8080")
	t.Cleanup(func() {
		if leaks := r.far.TakeLeaks(t); leaks != 0 {
			t.Errorf("%d packets leaked", leaks)
		}
		if _, err := r.kernel.Remove(); err != nil {
			t.Error(err)
		}
		if _, err := (nftables.Kernel{}).Remove(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// sync brings routes in by the programs.
func (r *rig) sync(t testing.TB, want routes.Routes) (changed bool) {
	t.Helper()
	changed, err := r.kernel.Sync(want)
	if err != nil {
		t.Fatal(err)
	}
	return changed
}
