package benchrouting

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iam4kube/iam4kube/test/netns"
)

const (
	clientAddress = "10.244.0.2"
	// connections are open while requests are sent on them in turns: each is led to an
	// endpoint of its own, whose rules may come early or late.
	connections = 64
)

// About as large as a request for credentials and its answer.
var (
	request = make([]byte, 160)
	answer  = make([]byte, 1200)
)

// pods are a client and the endpoints. Both use bare system calls, for one connection
// after the other.
type pods struct {
	client *netns.Pod
	server *server
}

func newPods(b *testing.B) *pods {
	b.Helper()
	p := &pods{client: netns.AddPod(b, clientAddress), server: newServer(b)}
	// What is left of closed connections would fill the kernel's table of them.
	err := errors.Join(
		tracking.set(nil), // it may have no such setting before
		os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close", []byte("1"), 0),
		tracking.remove())
	if err != nil {
		b.Fatal(err)
	}
	return p
}

// inClient calls do in the client's namespace.
func (p *pods) inClient(do func() error) error {
	if err := netns.Check(); err != nil {
		return err
	}
	return p.client.Do(func() error { return pinned(do) })
}

func connect(to netip.AddrPort) (int, error) {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	// Closing resets the connection, which frees the port at once.
	err = unix.SetsockoptLinger(socket, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	if err == nil {
		err = unix.Connect(socket, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
	}
	if err != nil {
		_ = unix.Close(socket)
		return 0, fmt.Errorf("connect to %s: %w", to, err)
	}
	return socket, nil
}

// saturate makes connections one after the other and returns how long each took, with
// its end.
func (p *pods) saturate(to []netip.AddrPort) (took []time.Duration, err error) {
	err = p.inClient(func() error {
		end := time.Now()
		for until := end.Add(saturation); end.Before(until); {
			start := end
			socket, err := connect(to[len(took)%len(to)])
			if err != nil {
				return err
			}
			_ = unix.Close(socket)
			end = time.Now()
			took = append(took, end.Sub(start))
		}
		return nil
	})
	return took, err
}

// pace makes connections at a fixed rate and returns how long each took.
func (p *pods) pace(to []netip.AddrPort) (took []time.Duration, err error) {
	ticker := time.NewTicker(time.Second / fixedRate)
	defer ticker.Stop()
	err = p.inClient(func() error {
		for i := range fixedCount {
			<-ticker.C
			start := time.Now() // how late a timer fires is not the rules' affair
			socket, err := connect(to[i%len(to)])
			if err != nil {
				return err
			}
			took = append(took, time.Since(start))
			_ = unix.Close(socket)
		}
		return nil
	})
	return took, err
}

// keepAlive sends requests on open connections, in turns, and returns how long each answer
// took.
func (p *pods) keepAlive(to []netip.AddrPort) (took []time.Duration, err error) {
	p.server.keep.Store(true)
	defer p.server.keep.Store(false)
	err = p.inClient(func() error {
		var sockets []int
		defer func() { closeAll(sockets) }()
		for i := range connections {
			socket, err := connect(to[i%len(to)])
			if err != nil {
				return err
			}
			sockets = append(sockets, socket)
		}
		buffer := make([]byte, len(answer))
		end := time.Now()
		for until := end.Add(keepAlive); end.Before(until); {
			start := end
			socket := sockets[len(took)%len(sockets)]
			if _, err := unix.Write(socket, request); err != nil {
				return os.NewSyscallError("write", err)
			}
			if got, err := unix.Read(socket, buffer); err != nil {
				return os.NewSyscallError("read", err)
			} else if got != len(answer) { // it is one segment
				return fmt.Errorf("an answer of %d bytes", got)
			}
			end = time.Now()
			took = append(took, end.Sub(start))
		}
		return nil
	})
	return took, err
}

func closeAll(sockets []int) {
	for _, s := range sockets {
		_ = unix.Close(s)
	}
}

// pinned calls do on one processor, always the same.
func pinned(do func() error) error {
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return os.NewSyscallError("sched_getaffinity", err)
	}
	cpu := 0
	for !all.IsSet(cpu) {
		cpu++
	}
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return os.NewSyscallError("sched_setaffinity", err)
	}
	defer func() {
		if err := unix.SchedSetaffinity(0, &all); err != nil {
			panic(err) // the thread goes back to the others
		}
	}()
	return do()
}
