package ebpf

import (
	"errors"
	"net/http"
	"net/netip"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/iam4kube/iam4kube/internal/ip2service/nftables"
	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/netns"
	"github.com/iam4kube/iam4kube/test/node"
)

// ClusterIPs, of a Service by each family and of one without endpoints. Nothing but Cilium knows
// them here.
var (
	services = ends("10.96.0.7:80", "[fd00:10:96::7]:80")
	empty    = ends("10.96.0.8:80")[0]
)

// withServices adds them.
func (c *cilium) withServices(t *testing.T, r *rig) *cilium {
	t.Helper()
	c.service(t, services[0], r.other)
	c.service(t, services[1], r.endpoints[2])
	c.service(t, empty)
	return c
}

// toService says what comes of connections from the pod to the ClusterIPs.
func (r *rig) toService(way func(*rig, netip.AddrPort) (string, error), to netip.AddrPort) error {
	return r.pod.Do(func() error {
		answer, err := way(r, to)
		if err == nil && !strings.HasSuffix(answer, map[bool]string{true: "other " + podIPv4, false: "a " + podIPv6}[to.Addr().Is4()]) {
			err = errors.New(answer)
		}
		return err
	})
}

// Beside Cilium's own socket load balancing, whoever was attached first, all connections to the
// metadata service are led, in each way that there is, and ClusterIPs are translated as ever, or
// unreachable where they have no endpoints.
func TestBesideCiliumsSocketLoadBalancing(t *testing.T) {
	for _, order := range []string{"before ours", "after ours"} {
		t.Run(order, func(t *testing.T) {
			r := newRig(t)
			theirs := loadCilium(t).withServices(t, r)
			if order == "before ours" {
				theirs.attach(t)
			}
			r.sync(t, routesTo(r.endpoints...))
			if order == "after ours" {
				theirs.attach(t)
			}
			if r.sync(t, routesTo(r.endpoints...)) {
				t.Error("there was something to change")
			}
			for _, at := range []ebpf.AttachType{ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect, ebpf.AttachCGroupUDP4Sendmsg, ebpf.AttachCGroupUDP6Sendmsg} {
				if run := effective(t, at); run != 2 {
					t.Errorf("%v: %d programs are run, want both", at, run)
				}
			}
			for _, w := range ways {
				if !w.led || w.netfilter {
					continue
				}
				to, service := metadata[0], services[0]
				if w.to.IsValid() {
					to, service = metadata[1], services[1]
				}
				t.Run(w.name, func(t *testing.T) {
					if err := r.pod.Do(func() error { return led(w.try(r, to)) }); err != nil {
						t.Errorf("metadata service: %v", err)
					}
					if err := r.toService(w.try, service); err != nil {
						t.Errorf("ClusterIP: %v", err)
					}
					if err := r.toService(w.try, empty); w.to == (netip.AddrPort{}) && !errors.Is(err, unix.EHOSTUNREACH) {
						t.Errorf("ClusterIP without endpoints: %v", err)
					}
				})
			}
		})
	}
}

// While either agent is started again and replaces its programs, no connection fails.
func TestCiliumAndOursAreReplacedUnderLoad(t *testing.T) {
	const times, connects = 50, 2000
	r := newRig(t)
	theirs := [2]*cilium{loadCilium(t).withServices(t, r), loadCilium(t).withServices(t, r)}
	theirs[0].attach(t)
	ours := [2]routes.Routes{routesTo(r.endpoints...), routesTo(r.endpoints...)}
	ours[1].New = r.endpoints[:1]
	r.sync(t, ours[0])
	var load errgroup.Group
	var done [2]atomic.Int64
	var replaced atomic.Int64
	for i, to := range []netip.AddrPort{metadata[0], services[0]} {
		load.Go(func() error {
			return r.pod.Do(func() error {
				for done[i].Load() < connects || replaced.Load() < times {
					// Cilium names the ClusterIP as the peer where the program is the one that led.
					if err := connectTo(to, [][]netip.AddrPort{r.endpoints, {r.other, to}}[i]); err != nil {
						return err
					}
					done[i].Add(1)
				}
				return nil
			})
		})
	}
	for i := 1; i <= times; i++ {
		if err := theirs[0].replace(theirs[i%2]); err != nil {
			t.Fatal(err)
		}
		r.sync(t, ours[i%2])
		replaced.Add(1)
	}
	if err := load.Wait(); err != nil {
		t.Error(err)
	}
	t.Logf("%d connections to the metadata service and %d to a ClusterIP, while both were replaced %d times", done[0].Load(), done[1].Load(), times)
}

