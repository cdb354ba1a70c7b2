package ebpf

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iam4kube/iam4kube/internal/ip2service/nftables"
	"github.com/iam4kube/iam4kube/test/docs"
	"github.com/iam4kube/iam4kube/test/netns"
)

// way is one to reach an address. try uses it, in the pod's network namespace, and says what
// came back. Where nothing can, it waits for a moment.
type way struct {
	name string
	led  bool // to an endpoint; else nobody gets it
	try  func(r *rig, to netip.AddrPort) (answer string, err error)
	// to is the address, if it is not that of the metadata service by IPv4.
	to netip.AddrPort
	// netfilter says that this way is caught by the rules alone.
	netfilter bool
}

var ways = []way{
	{name: "blocking connect", led: true, try: tcp(0, unix.Connect)},
	{name: "non-blocking connect", led: true, try: tcp(0, nonBlocking)},
	{name: "IPv6", led: true, to: metadata[1], try: tcp(0, unix.Connect)},
	{name: "IPv4-mapped address on an IPv6 socket", led: true, try: mapped},
	{name: "TCP Fast Open, sendto", led: true, try: tcp(0, fastOpen)},
	{name: "TCP Fast Open, TCP_FASTOPEN_CONNECT", led: true, try: tcp(0, func(fd int, to unix.Sockaddr) error {
		return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1), unix.Connect(fd, to))
	})},
	{name: "MPTCP", led: true, try: tcp(unix.IPPROTO_MPTCP, unix.Connect)},
	{name: "io_uring", led: true, try: tcp(0, uringConnect)},
	{name: "connect to another address before", led: true, try: reconnected},
	{name: "another TCP port", to: netip.MustParseAddrPort("169.254.169.254:8080"), try: tcp(0, unix.Connect)},
	{name: "UDP, connected", try: datagram(func(fd int, to unix.Sockaddr) error {
		if err := unix.Connect(fd, to); err != nil {
			return err
		}
		_, err := unix.Write(fd, []byte("?"))
		return err
	})},
	{name: "UDP, sendto", try: datagram(func(fd int, to unix.Sockaddr) error { return unix.Sendto(fd, []byte("?"), 0, to) })},
	{name: "UDP, sendmsg on an IPv6 socket, IPv4-mapped", try: mappedDatagram},
	{name: "UDP, sendto with MSG_MORE", try: datagram(func(fd int, to unix.Sockaddr) error {
		return errors.Join(unix.Sendto(fd, []byte("?"), unix.MSG_MORE, to), unix.Sendto(fd, []byte("!"), 0, to))
	})},
	{name: "UDP connected elsewhere, sendto", try: datagram(func(fd int, to unix.Sockaddr) error {
		return errors.Join(unix.Connect(fd, sockaddr(ends("10.244.1.2:9")[0])), unix.Sendto(fd, []byte("?"), 0, to))
	})},
	{name: "ping socket", try: ping(true)},
	{name: "ping socket, sendto", try: ping(false)},
	{name: "raw ICMP", try: raw(unix.IPPROTO_ICMP, func(netip.AddrPort) []byte { return echoRequest })},
	{name: "raw UDP", try: raw(unix.IPPROTO_UDP, func(to netip.AddrPort) []byte { return []byte{4, 0, 0, byte(to.Port()), 0, 9, 0, 0, '?'} })},
	{name: "raw TCP SYN", try: raw(unix.IPPROTO_TCP, func(to netip.AddrPort) []byte {
		return []byte{4, 0, 0, byte(to.Port()), 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 4, 0, 0, 0, 0, 0}
	})},
	{name: "UDP, connected before the programs", try: nil},
	{name: "TCP, connected before the programs", try: nil},
	{name: "a process in the pod's network namespace outside of the cgroups of pods", led: true, try: outside, netfilter: true},
	{name: "AF_PACKET", try: packetSocket, netfilter: true},
}

var echoRequest = []byte{8, 0, 0xf7, 0xfe, 0, 0, 0, 1}

// moment is how long is waited for an answer that must not come.
const moment = 200 * time.Millisecond

func limit(fd int) error {
	t := unix.NsecToTimeval(moment.Nanoseconds())
	return errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &t), unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &t))
}

// withSocket calls do with a socket, for which nothing takes longer than a moment.
func withSocket(family, kind, protocol int, do func(fd int) error) error {
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	if err := limit(fd); err != nil {
		return err
	}
	return do(fd)
}

const request = "GET / HTTP/1.0\r\n\r\n"

func ask(fd int) (answer string, err error) {
	if _, err := unix.Write(fd, []byte(request)); err != nil {
		return "", err
	}
	return read(fd)
}

func read(fd int) (answer string, err error) {
	buffer := make([]byte, 4096)
	n, err := unix.Read(fd, buffer)
	for errors.Is(err, unix.EINTR) { // by a signal of the runtime
		n, err = unix.Read(fd, buffer)
	}
	return string(buffer[:max(n, 0)]), err
}

