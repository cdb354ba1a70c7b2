package benchrouting

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/netns"
)

const (
	// router is the address of the namespace that the endpoints are in.
	router  = "10.244.0.3"
	port    = 8080
	backlog = 4096
)

// endpointNet are the endpoints' addresses, from .1 on.
var endpointNet = [4]byte{10, 244, 1, 0}

// endpoints are count of them, beginning after the first skip.
func endpoints(skip, count int) []netip.AddrPort {
	all := make([]netip.AddrPort, count)
	for i := range all {
		address := endpointNet
		address[3] += byte(1 + skip + i)
		all[i] = netip.AddrPortFrom(netip.AddrFrom4(address), port)
	}
	return all
}

// server is all endpoints: one namespace has all their addresses.
type server struct {
	pod      *netns.Pod
	listener int
	// keep says that connections are to be kept and requests answered on them.
	keep atomic.Bool
	// Since the last check: connections by the last byte of the endpoint's address, and
	// those that came from another address than the client's.
	accepted [256]atomic.Int64
	foreign  atomic.Int64
}

func newServer(b *testing.B) *server {
	b.Helper()
	s := &server{pod: netns.AddPod(b, router)}
	prefix := netip.PrefixFrom(netip.AddrFrom4(endpointNet), 24).String()
	err := errors.Join(
		run("", "ip", "route", "add", prefix, "via", router, "dev", s.pod.Device),
		s.pod.Do(func() (err error) {
			if err := run("", "ip", "route", "add", "local", prefix, "dev", "lo"); err != nil {
				return err
			}
			if err := os.WriteFile("/proc/sys/net/core/somaxconn", []byte(strconv.Itoa(backlog)), 0); err != nil {
				return err
			}
			s.listener, err = listen()
			return err
		}))
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.pod.Do(func() error { return pinned(s.serve) }) }()
	b.Cleanup(func() {
		_ = unix.Shutdown(s.listener, unix.SHUT_RDWR)
		if err := <-done; err != nil {
			b.Error(err)
		}
		_ = unix.Close(s.listener)
	})
	return s
}

func listen() (int, error) {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	return socket, errors.Join(
		os.NewSyscallError("bind", unix.Bind(socket, &unix.SockaddrInet4{Port: port})),
		os.NewSyscallError("listen", unix.Listen(socket, backlog)))
}

// serve accepts and closes connections, until the listener is shut down.
func (s *server) serve() error {
	client := netip.MustParseAddr(clientAddress).As4()
	var kept []int
	for {
		socket, from, err := unix.Accept4(s.listener, unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EINVAL) {
			return nil // shut down
		} else if err != nil {
			return os.NewSyscallError("accept", err)
		}
		at, err := unix.Getsockname(socket)
		if err != nil {
			return os.NewSyscallError("getsockname", err)
		}
		if from.(*unix.SockaddrInet4).Addr != client {
			s.foreign.Add(1)
		}
		keep := s.keep.Load() // the client changes it when all are counted
		s.accepted[at.(*unix.SockaddrInet4).Addr[3]].Add(1)
		if !keep {
			_ = unix.Close(socket)
		} else if kept = append(kept, socket); len(kept) == connections {
			answerInTurns(kept)
			kept = nil
		}
	}
}

// answerInTurns answers one request on each connection in turns, which is how the client
// sends them, until the client closes.
func answerInTurns(sockets []int) {
	buffer := make([]byte, len(request))
	for i := 0; ; i++ {
		socket := sockets[i%len(sockets)]
		if n, err := unix.Read(socket, buffer); err != nil || n != len(request) {
			break
		}
		if _, err := unix.Write(socket, answer); err != nil {
			break
		}
	}
	closeAll(sockets)
}

// wait waits until so many connections have been accepted since take was last called.
func (s *server) wait(b *testing.B, want int) {
	b.Helper()
	environment.Eventually(b, 10*time.Second, func() error {
		total := int64(0)
		for i := range s.accepted {
			total += s.accepted[i].Load()
		}
		if total != int64(want) {
			return fmt.Errorf("the endpoints accepted %d connections, the client made %d", total, want)
		}
		return nil
	})
}

// shares are numbers of connections by the last byte of the endpoint's address.
type shares [256]int64

// take waits and returns who has accepted them.
func (s *server) take(b *testing.B, want int) (accepted shares) {
	b.Helper()
	s.wait(b, want)
	for i := range s.accepted {
		accepted[i] = s.accepted[i].Swap(0)
	}
	if n := s.foreign.Swap(0); n != 0 {
		b.Errorf("%d connections did not come from the client's address", n)
	}
	return accepted
}

// check checks that the first endpoints, and nobody else, got the same share.
func (s shares) check(endpoints int) error {
	total := int64(0)
	for _, n := range s {
		total += n
	}
	for i, n := range s {
		share := float64(total) / float64(endpoints)
		if i < 1 || i > endpoints {
			share = 0
		}
		// 6 standard deviations.
		if d := float64(n) - share; d*d > 36*share {
			return fmt.Errorf("endpoint .%d got %d of %d connections, want %.0f", i, n, total, share)
		}
	}
	return nil
}