// Where Cilium's program is attached so that no other one may be, as old releases did, ours is
// refused and switches nothing off. Where it came later, the kernel runs ours alone, which is
// said; without ours it is run again.
func TestCiliumAsTheOnlyOne(t *testing.T) {
	const said = "so that no other one may be"
	blocking := ways[0].try
	t.Run("before ours", func(t *testing.T) {
		r := newRig(t)
		attachAbove(t, loadCilium(t).withServices(t, r).Programs["cil_sock4_connect"], exclusive)
		want := routesTo(r.endpoints...)
		if _, err := r.kernel.Sync(want); err == nil || !strings.Contains(err.Error(), said) {
			t.Errorf("%v, want %q", err, said)
		}
		if _, err := (nftables.Kernel{}).Sync(want); err != nil {
			t.Fatal(err)
		}
		err := r.pod.Do(func() error { return led(blocking(r, metadata[0])) })
		if err := errors.Join(err, r.toService(blocking, services[0])); err != nil {
			t.Error(err)
		}
	})
	t.Run("after ours", func(t *testing.T) {
		r := newRig(t)
		want := routesTo(r.endpoints...)
		r.sync(t, want)
		attachAbove(t, loadCilium(t).withServices(t, r).Programs["cil_sock4_connect"], exclusive)
		if _, err := r.kernel.Sync(want); err == nil || !strings.Contains(err.Error(), said) {
			t.Errorf("%v, want %q", err, said)
		}
		if err := r.pod.Do(func() error { return led(blocking(r, metadata[0])) }); err != nil {
			t.Error(err)
		}
		if err := r.toService(blocking, services[0]); err == nil {
			t.Error("a ClusterIP is reached: what is said is not so")
		}
		if _, err := r.kernel.Remove(); err != nil {
			t.Fatal(err)
		}
		if err := r.toService(blocking, services[0]); err != nil {
			t.Errorf("without ours: %v", err)
		}
	})
}

// The rules of an injected pod lead to a ClusterIP, which Cilium's socket load balancing does not
// see: the pod does not start, and its init container says why. Where the node leads as well, the
// pod gets there by that.
func TestInPodBesideCiliumsSocketLoadBalancing(t *testing.T) {
	r := newRig(t)
	server := netns.AddPod(t, "10.244.1.9")
	listener, err := server.Listen("tcp", "10.244.1.9:8080")
	if err != nil {
		t.Fatal(err)
	}
	ready := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Server", "iam4kube")
		w.Header().Set("X-Iam4kube-Source-Ip", strings.Split(r.RemoteAddr, ":")[0])
		w.WriteHeader(http.StatusNoContent)
	})}
	go func() { _ = ready.Serve(listener) }() // until Close
	t.Cleanup(func() { ready.Close() })
	theirs := loadCilium(t)
	theirs.service(t, services[0], ends("10.244.1.9:8080")...)
	theirs.attach(t)
	program, err := node.Program(true)
	if err != nil {
		t.Fatal(err)
	}
	start := func() (output string, status int) {
		t.Helper()
		command := exec.CommandContext(t.Context(), program, "--mode", "pod", "--to", services[0].String(), "--probe-timeout", environment.AtMost(time.Second).String())
		var logs environment.Logs
		command.Stdout, command.Stderr = &logs, &logs
		if err := r.pod.Start(command); err != nil {
			t.Fatal(err)
		}
		_ = command.Wait() // the status says it
		return logs.String(), command.ProcessState.ExitCode()
	}
	const why = "the network plugin does not translate the Service's address for it (Cilium's full socket load balancing: set socketLB.hostNamespaceOnly=true)"
	if output, status := start(); status != 113 || !strings.Contains(output, why) {
		t.Errorf("status %d: %s", status, output)
	}
	r.sync(t, routesTo(ends("10.244.1.9:8080")...))
	if output, status := start(); status != 0 {
		t.Errorf("where the node leads: status %d: %s", status, output)
	}
}
