package routingload

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/test/netns"
	"github.com/iam4kube/iam4kube/test/node"
)

// metadata is where pods connect to.
const metadata = "169.254.169.254:80"

// request is what they send: the far side answers it too. An endpoint answers with one
// byte, its name, so that neither of them costs much of the processors' time.
const request = "GET / HTTP/1.1\r\nHost: test\r\n\r\n"

// leaked is the first byte of the far side's answer.
const leaked = 'H'

// The usual load: so many pods, each of which opens a connection at most this often and
// keeps so many others.
const (
	podCount   = 4
	visitPause = 5 * time.Millisecond
	kept       = 3
)

// patience is longer than anything that a test is to see.
const patience = 10 * time.Second

// addEndpoints makes pods with a server, named a, b and so on.
func addEndpoints(t *testing.T, count int) (addresses []string) {
	t.Helper()
	for i := range count {
		address := fmt.Sprint("10.244.1.", i+1)
		listener, err := netns.AddPod(t, address).Listen("tcp", fmt.Sprint(address, ":", node.Port))
		if err != nil {
			t.Fatal(err)
		}
		s := &server{name: byte('a' + i), connections: map[net.Conn]struct{}{}}
		s.running.Go(func() { s.serve(listener) })
		t.Cleanup(func() {
			listener.Close()
			s.close()
		})
		addresses = append(addresses, address)
	}
	return addresses
}

// server is that of an endpoint.
type server struct {
	name    byte
	running sync.WaitGroup

	mu          sync.Mutex
	connections map[net.Conn]struct{}
}

func (s *server) serve(listener net.Listener) {
	for {
		c, err := listener.Accept()
		if err != nil {
			return // closed
		}
		s.mu.Lock()
		s.connections[c] = struct{}{}
		s.mu.Unlock()
		s.running.Go(func() {
			s.answer(c)
			s.mu.Lock()
			delete(s.connections, c)
			s.mu.Unlock()
			c.Close()
		})
	}
}

func (s *server) answer(c net.Conn) {
	buffer := make([]byte, len(request))
	for {
		if _, err := io.ReadFull(c, buffer); err != nil {
			return
		}
		if _, err := c.Write([]byte{s.name}); err != nil {
			return
		}
	}
}

// close ends the connections, above all those that were cut on their way to the server,
// which never learns of it.
func (s *server) close() {
	s.mu.Lock()
	for c := range s.connections {
		c.Close()
	}
	s.mu.Unlock()
	s.running.Wait()
}

// exchange is a request of a pod.
type exchange struct {
	// The rules that it met were in force at some moment between start and end.
	start, end time.Time
	// by is the name of the endpoint that answered; that of the connection, if the request
	// failed on one that was kept; 0 if unknown.
	by byte
	// refused says that there was no connection at all.
	refused bool
	err     error
}

// ports are the next source ports by pod. The kernel's own choice could be a port whose
// connection the guard has cut: for 10 s more, connection tracking would take a new one
// for a part of the old one, which the guard cuts.
var ports [podCount]atomic.Uint32

// load is pods that ask all the time.
type load struct {
	pods    []*netns.Pod
	stop    context.CancelFunc
	workers sync.WaitGroup

	// visits is how many of fresh there are so far.
	visits atomic.Int64

	mu sync.Mutex
	// fresh are requests on new connections, kept those on connections that stay.
	fresh, kept []exchange
}

// newLoad makes the pods.
func newLoad(t *testing.T, pods int) *load {
	t.Helper()
	l := &load{}
	for i := range pods {
		l.pods = append(l.pods, netns.AddPod(t, fmt.Sprint("10.244.0.", i+2)))
	}
	return l
}

