package rules

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/netns"
)

// patience is how long an answer may take. None of the rules drops a packet without one.
var patience = environment.AtMost(10 * time.Second)

// place is a network namespace that packets come from and go to: the host, which has the
// rules, a pod, or what is beyond the host.
type place struct {
	name string
	do   func(func() error) error
	// addresses are where its packets come from, by family.
	addresses map[routes.Family]netip.Addr
}

func hostPlace() *place {
	return &place{"host", func(do func() error) error { return do() }, byFamily("10.255.255.1", "fdff::1")}
}

func addPlace(t *testing.T, name, ipv4, ipv6 string) *place {
	t.Helper()
	p := &place{name, netns.AddPod(t, ipv4, ipv6).Do, byFamily(ipv4, ipv6)}
	p.allowPing(t)
	return p
}

func byFamily(ipv4, ipv6 string) map[routes.Family]netip.Addr {
	return map[routes.Family]netip.Addr{routes.IPv4: netip.MustParseAddr(ipv4), routes.IPv6: netip.MustParseAddr(ipv6)}
}

func (p *place) allowPing(t *testing.T) {
	t.Helper()
	if err := p.do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 0"), 0) }); err != nil {
		t.Fatal(err)
	}
}

// serve answers on these addresses and ports, by TCP and UDP, with the address that it was
// asked at and the one that the question came from.
func (p *place) serve(t *testing.T, ports []uint16, addresses ...netip.Addr) {
	t.Helper()
	netns.Require(t)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s", r.Context().Value(http.LocalAddrContextKey), r.RemoteAddr)
	})}
	t.Cleanup(func() { server.Close() })
	for _, a := range addresses {
		for _, port := range ports {
			at := netip.AddrPortFrom(a, port).String()
			err := p.do(func() error {
				packets, err := net.ListenPacket("udp", at)
				if err != nil {
					return err
				}
				t.Cleanup(func() { packets.Close() })
				go echo(packets)
				if p.name == "far side" && port == 80 && (a == routes.MetadataIPv4 || a == routes.MetadataIPv6) {
					return nil // netns.FarSide has this one
				}
				listener, err := (&net.ListenConfig{KeepAlive: -1}).Listen(t.Context(), "tcp", at)
				if err != nil {
					return err
				}
				go func() { _ = server.Serve(listener) }() // until Close
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

func echo(packets net.PacketConn) {
	buffer := make([]byte, 1500)
	for {
		_, from, err := packets.ReadFrom(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = packets.WriteTo(fmt.Appendf(nil, "%s %s", packets.LocalAddr(), from), from)
		}
	}
}

// connection is one that stays open.
type connection struct {
	net.Conn
	reader *bufio.Reader
	from   *place
	// to is where it was opened to, current where it leads.
	to, current netip.AddrPort
	older       bool // than the rules
	moved       bool // to another source port, by our rules
}

// connect opens a connection and asks for the first time.
func (p *place) connect(to netip.AddrPort) (c *connection, end string) {
	return p.connectFrom(nil, to)
}

// connectFrom is connect with a local address and port.
func (p *place) connectFrom(local net.Addr, to netip.AddrPort) (c *connection, end string) {
	var conn net.Conn
	err := p.do(func() (err error) {
		conn, err = (&net.Dialer{LocalAddr: local, KeepAlive: -1, Timeout: patience}).Dial("tcp", to.String())
		return err
	})
	if err != nil {
		return nil, endOf(err)
	}
	c = &connection{Conn: conn, reader: bufio.NewReader(conn), from: p, to: to}
	if end = c.ask(); strings.HasPrefix(end, "to ") {
		c.current = netip.MustParseAddrPort(strings.TrimPrefix(end, "to "))
		return c, end
	}
	c.hangUp()
	return nil, end
}

// ask sends a request over the connection and says what became of it.
func (c *connection) ask() (end string) {
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: test\r\n\r\n"); err != nil {
		return endOf(err)
	}
	response, err := http.ReadResponse(c.reader, nil)
	if err != nil {
		return endOf(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return endOf(err)
	}
	// So that no late acknowledgement meets the rules that come next.
	if raw, err := c.Conn.(*net.TCPConn).SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1) })
	}
	if string(body) == netns.NodeRole {
		return "to " + netip.AddrPortFrom(metadata[routes.FamilyOf(c.to.Addr())], 80).String()
	}
	return c.from.answered(string(body))
}

// hangUp leaves nothing behind that might be sent later.
func (c *connection) hangUp() {
	_ = c.Conn.(*net.TCPConn).SetLinger(0)
	_ = c.Close()
}

// answered reads an answer; it has to name the place's own address.
func (p *place) answered(answer string) (end string) {
	var at, from netip.AddrPort
	if fields := strings.Fields(answer); len(fields) == 2 {
		at, _ = netip.ParseAddrPort(fields[0])
		from, _ = netip.ParseAddrPort(fields[1])
	}
	if at.IsValid() && from.Addr() == p.addresses[routes.FamilyOf(at.Addr())] {
		return "to " + at.String()
	}
	return fmt.Sprintf("answered %q", answer)
}

func endOf(err error) string {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET):
		return "reset"
	}
	return err.Error()
}

// datagram sends one by UDP.
func (p *place) datagram(to netip.AddrPort) (end string) {
	var conn net.Conn
	err := p.do(func() (err error) {
		conn, err = net.Dial("udp", to.String())
		return err
	})
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	answer := make([]byte, 1500)
	n := 0
	if _, err = conn.Write([]byte("?")); err == nil {
		n, err = conn.Read(answer)
	}
	if err != nil {
		return unreachable(err)
	}
	return p.answered(string(answer[:n]))
}

// ping sends an ICMP echo request.
func (p *place) ping(to netip.Addr) (end string) {
	family, protocol, request := unix.AF_INET6, unix.IPPROTO_ICMPV6, byte(128)
	var address unix.Sockaddr = &unix.SockaddrInet6{Addr: to.As16()}
	if to.Is4() {
		family, protocol, request = unix.AF_INET, unix.IPPROTO_ICMP, 8
		address = &unix.SockaddrInet4{Addr: to.As4()}
	}
	err := p.do(func() error {
		fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, protocol)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		timeout := unix.NsecToTimeval(patience.Nanoseconds())
		err = errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout), unix.Connect(fd, address))
		if err == nil {
			_, err = unix.Write(fd, []byte{request, 0, 0, 0, 0, 0, 0, 1})
		}
		if err == nil {
			_, err = unix.Read(fd, make([]byte, 1500))
		}
		return err
	})
	if err != nil {
		return unreachable(err)
	}
	return "to " + netip.AddrPortFrom(to, 0).String()
}

func unreachable(err error) (end string) {
	// The host's own packets that a rule of the hook output rejects fail at once, with EPERM.
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EPERM) {
		return "rejected"
	}
	return err.Error()
}
