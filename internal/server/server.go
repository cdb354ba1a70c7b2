// Package server puts the parts of the iam4kube server together and runs them. It
// owns start, readiness, drain and stop. What the parts do is in the packages
// below, in the order of a request: metadata, identity, role, credentials, sts.
package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"
	k8smetadata "k8s.io/client-go/metadata"

	"github.com/iam4kube/iam4kube/internal/auxserver"
	"github.com/iam4kube/iam4kube/internal/kube"
	"github.com/iam4kube/iam4kube/internal/logging"
	"github.com/iam4kube/iam4kube/internal/server/credentials"
	"github.com/iam4kube/iam4kube/internal/server/identity"
	"github.com/iam4kube/iam4kube/internal/server/imdstoken"
	"github.com/iam4kube/iam4kube/internal/server/metadata"
	"github.com/iam4kube/iam4kube/internal/server/podevents"
	"github.com/iam4kube/iam4kube/internal/server/sts"
	"github.com/iam4kube/iam4kube/internal/server/waiting"
)

const (
	// waitersPerAddress and waitersInTotal bound the requests that wait. Each holds
	// a connection and a goroutine.
	waitersPerAddress, waitersInTotal = 64, 16384

	// headerTimeout and maxHeaderBytes bound what a slow or a hostile client holds.
	headerTimeout  = 10 * time.Second
	maxHeaderBytes = 32 << 10
	idleTimeout    = 2 * time.Minute
	// writeReserve is what a client has, after the longest wait, to read the answer.
	writeReserve = 30 * time.Second
)

// server is the parts that run.
type server struct {
	cfg       Config
	log       *zap.Logger
	listener  net.Listener
	aux       net.Listener
	debug     net.Listener // nil without --debug
	registry  *prometheus.Registry
	watches   *kube.Watches
	index     *identity.Index
	cache     *credentials.Cache
	tokens    *imdstoken.Keys
	handler   *metadata.Server
	readiness *readiness
	// runs are the parts that work until nobody asks any more.
	runs []func(context.Context) error
	// hangUp closes the connections to the API server, after the parts have ended.
	hangUp func()
}

// Run serves until ctx ends and the drain after that is over. Its error is a
// failure to start, or of a part that should have gone on.
func Run(ctx context.Context, cfg Config, log *zap.Logger) error {
	s := &server{cfg: cfg, log: log, registry: prometheus.NewRegistry()}
	s.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if err := s.build(ctx); err != nil {
		return err
	}
	if err := s.listen(ctx); err != nil {
		return err
	}
	// The parts outlive ctx: requests are served to the end of the drain.
	working, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, working := errgroup.WithContext(working)
	for _, run := range s.runs {
		group.Go(func() error { return run(working) })
	}
	group.Go(func() error {
		defer stop()
		return s.serve(ctx, working)
	})
	err := group.Wait()
	s.hangUp()
	return err
}

// build makes the parts. It asks nothing of the network.
func (s *server) build(ctx context.Context) error {
	reach := &kube.Reach{}
	config, err := kube.Config(s.cfg.Kubeconfig, "iam4kube-server", reach)
	if err != nil {
		return err
	}
	httpClient, hangUp, err := kube.HTTPClient(config)
	if err != nil {
		return err
	}
	s.hangUp = hangUp
	client, err := kubernetes.NewForConfigAndClient(config, httpClient)
	if err != nil {
		return fmt.Errorf("make a client for the API server: %w", err)
	}
	metadataClient, err := k8smetadata.NewForConfigAndClient(k8smetadata.ConfigFor(config), httpClient)
	if err != nil {
		return fmt.Errorf("make a client for the API server: %w", err)
	}
	assumer, err := sts.New(ctx, sts.NewLimiter(s.cfg.STSRateLimit, s.cfg.STSRateBurst), s.cfg.Region, s.registry)
	if err != nil {
		return err
	}

	hub := waiting.NewHub(waitersPerAddress, waitersInTotal)
	events := podevents.New(client.CoreV1(), s.registry, s.log)
	s.cache = credentials.New(assumer, hub, s.registry, s.log)
	s.index = identity.New(hub, s.cache, events, s.cfg.SessionDuration, s.registry)
	s.tokens = imdstoken.NewKeys(client.CoreV1().Secrets(s.cfg.Namespace), s.registry, s.log)
	s.watches = kube.NewWatches(reach, client.Discovery().RESTClient(), s.registry)
	s.readiness = newReadiness(s.watches, s.cache, s.tokens, s.cfg.ReadyWithin)
	s.handler = metadata.New(metadata.Config{
		Identity: s.index, Credentials: s.cache, Tokens: s.tokens, Events: events, Hub: hub,
		MaxWait: s.cfg.MaxWait, IMDSv1: s.cfg.IMDSv1,
		Region: s.cfg.Region, AvailabilityZone: s.cfg.AvailabilityZone,
		Registry: s.registry, Log: s.log,
	})
	s.runs = []func(context.Context) error{
		kube.Follow(s.watches, s.index.Pods(client)),
		kube.Follow(s.watches, s.index.ServiceAccounts(metadataClient)),
		kube.Follow(s.watches, s.index.Nodes(metadataClient)),
		kube.Follow(s.watches, s.tokens.Resource()),
		s.watches.Run, s.tokens.Run, events.Run, s.cache.Run, s.readiness.Run,
	}
	return nil
}