// start makes every pod open connections, with a pause between them, and ask on so many
// that it keeps, until end is called.
func (l *load) start(t *testing.T, pause time.Duration, keep int) {
	t.Helper()
	netns.Require(t)
	ctx, cancel := context.WithCancel(t.Context())
	l.stop = cancel
	t.Cleanup(func() { l.end() })
	l.fresh, l.kept = nil, nil
	for i, pod := range l.pods {
		port := &ports[i]
		l.work(t, pod, &l.fresh, func() (done []exchange) {
			pace(ctx, pause, func() {
				done = append(done, visit(port))
				l.visits.Add(1)
			})
			return done
		})
		for range keep {
			l.work(t, pod, &l.kept, func() (done []exchange) {
				stay := &resident{port: port}
				pace(ctx, 4*pause, func() { done = append(done, stay.ask()...) })
				stay.leave()
				return done
			})
		}
	}
}

// work runs in the pod, on a thread that stays there: entering for each connection would
// cost more than the connection.
func (l *load) work(t *testing.T, pod *netns.Pod, to *[]exchange, run func() []exchange) {
	t.Helper()
	l.workers.Go(func() {
		err := pod.Do(func() error {
			done := run()
			l.mu.Lock()
			defer l.mu.Unlock()
			*to = append(*to, done...)
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// end returns when all have stopped.
func (l *load) end() {
	l.stop()
	l.workers.Wait()
}

// pace calls do until ctx ends, not more often than once in each pause.
func pace(ctx context.Context, pause time.Duration, do func()) {
	ticker := time.NewTicker(max(pause, 1))
	defer ticker.Stop()
	for ctx.Err() == nil {
		do()
		if pause == 0 {
			continue
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
		}
	}
}

func dial(port *atomic.Uint32) (net.Conn, error) {
	const first, last = 1024, 65535
	from := &net.TCPAddr{Port: first + int(port.Add(1)%(last-first))}
	c, err := (&net.Dialer{Timeout: patience, LocalAddr: from}).Dial("tcp", metadata)
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	// So nothing is left of it, here and in the node's connection tracking.
	_ = c.(*net.TCPConn).SetLinger(0)
	return c, nil
}

// refused says that there was no connection. A reset may come between its beginning and
// the moment that the client learns of it.
func refused(err error) bool { return !errors.Is(err, syscall.ECONNRESET) }

// ask sends a request and returns the first byte of the answer.
func ask(c net.Conn) (by byte, err error) {
	if _, err := io.WriteString(c, request); err != nil {
		return 0, err
	}
	var answer [1]byte
	_, err = io.ReadFull(c, answer[:])
	return answer[0], err
}

// visit asks on a new connection.
func visit(port *atomic.Uint32) exchange {
	e := exchange{start: time.Now()}
	c, err := dial(port)
	if err != nil {
		e.end, e.refused, e.err = time.Now(), refused(err), err
		return e
	}
	e.by, e.err = ask(c)
	e.end = time.Now()
	c.Close()
	return e
}

// resident asks on one connection until it fails, and then on another.
type resident struct {
	net.Conn
	port *atomic.Uint32
	last exchange
}

func (r *resident) ask() []exchange {
	e := exchange{start: time.Now(), by: r.last.by}
	if r.Conn == nil {
		e.by = 0
		if r.Conn, e.err = dial(r.port); e.err != nil {
			e.end, e.refused = time.Now(), refused(e.err)
			return []exchange{e}
		}
	}
	_ = r.SetDeadline(e.start.Add(patience))
	by, err := ask(r)
	e.end, e.err = time.Now(), err
	if err == nil {
		e.by = by
		r.last = e
		return []exchange{e}
	}
	if e.by != 0 {
		// The packet that was rejected may be the one that acknowledged the answer before.
		e.start = r.last.start
	}
	r.leave()
	return []exchange{e}
}

func (r *resident) leave() {
	if r.Conn != nil {
		r.Close()
	}
	r.Conn, r.last = nil, exchange{}
}

// addressOf is that of an endpoint by its name.
func addressOf(name byte) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 244, 1, name - 'a' + 1})
}

func percentile(of []time.Duration, p float64) time.Duration {
	of = slices.Sorted(slices.Values(of))
	return of[min(len(of)-1, int(p*float64(len(of))))]
}
