package program

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"go.uber.org/zap"

	"github.com/iam4kube/iam4kube/internal/logging"
)

// What a slow or a hostile client holds is bounded on every listener of every program.
const (
	headerTimeout  = 10 * time.Second
	maxHeaderBytes = 32 << 10
	idleTimeout    = 2 * time.Minute
)

// Endpoint is an address on which a program answers HTTP requests.
type Endpoint struct {
	// Flag names the address in the error of a start that did not get it.
	Flag, Address string
	Handler       http.Handler
	// TLS is nil for plain HTTP.
	TLS *tls.Config
	// ReadTimeout bounds the reading of a request, WriteTimeout that of its header to the
	// end of its answer; 0: no bound.
	ReadTimeout, WriteTimeout time.Duration
	// Grace is how long requests may take that are under way at the end; 0: they are cut.
	Grace time.Duration
}

// Server has an Endpoint's listener.
type Server struct {
	http     http.Server
	listener net.Listener
	grace    time.Duration
}

// Listen opens the listener of every endpoint, or of none: an address that is taken ends
// the start. Connections are accepted by Run.
func Listen(ctx context.Context, log *zap.Logger, endpoints ...Endpoint) ([]*Server, error) {
	var servers []*Server
	for _, e := range endpoints {
		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", e.Address)
		if err != nil {
			for _, s := range servers {
				_ = s.listener.Close() // nothing was accepted yet
			}
			return nil, fmt.Errorf("%s: %w", e.Flag, err)
		}
		servers = append(servers, &Server{listener: listener, grace: e.Grace, http: http.Server{
			Handler:           e.Handler,
			TLSConfig:         e.TLS,
			ReadHeaderTimeout: headerTimeout,
			ReadTimeout:       e.ReadTimeout,
			WriteTimeout:      e.WriteTimeout,
			IdleTimeout:       idleTimeout,
			MaxHeaderBytes:    maxHeaderBytes,
			ErrorLog:          logging.ForHTTP(log),
			// OPTIONS * is a request like any other.
			DisableGeneralOptionsHandler: true,
		}})
	}
	return servers, nil
}

// Addr is where the server listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Run answers requests until ctx ends, and then those that are under way for as long as
// the endpoint allows.
func (s *Server) Run(ctx context.Context) error {
	failed := make(chan error, 1)
	go func() {
		if s.http.TLSConfig != nil {
			failed <- s.http.ServeTLS(s.listener, "", "")
			return
		}
		failed <- s.http.Serve(s.listener)
	}()
	select {
	case err := <-failed:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
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
