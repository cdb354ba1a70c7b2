package netns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// devicePrefix begins the name of each device that this package makes in the parent.
const devicePrefix = "pod"

var devices atomic.Int32

// gateways are the addresses of the parent's end of every pod's link, as the ptp CNI
// plug-in has them: the pod's default route goes there.
var gateways = map[bool]netip.Addr{
	true:  netip.MustParseAddr("10.255.255.1"),
	false: netip.MustParseAddr("fdff::1"),
}

// Pod is a network namespace with one link, eth0, to the namespace of the test. The
// parent routes to the pod's addresses; everything else the pod sends goes to the
// parent, which has no way out.
type Pod struct {
	// Device is the name of the parent's end of the link.
	Device string
	ns     *os.File
}

// AddPod makes a pod namespace with these addresses, at most one per family. It goes
// when the test ends. Pods need not be on one network; all share the gateway addresses.
func AddPod(t testing.TB, addresses ...string) *Pod {
	t.Helper()
	pod, err := NewPod(addresses...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The namespace goes some time after its last user; its link shall go now.
		if err := ip("link", "del", pod.Device); err != nil {
			t.Error(err)
		}
		pod.ns.Close()
	})
	return pod
}

// NewPod is AddPod for the life of the parent's namespace.
func NewPod(addresses ...string) (*Pod, error) {
	if err := Check(); err != nil {
		return nil, err
	}
	ns, err := newNamespace()
	if err != nil {
		return nil, err
	}
	pod := &Pod{Device: fmt.Sprint(devicePrefix, devices.Add(1)), ns: ns}
	parent := []string{
		fmt.Sprintf("link add %s type veth peer name eth0 netns /proc/%d/fd/%d", pod.Device, os.Getpid(), pod.ns.Fd()),
		fmt.Sprintf("link set %s up", pod.Device),
	}
	inside := []string{"link set lo up", "link set eth0 up"}
	for _, address := range addresses {
		ip, err := netip.ParseAddr(address)
		if err != nil {
			return nil, err
		}
		gateway := gateways[ip.Is4()]
		host, atOnce := fmt.Sprint("/", ip.BitLen()), ""
		if ip.Is6() {
			atOnce = " nodad" // noDAD alone makes it usable soon
		}
		parent = append(parent,
			fmt.Sprintf("address add %s%s dev %s%s", gateway, host, pod.Device, atOnce),
			fmt.Sprintf("route add %s%s dev %s", ip, host, pod.Device))
		inside = append(inside,
			fmt.Sprintf("address add %s%s dev eth0%s", ip, host, atOnce),
			fmt.Sprintf("route add %s%s dev eth0", gateway, host),
			fmt.Sprintf("route add default via %s dev eth0", gateway))
	}
	if err := ipBatch(parent); err != nil {
		return nil, err
	}
	if err := pod.Do(func() error { return ipBatch(inside) }); err != nil {
		return nil, err
	}
	// What is sent before all this is lost, and TCP sends it again only after a second.
	up := []string{"-oneline", "link", "show", "dev"}
	err = errors.Join(waitFor(" state UP ", append(up, pod.Device)...), pod.Do(func() error { return waitFor(" state UP ", append(up, "eth0")...) }))
	for _, address := range addresses {
		if ip := netip.MustParseAddr(address); ip.Is6() {
			local := []string{"-6", "route", "show", "table", "local", "dev"}
			err = errors.Join(err, waitFor("local "+gateways[false].String()+" ", append(local, pod.Device)...),
				pod.Do(func() error { return waitFor("local "+ip.String()+" ", append(local, "eth0")...) }))
		}
	}
	return pod, err
}

// waitFor waits until the command ip shows what the kernel does some time after it was
// told to: it notices a carrier within a second, and makes an IPv6 address its own a
// little after it was added.
func waitFor(part string, show ...string) error {
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for timeout := time.After(10 * time.Second); ; {
		output, err := exec.Command("ip", show...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ip %q: %w: %s", show, err, output)
		}
		if strings.Contains(string(output), part) {
			return nil
		}
		select {
		case <-ticker.C:
		case <-timeout:
			return fmt.Errorf("ip %q does not show %q: %s", show, part, output)
		}
	}
}

func ipBatch(lines []string) error {
	ip := exec.Command("ip", "-batch", "-")
	ip.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	if output, err := ip.CombinedOutput(); err != nil {
		return fmt.Errorf("ip -batch: %w: %s\n%s", err, output, strings.Join(lines, "\n"))
	}
	return nil
}

// newNamespace makes a network namespace that lives as long as the file is open.
func newNamespace() (*os.File, error) {
	var ns *os.File
	err := inNamespace(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() (err error) {
		if err := sysctl(noDAD); err != nil {
			return err
		}
		ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("making a network namespace: %w", err)
	}
	return ns, nil
}

// inNamespace calls do on a thread that enter has moved into another namespace, and
// moves it back.
func inNamespace(enter, do func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close()
	if err := enter(); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer func() {
		if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
			panic(fmt.Sprint("netns: cannot return to the namespace of the test: ", err))
		}
		runtime.UnlockOSThread()
	}()
	return do()
}

// Do calls do in the pod's namespace: sockets that it makes and programs that it starts
// belong there, on the calling goroutine only.
func (p *Pod) Do(do func() error) error {
	return inNamespace(func() error { return unix.Setns(int(p.ns.Fd()), unix.CLONE_NEWNET) }, do)
}

// Start starts a command in the pod, which the caller ends and waits for; the kernel
// ends it with the test process.
func (p *Pod) Start(command *exec.Cmd) error {
	if command.SysProcAttr == nil {
		command.SysProcAttr = &syscall.SysProcAttr{}
	}
	// This follows the thread, which is why inNamespace gives none up.
	command.SysProcAttr.Pdeathsig = syscall.SIGKILL
	return p.Do(command.Start)
}

// Run runs a program in the pod and returns what it printed.
func (p *Pod) Run(ctx context.Context, name string, args ...string) (output []byte, err error) {
	err = p.Do(func() error {
		output, err = exec.CommandContext(ctx, name, args...).CombinedOutput()
		return err
	})
	return output, err
}

// DialContext connects from the pod. The address must be numeric.
func (p *Pod) DialContext(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = p.Do(func() error {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens in the pod. The address must be numeric.
func (p *Pod) Listen(network, address string) (listener net.Listener, err error) {
	err = p.Do(func() error {
		listener, err = net.Listen(network, address)
		return err
	})
	return listener, err
}

// Forward makes what listens on a TCP address of the test's own namespace, such as
// 127.0.0.1:6443, answer at the same address in the pod, until the test ends.
func (p *Pod) Forward(t testing.TB, address string) {
	t.Helper()
	listener, err := p.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			inside, err := listener.Accept()
			if err != nil {
				return // closed
			}
			go relay(inside, address)
		}
	}()
}

// relay copies until either side ends, which ends the other.
func relay(inside net.Conn, address string) {
	defer inside.Close()
	outside, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer outside.Close()
	go func() {
		_, _ = io.Copy(outside, inside) // an error is an end
		outside.Close()
	}()
	_, _ = io.Copy(inside, outside)
}

// HTTPClient is a client whose connections come from the pod. It uses no proxy.
func (p *Pod) HTTPClient() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: p.DialContext}}
}
