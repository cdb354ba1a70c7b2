package ebpf

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/iam4kube/iam4kube/internal/ip2service/nftables"
	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/netns"
	"github.com/iam4kube/iam4kube/test/node"
)

// hostRouting forwards packets of IPv4 at the host's end of each link, as network plugins do
// that call it BPF host routing: they go past netfilter.
func (r *rig) hostRouting(t testing.TB) {
	t.Helper()
	const ethernet, destination = 14, 16 // RFC 894, RFC 791
	index := func(device string) int32 {
		i, err := net.InterfaceByName(device)
		if err != nil {
			t.Fatal(err)
		}
		return int32(i.Index)
	}
	ways := map[string]*netns.Pod{podIPv4: r.pod, r.a.Addresses[0]: r.a.Pod, r.b.Addresses[0]: r.b.Pod, "169.254.169.254": r.far.Pod}
	ins := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.Mov.Imm(asm.R2, ethernet+destination), asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, -4), asm.Mov.Imm(asm.R4, 4), asm.FnSkbLoadBytes.Call(),
		asm.JNE.Imm(asm.R0, 0, "stack"),
	}
	label := ""
	for address, pod := range ways {
		next := "not " + address
		a := netip.MustParseAddr(address).As4()
		load := asm.LoadMem(asm.R1, asm.RFP, -4, asm.Word)
		if label != "" {
			load = load.WithSymbol(label)
		}
		ins = append(ins, load, asm.JNE.Imm32(asm.R1, int32(binary.NativeEndian.Uint32(a[:])), next),
			asm.Mov.Imm(asm.R1, index(pod.Device)), asm.Mov.Imm(asm.R2, 0), asm.Mov.Imm(asm.R3, 0), asm.Mov.Imm(asm.R4, 0), asm.FnRedirectNeigh.Call(), asm.Return())
		label = next
	}
	ins = append(ins, asm.Mov.Imm(asm.R0, -1).WithSymbol(label), asm.Return(), // TCX_NEXT
		asm.Mov.Imm(asm.R0, -1).WithSymbol("stack"), asm.Return())
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "hostroute", Type: ebpf.SchedCLS, AttachType: ebpf.AttachTCXIngress, Instructions: ins, License: "GPL"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	for _, pod := range ways {
		l, err := link.AttachTCX(link.TCXOptions{Interface: int(index(pod.Device)), Program: program, Attach: ebpf.AttachTCXIngress})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
	}
}

// With BPF host routing the rules see nothing, which this test says so that nobody has to
// believe it, and the programs lead all the same.
func TestHostRoutingPassesNetfilterByAndNotThePrograms(t *testing.T) {
	r := newRig(t)
	want := routesTo(r.endpoints...)
	if _, err := (nftables.Kernel{}).Sync(want); err != nil {
		t.Fatal(err)
	}
	if answer, err := node.Ask(t, r.pod, "169.254.169.254"); err != nil || answer.Source != podIPv4 {
		t.Fatalf("without host routing: %+v, %v", answer, err)
	}
	r.hostRouting(t)
	older, err := node.Connect(t, r.pod, "169.254.169.254")
	if err != nil {
		t.Fatal(err)
	}
	defer older.Close()
	if answer, err := older.Ask(); err != nil || answer.Name != netns.NodeRole || r.far.TakeLeaks(t) == 0 {
		t.Fatalf("%+v, %v: want the rules to be passed by", answer, err)
	}
	r.sync(t, want)
	r.far.TakeLeaks(t) // what the older connection was sending
	if err := older.SetDeadline(soon()); err != nil {
		t.Fatal(err)
	}
	if answer, err := older.Ask(); err == nil {
		t.Errorf("a connection from before the programs: %+v", answer)
	}
	if answer, err := node.Ask(t, r.pod, "169.254.169.254"); err != nil || answer.Source != podIPv4 || answer.Name == netns.NodeRole {
		t.Errorf("%+v, %v", answer, err)
	}
	if leaks := r.far.TakeLeaks(t); leaks != 0 {
		t.Errorf("%d packets leaked", leaks)
	}
}

// Changes of the endpoints under load neither refuse a connection nor let one through, with
// nothing but the programs to see them.
func TestSyncsUnderLoadBesideHostRouting(t *testing.T) {
	const syncs, connects = 500, 30_000
	r := newRig(t)
	r.hostRouting(t)
	// Connections are being opened while their endpoint leaves, so it stays live.
	first, second, all := routesTo(r.endpoints...), routesTo(r.endpoints...), routesTo(r.endpoints...)
	first.New, second.New = r.endpoints[:1], r.endpoints[1:2]
	r.sync(t, all)
	var done, synced atomic.Int64
	var load errgroup.Group
	for range 2 {
		load.Go(func() error {
			return r.pod.Do(func() error {
				for done.Load() < connects || synced.Load() < syncs {
					if err := connectTo(metadata[0], r.endpoints); err != nil {
						return err
					}
					done.Add(1)
				}
				return nil
			})
		})
	}
	for i := range syncs {
		r.sync(t, []routes.Routes{first, second, all}[i%3])
		synced.Add(1)
	}
	if err := load.Wait(); err != nil {
		t.Errorf("after %d connects and %d syncs: %v", done.Load(), synced.Load(), err)
	}
	t.Logf("%d connects under %d syncs", done.Load(), synced.Load())
}

// connectTo opens a connection and closes it; it has to be to one of the endpoints.
func connectTo(to netip.AddrPort, endpoints []netip.AddrPort) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 1000); err != nil {
		return err
	}
	if err := unix.Connect(fd, sockaddr(to)); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	peer, err := unix.Getpeername(fd)
	if err != nil {
		return err
	}
	if p, ok := peer.(*unix.SockaddrInet4); ok {
		at := netip.AddrPortFrom(netip.AddrFrom4(p.Addr), uint16(p.Port))
		if slices.Contains(endpoints, at) {
			return nil
		}
	}
	return fmt.Errorf("connected to %+v", peer)
}

// soon is when a packet that was dropped is known to be.
func soon() time.Time { return time.Now().Add(environment.AtMost(500 * time.Millisecond)) }

func sockaddr(to netip.AddrPort) unix.Sockaddr {
	if to.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}
	}
	return &unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())}
}
