// Package listener bounds what clients can hold of a program: connections by source
// address and in total, the time and the size of a request's header, and what the kernel
// keeps of bytes that nobody reads. It does not know what is asked or answered.
package listener

import (
	"context"
	"math"
	"net"
	"net/netip"
	"sync"
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

	start time.Time
	// swept is the listener's time at the last sweep, and lost is how much of the time since
	// start is not in it. Both are durations.
	swept, lost atomic.Int64

	mu    sync.Mutex
	conns []*conn
}

// Listen is net.Listen with TCP and with limits. The deadlines of its connections need Sweep. Of
// its lines others can cause any number: log is logging.Sampled.
func Listen(ctx context.Context, address string, limits Limits, log *zap.Logger) (*Listener, error) {
	// Every state of a connection has a deadline of two minutes at most, before which a probe
	// of a client that is gone says nothing new. Each of its settings is a system call.
	config := net.ListenConfig{KeepAlive: -1}
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
	return newListener(l, limits, log), nil
}

func newListener(l net.Listener, limits Limits, log *zap.Logger) *Listener {
	return &Listener{Listener: l, shares: NewShares(limits.Connections, limits.PerSource), log: log, start: time.Now()}
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	c, err := l.accept()
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (l *Listener) accept() (*conn, error) {
	for {
		accepted, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := newConn(accepted, l)
		c.source = sourceOf(accepted)
		var reason Refusal
		if c.held, reason = l.shares.take(c.source, 1); reason == "" {
			l.keep(c)
			return c, nil
		}
		l.log.Warn("reset a connection: too many are open", zap.Stringer(logging.SourceIP, c.source),
			zap.Stringer(logging.Address, l.Addr()), zap.String(logging.Reason, string(reason)))
		reset(accepted)
	}
}

func (l *Listener) keep(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.place = len(l.conns)
	l.conns = append(l.conns, c)
}

// forget is keep's opposite, and does nothing when it is called again.
func (l *Listener) forget(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.place < 0 {
		return
	}
	last := len(l.conns) - 1
	l.conns[c.place] = l.conns[last]
	l.conns[c.place].place = c.place
	l.conns[last] = nil
	l.conns, c.place = l.conns[:last], -1
	l.shares.Give(c.source, 1)
}

// sweepEvery is how late a deadline may be enforced, at most.
const sweepEvery = 200 * time.Millisecond

// Sweep enforces the connections' deadlines until ctx ends.
func (l *Listener) Sweep(ctx context.Context) {
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			l.sweep(now)
		}
	}
}

// sweepAtOnce is for how many connections those that are opened or closed wait.
const sweepAtOnce = 256

// sweep lets clients have on top of their time what of it this program was not given a
// processor for: they may have kept theirs, and what they sent waits in the kernel. A
// container that has used up its cpu limit is such a program.
func (l *Listener) sweep(now time.Time) {
	passed := int64(now.Sub(l.start)) - l.lost.Load() - l.swept.Load()
	l.lost.Add(max(0, passed-int64(2*sweepEvery)))
	l.swept.Add(min(passed, int64(2*sweepEvery)))
	// From the end: what is closed meanwhile moves others to the front.
	for end := math.MaxInt; end > 0; {
		l.mu.Lock()
		end = min(end, len(l.conns))
		begin := max(0, end-sweepAtOnce)
		for _, c := range l.conns[begin:end] {
			c.mu.Lock()
			c.enforce()
			c.mu.Unlock()
		}
		l.mu.Unlock()
		end = begin
	}
}

// now is when the last sweep began, in the listener's time, in which no two sweeps are further
// apart than twice sweepEvery.
func (l *Listener) now() time.Duration { return time.Duration(l.swept.Load()) }

// at is a deadline in the listener's time, which begins at 0 with its start.
func (l *Listener) at(t time.Time) time.Duration {
	if t.IsZero() {
		return never
	}
	return t.Sub(l.start) - time.Duration(l.lost.Load())
}

// Connections returns how many are open, and how many were refused for that reason.
func (l *Listener) Connections(reason Refusal) (open int64, refused uint64) {
	return l.shares.Count(reason)
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

// Headers returns a listener whose connections give a request's header to their reader
// whole or not at all, and have these time-outs.
func Headers(l *Listener, timeouts Timeouts) net.Listener { return headers{l, timeouts} }

type headers struct {
	*Listener
	timeouts Timeouts
}

// Accept implements net.Listener.
func (l headers) Accept() (net.Conn, error) {
	c, err := l.accept()
	if err != nil {
		return nil, err
	}
	return newHeaderConn(c, l.timeouts), nil
}