// errAsked is that the request has been sent with connect.
var errAsked = errors.New("asked")

func tcp(protocol int, connect func(fd int, to unix.Sockaddr) error) func(*rig, netip.AddrPort) (string, error) {
	return func(_ *rig, to netip.AddrPort) (answer string, err error) {
		family := unix.AF_INET6
		if to.Addr().Is4() {
			family = unix.AF_INET
		}
		err = withSocket(family, unix.SOCK_STREAM, protocol, func(fd int) error {
			err := connect(fd, sockaddr(to))
			switch {
			case errors.Is(err, errAsked):
				answer, err = read(fd)
			case err == nil:
				answer, err = ask(fd)
			}
			return err
		})
		return answer, err
	}
}

func nonBlocking(fd int, to unix.Sockaddr) error {
	if err := unix.SetNonblock(fd, true); err != nil {
		return err
	}
	if err := unix.Connect(fd, to); !errors.Is(err, unix.EINPROGRESS) {
		return fmt.Errorf("at once: %w", err)
	}
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, int(moment.Milliseconds())); err != nil {
		return err
	}
	failed, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && failed != 0 {
		err = syscall.Errno(failed)
	}
	return errors.Join(err, unix.SetNonblock(fd, false))
}

func fastOpen(fd int, to unix.Sockaddr) error {
	if err := unix.Sendto(fd, []byte(request), unix.MSG_FASTOPEN, to); err != nil {
		return err
	}
	return errAsked
}

func mapped(_ *rig, to netip.AddrPort) (answer string, err error) {
	err = withSocket(unix.AF_INET6, unix.SOCK_STREAM, 0, func(fd int) error {
		err := unix.Connect(fd, &unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())})
		if err == nil {
			answer, err = ask(fd)
		}
		return err
	})
	return answer, err
}

// reconnected has its socket connected to somebody else in between: what is known of the
// socket must not hold for what it is connected to later.
func reconnected(r *rig, to netip.AddrPort) (answer string, err error) {
	err = withSocket(unix.AF_INET, unix.SOCK_STREAM, 0, func(fd int) error {
		for _, other := range []netip.AddrPort{r.other, to, r.other, to} {
			if err := unix.Connect(fd, sockaddr(other)); err != nil {
				return fmt.Errorf("to %s: %w", other, err)
			}
			if answer, err = ask(fd); err != nil {
				return fmt.Errorf("asking %s: %w", other, err)
			}
			unspecified := [16]byte{}
			if _, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), addressOf(&unspecified), 16); errno != 0 {
				return fmt.Errorf("disconnect: %w", errno)
			}
		}
		return nil
	})
	return answer, err
}

func datagram(send func(fd int, to unix.Sockaddr) error) func(*rig, netip.AddrPort) (string, error) {
	return func(_ *rig, to netip.AddrPort) (answer string, err error) {
		err = withSocket(unix.AF_INET, unix.SOCK_DGRAM, 0, func(fd int) error {
			err := send(fd, sockaddr(to))
			if err == nil {
				answer, err = read(fd)
			}
			return err
		})
		return answer, err
	}
}

func mappedDatagram(_ *rig, to netip.AddrPort) (answer string, err error) {
	err = withSocket(unix.AF_INET6, unix.SOCK_DGRAM, 0, func(fd int) error {
		err := unix.Sendmsg(fd, []byte("?"), nil, &unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())}, 0)
		if err == nil {
			answer, err = read(fd)
		}
		return err
	})
	return answer, err
}

func ping(connect bool) func(*rig, netip.AddrPort) (string, error) {
	return func(_ *rig, to netip.AddrPort) (answer string, err error) {
		if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 0"), 0); err != nil {
			return "", err
		}
		err = withSocket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP, func(fd int) (err error) {
			if connect {
				if err = unix.Connect(fd, sockaddr(to)); err == nil {
					_, err = unix.Write(fd, echoRequest)
				}
			} else {
				err = unix.Sendto(fd, echoRequest, 0, sockaddr(to))
			}
			if err == nil {
				answer, err = read(fd)
			}
			return err
		})
		return answer, err
	}
}

func raw(protocol int, packet func(to netip.AddrPort) []byte) func(*rig, netip.AddrPort) (string, error) {
	return func(_ *rig, to netip.AddrPort) (answer string, err error) {
		err = withSocket(unix.AF_INET, unix.SOCK_RAW, protocol, func(fd int) error {
			return unix.Sendto(fd, packet(to), 0, sockaddr(to))
		})
		if err == nil { // what answers is the host that rejects; that nobody got it is seen there
			err = errors.New("sent")
		}
		return "", err
	}
}