// listen opens every listener, so that a port that is taken ends the start.
func (s *server) listen(ctx context.Context) error {
	addresses := []struct {
		flag, address string
		listener      *net.Listener
	}{
		{"--listen-on", s.cfg.ListenOn, &s.listener},
		{"--aux-listen-on", s.cfg.AuxListenOn, &s.aux},
		{"--debug", auxserver.DebugAddress, &s.debug},
	}
	if !s.cfg.Debug {
		addresses = addresses[:2]
	}
	for _, a := range addresses {
		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", a.address)
		if err != nil {
			s.closeListeners()
			return fmt.Errorf("%s: %w", a.flag, err)
		}
		*a.listener = listener
	}
	s.runs = append(s.runs, func(ctx context.Context) error {
		return auxserver.Serve(ctx, s.aux, auxserver.Handler(s.registry, s.readiness.Err), s.log)
	})
	if s.debug != nil {
		dumps := map[string]func() any{
			"pods":  func() any { return s.index.Dump() },
			"roles": func() any { return s.cache.Dump() },
		}
		s.runs = append(s.runs, func(ctx context.Context) error {
			return auxserver.Serve(ctx, s.debug, auxserver.Debug(dumps), s.log)
		})
	}
	return nil
}

func (s *server) closeListeners() {
	for _, l := range []net.Listener{s.listener, s.aux, s.debug} {
		if l != nil {
			_ = l.Close() // nothing was accepted yet
		}
	}
}

// serve answers requests until ctx ends and the drain is over, or until working
// ends because a part has failed.
func (s *server) serve(ctx, working context.Context) error {
	httpServer := &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: headerTimeout,
		WriteTimeout:      s.cfg.MaxWait + writeReserve,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          logging.ForHTTP(s.log),
		// OPTIONS * is a request like any other.
		DisableGeneralOptionsHandler: true,
	}
	failed := make(chan error, 1)
	go func() { failed <- httpServer.Serve(s.listener) }()
	s.log.Info("serving", zap.Stringer(logging.Address, s.listener.Addr()), zap.Stringer(logging.AuxAddress, s.aux.Addr()))

	select {
	case err := <-failed:
		return fmt.Errorf("serve: %w", err)
	case <-working.Done():
	case <-ctx.Done():
		s.drain(working)
	}
	// What waits now may wait to its end.
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.MaxWait+writeReserve)
	defer cancel()
	err := httpServer.Shutdown(ending)
	if err != nil {
		err = errors.Join(err, httpServer.Close())
	}
	if serveErr := <-failed; !errors.Is(serveErr, http.ErrServerClosed) {
		err = errors.Join(err, serveErr)
	}
	s.log.Info("stopped")
	return err
}

// drain keeps accepting requests while the cluster takes notice that this replica
// is not ready any more.
func (s *server) drain(working context.Context) {
	s.readiness.Drain()
	s.handler.Drain()
	s.log.Info("draining", zap.Duration(logging.Drain, s.cfg.Drain))
	timer := time.NewTimer(s.cfg.Drain)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-working.Done():
	}
}
