package node

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/iam4kube/iam4kube/test/netns"
)

// Port is where endpoints listen.
const Port = 8080

// Endpoint is a pod with an HTTP server which answers every request with its own name
// and the address that it saw the request come from, separated by a blank.
type Endpoint struct {
	*netns.Pod
	Name        string
	Addresses   []string
	Connections atomic.Int64
}

// AddEndpoint makes one, until the test ends.
func AddEndpoint(t testing.TB, name string, addresses ...string) *Endpoint {
	t.Helper()
	e := &Endpoint{Pod: netns.AddPod(t, addresses...), Name: name, Addresses: addresses}
	for _, a := range addresses {
		listener, err := e.Listen("tcp", net.JoinHostPort(a, strconv.Itoa(Port)))
		if err != nil {
			t.Fatal(err)
		}
		e.Serve(t, listener)
	}
	return e
}

// Serve answers on one more listener.
func (e *Endpoint) Serve(t testing.TB, listener net.Listener) {
	t.Helper()
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			from, err := netip.ParseAddrPort(r.RemoteAddr)
			if err != nil {
				panic(err)
			}
			fmt.Fprintf(w, "%s %s", e.Name, from.Addr())
		}),
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				e.Connections.Add(1)
			}
		},
	}
	go func() { _ = server.Serve(listener) }() // until Close
	t.Cleanup(func() { server.Close() })
}

// Answer is what an Endpoint, or the far side, answered.
type Answer struct {
	Name, Source string
}

// Ask opens a connection from the pod, sends one request and closes it.
func Ask(t testing.TB, from *netns.Pod, address string) (Answer, error) {
	t.Helper()
	c, err := Connect(t, from, address)
	if err != nil {
		return Answer{}, err
	}
	defer c.Close()
	return c.Ask()
}

// Connection is one that stays open between requests.
type Connection struct {
	net.Conn
	reader *bufio.Reader
}

// Connect opens a connection from the pod to an address, on port 80 if it has none.
func Connect(t testing.TB, from *netns.Pod, address string) (*Connection, error) {
	t.Helper()
	netns.Require(t)
	if _, _, err := net.SplitHostPort(address); err != nil {
		address = net.JoinHostPort(address, "80")
	}
	c, err := from.DialContext(t.Context(), "tcp", address)
	if err != nil {
		return nil, err
	}
	return &Connection{c, bufio.NewReader(c)}, nil
}

// Ask sends a request and reads the answer.
func (c *Connection) Ask() (a Answer, err error) {
	if _, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: test\r\n\r\n"); err != nil {
		return a, err
	}
	response, err := http.ReadResponse(c.reader, nil)
	if err != nil {
		return a, err
	}
	defer response.Body.Close()
	_, err = fmt.Fscan(response.Body, &a.Name)
	if err == nil && a.Name != netns.NodeRole {
		_, err = fmt.Fscan(response.Body, &a.Source)
	}
	return a, err
}
