package fakests

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
)

// Server serves a [Fake] until Close.
type Server struct {
	// URL for AWS_ENDPOINT_URL_STS or a client's BaseEndpoint.
	URL string

	region string
	dial   func(ctx context.Context) (net.Conn, error)
	client *http.Client
	server *http.Server
	served chan struct{}
	conns  sync.WaitGroup
}

// Start serves on a free port of 127.0.0.1.
func (f *Fake) Start() *Server {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(fmt.Errorf("fakests: %w", err))
	}
	address := listener.Addr().String()
	return f.serve(listener, "http://"+address, func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	})
}

// StartPipe serves in memory: connections are net.Pipe and only [Server.Client]
// and [Server.DialContext] reach it. It is for testing/synctest: call it inside
// the bubble and Close it before the bubble ends.
func (f *Fake) StartPipe() *Server {
	listener := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	return f.serve(listener, "http://sts.invalid", listener.dial)
}

func (f *Fake) serve(listener net.Listener, url string, dial func(context.Context) (net.Conn, error)) *Server {
	s := &Server{URL: url, region: f.cfg.Region, dial: dial, served: make(chan struct{})}
	s.client = &http.Client{
		Transport:     &http.Transport{DialContext: s.DialContext},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	s.server = &http.Server{Handler: f, ConnState: func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew: // in Serve's own goroutine, so never after served is closed
			s.conns.Add(1)
		case http.StateHijacked, http.StateClosed:
			s.conns.Done()
		}
	}}
	go func() {
		defer close(s.served)
		if err := s.server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			panic(fmt.Errorf("fakests: %w", err))
		}
	}()
	return s
}

// Client returns an HTTP client that reaches this server whatever the URL's host
// is, and nothing else. It follows no redirect.
func (s *Server) Client() *http.Client { return s.client }

// DialContext connects to this server; network and address are ignored.
func (s *Server) DialContext(ctx context.Context, _, _ string) (net.Conn, error) { return s.dial(ctx) }

// Environ returns the variables by which an AWS SDK in another process finds
// this server and signs with the key, in the form of os.Environ.
func (s *Server) Environ(key Key) []string {
	return []string{
		"AWS_ENDPOINT_URL_STS=" + s.URL,
		"AWS_REGION=" + s.region,
		"AWS_ACCESS_KEY_ID=" + key.AccessKeyID,
		"AWS_SECRET_ACCESS_KEY=" + key.SecretAccessKey,
	}
}

// Close ends the server as a crash would: connections are cut, hanging requests
// end. It returns once no connection is served any more.
func (s *Server) Close() {
	s.client.CloseIdleConnections()
	_ = s.server.Close() // an error of the listener's Close changes nothing
	<-s.served
	s.conns.Wait()
}

// pipeListener is a net.Listener whose connections are net.Pipe.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) dial(ctx context.Context) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case l.conns <- server:
		return client, nil
	case <-l.closed:
		return nil, &net.OpError{Op: "dial", Net: "pipe", Err: net.ErrClosed}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }
