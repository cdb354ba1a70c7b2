package program

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/iam4kube/iam4kube/internal/listener"
	"github.com/iam4kube/iam4kube/internal/logging"
)

// What a slow or a hostile client holds is bounded on every listener of every program.
const (
	idleTimeout = 2 * time.Minute
	// none keeps net/http from taking http.Server.ReadTimeout for others.
	none = -1
	// bufioSlop is what net/http adds to http.Server.MaxHeaderBytes, for what its reader may
	// have read ahead.
	bufioSlop = 4 << 10
	// added is over the lines that the listener may add to a header.
	added = 64
)

// Endpoint is an address on which a program answers HTTP requests.
type Endpoint struct {
	// Flag names the address in the error of a start that did not get it.
	Flag, Address string
	Handler       http.Handler
	// TLS is nil for plain HTTP.
	TLS    *tls.Config
	Limits listener.Limits
	// ReadTimeout bounds the reading of a request, WriteTimeout that of its header to the
	// end of its answer; 0: no bound.
	ReadTimeout, WriteTimeout time.Duration
	// Drain is how long requests are still taken at the end, each the last of its connection:
	// a client that sends one on a kept connection while that is closed does not know whether
	// it has arrived, and repeats no POST.
	Drain time.Duration
	// Grace is how long requests may take that are under way at the end; 0: they are cut.
	Grace time.Duration
}

// Server has an Endpoint's listener.
type Server struct {
	http     http.Server
	timeouts listener.Timeouts
	listener *listener.Listener
	flag     string
	ending   atomic.Bool
	drain    time.Duration
	grace    time.Duration
}

// Listen opens the listener of every endpoint, or of none: an address that is taken ends
// the start. Connections are accepted by Run.
func Listen(ctx context.Context, log *zap.Logger, endpoints ...Endpoint) ([]*Server, error) {
	log = logging.Sampled(log) // once: it counts in half a megabyte
	var servers []*Server
	for _, e := range endpoints {
		l, err := listener.Listen(ctx, e.Address, e.Limits, log)
		if err != nil {
			for _, s := range servers {
				_ = s.listener.Close() // nothing was accepted yet
			}
			return nil, fmt.Errorf("%s: %w", e.Flag, err)
		}
		servers = append(servers, newServer(l, e, log))
	}
	return servers, nil
}

func newServer(l *listener.Listener, e Endpoint, log *zap.Logger) *Server {
	// HTTP/2 has bounds of its own, and nobody needs it here.
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	s := &Server{listener: l, flag: e.Flag, drain: e.Drain, grace: e.Grace}
	s.http = http.Server{
		Handler:           s.sparing(e.Handler),
		ConnContext:       listener.ConnContext,
		TLSConfig:         e.TLS,
		Protocols:         &protocols,
		ReadHeaderTimeout: none,
		ReadTimeout:       e.ReadTimeout,
		IdleTimeout:       none,
		MaxHeaderBytes:    listener.MaxHeaderBytes - bufioSlop + added,
		ErrorLog:          logging.ForHTTP(log),
		// OPTIONS * is a request like any other.
		DisableGeneralOptionsHandler: true,
	}
	if e.TLS == nil {
		s.timeouts = listener.Timeouts{Idle: idleTimeout, Answer: e.WriteTimeout}
		return s
	}
	s.http.ReadHeaderTimeout, s.http.WriteTimeout, s.http.IdleTimeout = listener.HeaderTimeout, e.WriteTimeout, idleTimeout
	return s
}

// sparing ends connections with their answers while few are left, of all or of those that the
// client may have, and at the end.
func (s *Server) sparing(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.ending.Load() || listener.Crowded(r.Context()) {
			w.Header().Set("Connection", "close")
		}
		handler.ServeHTTP(w, r)
	})
}

// Flag names the server's address.
func (s *Server) Flag() string { return s.flag }

// Connections returns how many are open, and how many were refused for that reason.
func (s *Server) Connections(reason listener.Refusal) (open int64, refused uint64) {
	return s.listener.Connections(reason)
}

// Addr is where the server listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Run answers requests until ctx ends and for the endpoint's Drain after that, and then
// those that are under way for its Grace.
func (s *Server) Run(ctx context.Context) error {
	sweeping, stop := context.WithCancel(context.WithoutCancel(ctx))
	var sweeper sync.WaitGroup
	sweeper.Go(func() { s.listener.Sweep(sweeping) })
	defer sweeper.Wait()
	defer stop()
	failed := make(chan error, 1)
	go func() {
		if s.http.TLSConfig != nil {
			failed <- s.http.ServeTLS(s.listener, "", "")
			return
		}
		failed <- s.http.Serve(listener.Headers(s.listener, s.timeouts))
	}()
	select {
	case err := <-failed:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	s.ending.Store(true)
	drain := time.NewTimer(s.drain)
	defer drain.Stop()
	select {
	case err := <-failed:
		return fmt.Errorf("serve: %w", err)
	case <-drain.C:
	}
	err := s.end(ctx)
	if serveErr := <-failed; !errors.Is(serveErr, http.ErrServerClosed) {
		err = errors.Join(err, serveErr)
	}
	return err
}

func (s *Server) end(ctx context.Context) error {
	if s.grace == 0 {
		return s.http.Close()
	}
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.grace)
	defer cancel()
	err := s.http.Shutdown(ending)
	if err != nil {
		err = errors.Join(err, s.http.Close())
	}
	return err
}
