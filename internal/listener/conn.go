package listener

import (
	"context"
	"crypto/tls"
	"math"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// conn is a client's connection. It gives its share back when it is closed, and its
// deadlines are enforced by the listener's sweep: net/http sets up to nine for each request,
// of which next to none ever passes, and a timer of the runtime for each is a tenth of what
// the request costs.
type conn struct {
	net.Conn
	listener *Listener
	source   netip.Addr
	// held is what all connections of the source hold.
	held *atomic.Int64
	// place is that among the listener's connections, -1 once it is closed.
	place int

	mu sync.Mutex
	// read, header and write are deadlines in the listener's time. The second is headerConn's,
	// beside that of its reader.
	read, header, write time.Duration
	// reading: somebody is in Conn.Read.
	reading bool
	// readCut and writeCut are that Conn has a deadline, which has passed.
	readCut, writeCut bool
}

// never is a deadline that does not pass.
const never time.Duration = math.MaxInt64

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

func newConn(c net.Conn, l *Listener) *conn {
	return &conn{Conn: c, listener: l, read: never, header: never, write: never}
}

// readPassed says that nothing may be read any more. It needs mu.
func (c *conn) readPassed() bool { return min(c.read, c.header) <= c.listener.now() }

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) {
	c.mu.Lock()
	if c.readPassed() {
		c.mu.Unlock()
		return 0, os.ErrDeadlineExceeded
	}
	c.reading = true
	c.mu.Unlock()
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	c.reading = false
	c.mu.Unlock()
	return n, err
}

// enforce interrupts whoever reads or writes although the time for it has passed, and lets
// those do it again who have more time. It needs mu.
func (c *conn) enforce() {
	if passed := c.readPassed(); passed != c.readCut && (c.reading || !passed) {
		c.readCut = passed
		_ = c.Conn.SetReadDeadline(passedIf(passed)) // the next read says what is wrong with the connection
	}
	if passed := c.write <= c.listener.now(); passed != c.writeCut {
		c.writeCut = passed
		_ = c.Conn.SetWriteDeadline(passedIf(passed)) // the next write does
	}
}

func passedIf(passed bool) time.Time {
	if passed {
		return longAgo
	}
	return time.Time{}
}

// SetReadDeadline implements net.Conn.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.read = c.listener.at(t)
	c.enforce()
	return nil
}

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.write = c.listener.at(t)
	c.enforce()
	return nil
}

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t) // neither fails
	return c.SetWriteDeadline(t)
}

// Close implements net.Conn. It gives back one share, also if it is called again.
func (c *conn) Close() error {
	err := c.Conn.Close()
	c.listener.forget(c)
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

type connKey struct{}

// ConnContext is for http.Server: requests' contexts are those that Crowded asks.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	if withTLS, ok := c.(*tls.Conn); ok {
		c = withTLS.NetConn()
	}
	if withHeaders, ok := c.(*headerConn); ok {
		c = withHeaders.conn
	}
	return context.WithValue(ctx, connKey{}, c)
}

// Crowded is that few connections are left, in all or for the request's source, so that none
// should stay idle: an SDK that starts anew for each task leaves one behind each time.
func Crowded(request context.Context) bool {
	c, ok := request.Value(connKey{}).(*conn)
	return ok && c.listener.shares.crowded(c.held)
}