// outside is a process that shares the pod's network namespace and is in no pod's cgroup, as
// a virtual machine's or a sandboxed container's may be.
func outside(r *rig, to netip.AddrPort) (answer string, err error) {
	folder := netns.Kubepods() + "/../outside"
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return "", err
	}
	cgroup, err := os.Open(folder)
	if err != nil {
		return "", err
	}
	defer cgroup.Close()
	script := fmt.Sprintf("exec 3<>/dev/tcp/%s/%d && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3", to.Addr(), to.Port())
	command := exec.Command("bash", "-c", script)
	var output bytes.Buffer
	command.Stdout, command.Stderr = &output, &output
	command.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd())}
	if err := r.pod.Start(command); err != nil {
		return "", err
	}
	err = command.Wait()
	return output.String(), err
}

// packetSocket sends below IP: no cgroup sees that. It needs NET_RAW, as raw sockets do.
func packetSocket(r *rig, to netip.AddrPort) (string, error) {
	device, err := net.InterfaceByName("eth0")
	if err != nil {
		return "", err
	}
	source, destination := netip.MustParseAddr(podIPv4).As4(), to.Addr().As4()
	header := []byte{0x45, 0, 0, 28, 0, 1, 0, 0, 64, 1, 0, 0}
	header = append(append(header, source[:]...), destination[:]...)
	var sum uint32
	for i := 0; i < len(header); i += 2 {
		sum += uint32(header[i])<<8 | uint32(header[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	header[10], header[11] = byte(^sum>>8), byte(^sum)
	err = withSocket(unix.AF_PACKET, unix.SOCK_DGRAM, 0, func(fd int) error {
		at := &unix.SockaddrLinklayer{Protocol: 0x0008, Ifindex: device.Index, Halen: 6} // ETH_P_IP as it is sent
		copy(at.Addr[:], r.gateway)
		return unix.Sendto(fd, append(header, echoRequest...), 0, at)
	})
	if err == nil {
		err = errors.New("sent")
	}
	return "", err
}

// Each way leads to an endpoint or nowhere, by the rules and by the programs beside them. The
// names are those of the page.
func TestWaysToReachAnAddress(t *testing.T) {
	_, section, _ := strings.Cut(docs.Text(t, "routing.md"), "\n## Ways to reach an address\n")
	section, _, _ = strings.Cut(section, "\n## ")
	for _, w := range ways {
		if !strings.Contains(section, "\n| "+w.name+" | ") {
			t.Errorf("%q is not in the table of routing.md", w.name)
		}
	}
	if rows := strings.Count(section, "\n|") - 2; rows != len(ways) {
		t.Errorf("routing.md has %d ways, want %d", rows, len(ways))
	}
	for _, path := range []string{"nftables", "ebpf", "ebpf alone"} {
		t.Run(path, func(t *testing.T) { tryWays(t, path) })
	}
}

func tryWays(t *testing.T, path string) {
	t.Helper()
	r := newRig(t)
	device, err := net.InterfaceByName(r.pod.Device)
	if err != nil {
		t.Fatal(err)
	}
	r.gateway = device.HardwareAddr
	before := r.openBefore(t)
	want := routesTo(r.endpoints...)
	want.Bypassed = path == "ebpf alone"
	if path != "ebpf alone" {
		if _, err := (nftables.Kernel{}).Sync(want); err != nil {
			t.Fatal(err)
		}
	}
	if path != "nftables" {
		r.sync(t, want)
	}
	r.far.TakeLeaks(t)
	for _, w := range ways {
		if path == "ebpf alone" && w.netfilter {
			continue
		}
		t.Run(w.name, func(t *testing.T) {
			to := w.to
			if !to.IsValid() {
				to = metadata[0]
			}
			try := w.try
			if try == nil {
				try = func(*rig, netip.AddrPort) (string, error) { return ask(before[strings.Fields(w.name)[0]]) }
			}
			var answer string
			err := r.pod.Do(func() (err error) {
				answer, err = try(r, to)
				return err
			})
			led := led(answer, err) == nil
			if led != w.led || !led && (err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EAFNOSUPPORT)) {
				t.Errorf("%q, %v, want it led: %v", answer, err, w.led)
			}
			if leaks := r.far.TakeLeaks(t); leaks != 0 {
				t.Errorf("%d packets leaked", leaks)
			}
			t.Logf("%v", err)
		})
	}
}

// led is nil for an answer of an endpoint that saw the pod's own address.
func led(answer string, err error) error {
	if err == nil && !slices.ContainsFunc([]string{"a " + podIPv4, "b " + podIPv4, "a " + podIPv6, "b " + podIPv6}, func(s string) bool { return strings.HasSuffix(answer, s) }) {
		err = fmt.Errorf("answered: %q", answer)
	}
	return err
}

// openBefore has sockets that are connected while there are neither rules nor programs.
func (r *rig) openBefore(t *testing.T) map[string]int {
	t.Helper()
	sockets := map[string]int{}
	err := r.pod.Do(func() error {
		for name, kind := range map[string]int{"TCP,": unix.SOCK_STREAM, "UDP,": unix.SOCK_DGRAM} {
			fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			t.Cleanup(func() { unix.Close(fd) })
			if err := errors.Join(limit(fd), unix.Connect(fd, sockaddr(metadata[0]))); err != nil {
				return err
			}
			sockets[name] = fd
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return sockets
}
