package controlplane

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"

	"k8s.io/client-go/rest"
)

// GateMode is what a Gate does with connections.
type GateMode int

const (
	// Pass forwards.
	Pass GateMode = iota
	// Refuse resets the connections there are and refuses new ones: the server's
	// process is gone, its host is not.
	Refuse
	// BlackHole keeps connections and lets the kernel accept new ones, but no byte
	// moves in either direction. What was held moves on after Pass. A black hole's
	// connections are only ended by the client's own time-outs.
	BlackHole
)

// Gate is a TCP proxy on 127.0.0.1 in front of a server. Its address stays the same in
// every mode.
type Gate struct {
	target string
	port   port
	loops  sync.WaitGroup

	mu       sync.Mutex
	mode     GateMode
	pass     chan struct{} // closed while mode is Pass
	listener net.Listener  // nil while mode is Refuse
	conns    map[*gateConn]struct{}
	closed   bool
}

// gateConn is one connection with its two ends.
type gateConn struct {
	client, server net.Conn
	ctx            context.Context
	cancel         context.CancelFunc
}

// NewGate listens on a free port and passes to target, "host:port" or a URL such as the
// Host of a rest.Config.
func NewGate(target string) (*Gate, error) {
	port, err := reservePort()
	if err != nil {
		return nil, err
	}
	target = strings.TrimPrefix(strings.TrimPrefix(target, "https://"), "http://")
	g := &Gate{target: target, port: port, pass: make(chan struct{}), conns: map[*gateConn]struct{}{}}
	close(g.pass)
	if err := g.listen(); err != nil {
		port.release()
		return nil, err
	}
	return g, nil
}

// Addr is where the gate listens, host:port.
func (g *Gate) Addr() string { return g.port.addr() }

// Config is a copy of config that goes through the gate. The certificate is still
// verified, for the host that config names.
func (g *Gate) Config(config *rest.Config) *rest.Config {
	through := rest.CopyConfig(config)
	through.Host = "https://" + g.Addr()
	if through.ServerName == "" {
		host, _, err := net.SplitHostPort(strings.TrimPrefix(config.Host, "https://"))
		if err == nil {
			through.ServerName = host
		}
	}
	return through
}

// Set changes the mode. What arrives at the gate after Set returned is treated so.
func (g *Gate) Set(mode GateMode) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed || mode == g.mode {
		return nil
	}
	if g.mode == Pass {
		g.pass = make(chan struct{})
	}
	g.mode = mode
	if mode == Refuse {
		g.listener.Close()
		g.listener = nil
		g.resetLocked()
		return nil
	}
	if g.listener == nil {
		if err := g.listen(); err != nil {
			return err
		}
	}
	if mode == Pass {
		close(g.pass)
	}
	return nil
}

// ResetAll resets the connections there are, in any mode; new ones may come.
func (g *Gate) ResetAll() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.resetLocked()
}

// Connections is how many connections there are.
func (g *Gate) Connections() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.conns)
}

// Close ends the gate and its connections.
func (g *Gate) Close() {
	_ = g.Set(Refuse)
	g.mu.Lock()
	if !g.closed {
		g.closed = true
		g.port.release()
	}
	g.mu.Unlock()
	g.loops.Wait()
}

func (g *Gate) resetLocked() {
	for c := range g.conns {
		c.reset()
	}
	clear(g.conns)
}

// listen must be called with g.mu held, or before anybody else knows g.
func (g *Gate) listen() error {
	listener, err := net.Listen("tcp", g.Addr())
	if err != nil {
		return err
	}
	g.listener = listener
	g.loops.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			g.loops.Go(func() { g.serve(client) })
		}
	})
	return nil
}

// serve joins an accepted connection to a new one to the target until either ends.
func (g *Gate) serve(client net.Conn) {
	c := &gateConn{client: client}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	g.mu.Lock()
	if g.mode == Refuse {
		c.reset()
		g.mu.Unlock()
		return
	}
	g.conns[c] = struct{}{}
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		delete(g.conns, c)
		g.mu.Unlock()
		c.close()
	}()

	if !g.waitPass(c.ctx) {
		return
	}
	server, err := (&net.Dialer{}).DialContext(c.ctx, "tcp", g.target)
	if err != nil {
		c.reset()
		return
	}
	g.mu.Lock()
	c.server = server
	gone := c.ctx.Err() != nil
	g.mu.Unlock()
	if gone {
		server.Close()
		return
	}
	var directions sync.WaitGroup
	directions.Go(func() { g.pump(c, server, client) })
	directions.Go(func() { g.pump(c, client, server) })
	directions.Wait()
}

// pump moves bytes one way. An end of stream is passed on; a broken connection breaks
// both ends.
func (g *Gate) pump(c *gateConn, to, from net.Conn) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if !g.waitPass(c.ctx) {
			return
		}
		if n > 0 {
			if _, writeErr := to.Write(buffer[:n]); writeErr != nil {
				c.reset()
				return
			}
		}
		if errors.Is(err, io.EOF) {
			_ = to.(*net.TCPConn).CloseWrite()
			return
		}
		if err != nil {
			c.reset()
			return
		}
	}
}

// waitPass reports false when the connection was reset before the gate passes.
func (g *Gate) waitPass(ctx context.Context) bool {
	for {
		g.mu.Lock()
		pass, passing := g.pass, g.mode == Pass
		g.mu.Unlock()
		if ctx.Err() != nil {
			return false
		}
		if passing {
			return true
		}
		select {
		case <-ctx.Done():
		case <-pass:
		}
	}
}

// reset ends both sides with RST, not FIN.
func (c *gateConn) reset() {
	for _, end := range []net.Conn{c.client, c.server} {
		if tcp, ok := end.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
	}
	c.close()
}

// close lets the kernel deliver what was written.
func (c *gateConn) close() {
	c.cancel()
	c.client.Close()
	if c.server != nil {
		c.server.Close()
	}
}
