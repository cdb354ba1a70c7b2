// Package listener bounds what clients can hold of a program: connections by source
// address and in total, the time and the size of a request's header, and what the kernel
// keeps of bytes that nobody reads. It does not know what is asked or answered.
package listener

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/iam4kube/iam4kube/internal/logging"
)

// The bounds of a request's header, on every listener. The longest one of a client is its
// token of a ServiceAccount, 1 to 2 KiB.
const (
	HeaderTimeout = 3 * time.Second
	// MaxHeaderBytes is with the request line and the empty line at the end.
	MaxHeaderBytes = 4 << 10
	// maxHeaderLines bounds what net/http makes of the bytes: a map's entry takes many times
	// what the shortest line does.
	maxHeaderLines = 100
)

// receiveBuffer is what the kernel may keep of a connection's unread bytes, in bytes; it
// takes twice as much for its own use (socket(7), SO_RCVBUF). It is the container's memory,
// too, and grows to megabytes without a bound.
const receiveBuffer = 4 << 10

// Limits of a listener.
type Limits struct {
	// Connections in total and from one source address, which gets less when few are left.
	Connections, PerSource int64
	// LargeBodies leaves the buffers of connections to the kernel. Without it, a request's
	// body is none or small.
	LargeBodies bool
}

// Listener accepts connections within limits. What is over them is accepted and reset, so
// that it leaves the kernel's queue.
type Listener struct {
	net.Listener
	shares *Shares
	log    *zap.Logger
}

// Listen is net.Listen with TCP and with limits.
func Listen(ctx context.Context, address string, limits Limits, log *zap.Logger) (*Listener, error) {
	var config net.ListenConfig
	if !limits.LargeBodies {
		// Connections inherit it; set later, it would not bound the window of their start.
		config.Control = func(_, _ string, c syscall.RawConn) error {
			var err error
			if controlErr := c.Control(func(fd uintptr) {
				err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, receiveBuffer)
			}); controlErr != nil {
				return controlErr
			}
			return err
		}
	}
	l, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return &Listener{Listener: l, shares: NewShares(limits.Connections, limits.PerSource), log: logging.Sampled(log)}, nil
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		source := sourceOf(c)
		reason, ok := l.shares.Take(source, 1)
		if ok {
			return &conn{Conn: c, release: func() { l.shares.Give(source, 1) }, crowded: l.shares.crowd(source)}, nil
		}
		l.log.Warn("reset a connection: too many are open", zap.Stringer(logging.SourceIP, source),
			zap.Stringer(logging.Address, l.Addr()), zap.String(logging.Reason, string(reason)))
		reset(c)
	}
}

// Connections returns how many are open, and how many were refused for that reason.
func (l *Listener) Connections(reason Refusal) (open int64, refused uint64) {
	return l.shares.Count(reason)
}

type crowdedKey struct{}

// ConnContext is for http.Server: requests' contexts are those that Crowded asks.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	if withTLS, ok := c.(*tls.Conn); ok {
		c = withTLS.NetConn()
	}
	if withHeaders, ok := c.(*headerConn); ok {
		c = withHeaders.Conn
	}
	if limited, ok := c.(*conn); ok {
		return context.WithValue(ctx, crowdedKey{}, limited.crowded)
	}
	return ctx
}

// Crowded is that few connections are left, in all or for the request's source, so that none
// should stay idle: an SDK that starts anew for each task leaves one behind each time.
func Crowded(request context.Context) bool {
	crowded, ok := request.Value(crowdedKey{}).(func() bool)
	return ok && crowded()
}

func sourceOf(c net.Conn) netip.Addr {
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr()
	}
	return netip.Addr{}
}

// reset closes a connection and leaves nothing of it in the kernel, no TIME_WAIT either.
func reset(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // the worst is a longer farewell
	}
	_ = c.Close()
}

// conn gives its share back when it is closed, for the first time.
type conn struct {
	net.Conn
	closed  atomic.Bool
	release func()
	crowded func() bool
}

// Close implements net.Conn.
func (c *conn) Close() error {
	err := c.Conn.Close()
	if c.closed.CompareAndSwap(false, true) {
		c.release()
	}
	return err
}

// CloseWrite is what net/http does before it closes a connection with unread bytes, so that
// its answer is not lost.
func (c *conn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}

// Headers returns a listener whose connections give a request's header to their reader
// whole or not at all.
func Headers(l net.Listener) net.Listener { return headers{l} }

type headers struct{ net.Listener }

// Accept implements net.Listener.
func (l headers) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &headerConn{Conn: c}, nil
}
