// Package server puts the parts of the iam4kube server together and runs them. It
// owns start, readiness, drain and stop. What the parts do is in the packages
// below, in the order of a request: metadata, identity, role, credentials, sts.
package server

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime/debug"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/types"
	k8smetadata "k8s.io/client-go/metadata"

	"github.com/iam4kube/iam4kube/internal/auxserver"
	"github.com/iam4kube/iam4kube/internal/kube"
	"github.com/iam4kube/iam4kube/internal/listener"
	"github.com/iam4kube/iam4kube/internal/logging"
	"github.com/iam4kube/iam4kube/internal/program"
	"github.com/iam4kube/iam4kube/internal/server/audit"
	"github.com/iam4kube/iam4kube/internal/server/credentials"
	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
	"github.com/iam4kube/iam4kube/internal/server/identity"
	"github.com/iam4kube/iam4kube/internal/server/imdstoken"
	"github.com/iam4kube/iam4kube/internal/server/issuer"
	"github.com/iam4kube/iam4kube/internal/server/metadata"
	"github.com/iam4kube/iam4kube/internal/server/page"
	"github.com/iam4kube/iam4kube/internal/server/podevents"
	"github.com/iam4kube/iam4kube/internal/server/podtoken"
	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/internal/server/sparsepods"
	"github.com/iam4kube/iam4kube/internal/server/sts"
	"github.com/iam4kube/iam4kube/internal/server/waiting"
)

const (
	// waitersPerAddress bounds the requests of one address that wait. All those that wait
	// take a quarter of the memory limit at most; without one there are mostPlaces.
	waitersPerAddress, mostPlaces = 64, 32768

	// connections and those of one source address. Each takes 24 KiB at most, or
	// metadata.WaitBytes while its request waits.
	connections, connectionsPerAddress = 12288, 1024

	// writeReserve is what a client has, after the longest wait, to read the answer.
	writeReserve = 30 * time.Second
)

// server is the parts that run.
type server struct {
	cfg       Config
	log       *zap.Logger
	registry  *prometheus.Registry
	watches   *kube.Watches
	index     *identity.Index
	cache     *credentials.Cache
	tokens    *imdstoken.Keys
	podTokens *podtoken.Verifier
	issuer    *issuer.Issuer // nil where the server has AWS credentials
	handler   *metadata.Server
	peers     *peers
	readiness *readiness
	// runs are the parts that work until nobody asks any more.
	runs []func(context.Context) error
	// hangUp closes the connections to the API server, after the parts have ended.
	hangUp func()
}

// Run serves until ctx ends and the drain after that is over. Its error is a
// failure to start, or of a part that should have gone on.
func Run(ctx context.Context, cfg Config, log *zap.Logger) error {
	s := &server{cfg: cfg, log: log, registry: auxserver.NewRegistry()}
	if err := s.build(ctx); err != nil {
		return err
	}
	defer s.hangUp()
	servers, err := program.Listen(ctx, log, s.endpoints()...)
	if err != nil {
		return err
	}
	auxserver.CountConnections(s.registry, servers)
	log.Info("serving", zap.Stringer(logging.Address, servers[0].Addr()), zap.Stringer(logging.AuxAddress, servers[1].Addr()))
	// All replicas have the same.
	s.peers.port = netip.MustParseAddrPort(servers[1].Addr().String()).Port()
	for _, aux := range servers[1:] {
		s.runs = append(s.runs, aux.Run)
	}
	accepting, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	s.runs = append(s.runs, func(working context.Context) error {
		defer stop()
		s.drain(ctx, working)
		return nil
	})
	err = program.RunParts(accepting, servers[0].Run, s.runs...)
	log.Info("stopped")
	return err
}

// build makes the parts. It asks nothing of the network.
func (s *server) build(ctx context.Context) error {
	records, err := audit.Open(s.cfg.AuditLog, s.registry, s.log)
	if err != nil {
		return err
	}
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
	core, err := kube.NewCore(config, httpClient)
	if err != nil {
		return err
	}
	pods, err := sparsepods.New(config, httpClient, identity.PodAnnotations...)
	if err != nil {
		return err
	}
	metadataClient, err := k8smetadata.NewForConfigAndClient(k8smetadata.ConfigFor(config), httpClient)
	if err != nil {
		return fmt.Errorf("make a client for the API server: %w", err)
	}
	assumer, err := s.stsClient(ctx, core.Secrets(s.cfg.Namespace))
	if err != nil {
		return err
	}

	hub := waiting.NewHub(waitersPerAddress, waitingPlaces(debug.SetMemoryLimit(-1)))
	events := podevents.New(core.Events, s.registry, s.log)
	s.cache = credentials.New(assumer, hub, s.registry, s.log)
	sessions := s.cfg.Sessions
	sessions.Duration = s.cfg.SessionDuration
	var forwarders []types.NamespacedName
	for _, account := range s.cfg.TokenForwarders {
		forwarders = append(forwarders, splitName(account))
	}
	s.index = identity.New(identity.Config{
		Hub: hub, Roles: s.cache, Observer: events, Sessions: sessions, Forwarders: forwarders,
		DenyByDefault: s.cfg.DenyRolesByDefault, Registry: s.registry,
	})
	s.podTokens = podtoken.New(core, hub, s.registry, s.log)
	s.cache.OnDenied(func(r *role.Role, denial *sts.Error) { s.index.Refused(r, denial.Error(), denial.Retry) })
	s.tokens = imdstoken.NewKeys(core.Secrets(s.cfg.Namespace), s.registry, s.log)
	s.watches = kube.NewWatches(reach, core, s.registry)
	s.peers = newPeers(s.watches, func() []netip.Addr { return s.index.Replicas(ownAddresses()) }, s.registry, s.log)
	s.readiness = newReadiness(s.watches, s.peers, s.cache, s.tokens, s.podTokens.Known, s.cfg.ReadyWithin)
	s.handler = metadata.New(metadata.Config{
		Identity: s.index, Credentials: s.cache, Tokens: s.tokens, PodTokens: s.podTokens, Events: events, Hub: hub,
		MaxWait: s.cfg.MaxWait, IMDSv1: s.cfg.IMDSv1,
		Region: s.cfg.Region, AvailabilityZone: s.cfg.AvailabilityZone,
		Registry: s.registry, Log: s.log, Audit: records,
	})
	s.runs = []func(context.Context) error{
		kube.Follow(s.watches, s.index.Pods(pods)),
		kube.Follow(s.watches, s.index.ServiceAccounts(metadataClient)),
		kube.Follow(s.watches, s.index.Nodes(core.Nodes())),
		kube.Follow(s.watches, s.index.Namespaces(metadataClient)),
		kube.Follow(s.watches, s.tokens.Resource()),
		s.watches.Run, s.peers.Run, newStaleness(s.watches, s.cfg.MaxStaleness, s.index.SetStale, s.registry, s.log).Run, s.tokens.Run, s.podTokens.Run, events.Run, s.cache.Run, s.readiness.Run, records.Run,
	}
	s.runs = append(s.runs, s.identityParts(assumer, events)...)
	return nil
}

// identityParts are those that concern the server's own identity at STS.
func (s *server) identityParts(assumer *sts.Client, events *podevents.Recorder) []func(context.Context) error {
	if s.issuer == nil {
		return []func(context.Context) error{func(ctx context.Context) error { tellIdentity(ctx, assumer, s.log); return nil }}
	}
	tell := func(problem string) {
		if self := s.index.Self(ownAddresses()); self != nil {
			events.Record(self, diagnosis.Unpublished(problem))
		}
	}
	return []func(context.Context) error{
		kube.Follow(s.watches, s.issuer.Resource()), s.issuer.Run, issuer.NewChecker(s.issuer, s.registry, tell).Run,
	}
}

// stsClient is a client with AWS credentials, or one with tokens of an issuer, which it makes.
func (s *server) stsClient(ctx context.Context, secrets kube.Secrets) (*sts.Client, error) {
	limiter := sts.NewLimiter(s.cfg.STSRateLimit, s.cfg.STSRateBurst)
	if !s.cfg.Sessions.WebIdentity {
		return sts.New(ctx, limiter, s.cfg.Region, s.registry)
	}
	s.issuer = issuer.New(s.cfg.Issuer, secrets, s.registry, s.log)
	return sts.NewWithWebIdentity(ctx, limiter, s.cfg.Region, s.issuer, s.registry)
}

// tellIdentity logs whom AWS takes the server for, or why that cannot be learnt. Nothing waits
// for it.
func tellIdentity(ctx context.Context, client *sts.Client, log *zap.Logger) {
	self, err := client.GetCallerIdentity(ctx)
	var failure *sts.Error
	switch {
	case ctx.Err() != nil:
	case errors.As(err, &failure):
		log.Error("could not learn the server's own AWS identity", zap.String(logging.Kind, string(failure.Kind)),
			zap.Error(failure), zap.NamedError(logging.Cause, failure.Cause))
	default:
		log.Info("the server's own AWS identity", zap.String(logging.ARN, self.ARN),
			zap.String(logging.Account, self.Account), zap.String(logging.Region, self.Region))
	}
}

// waitingPlaces is how many requests may wait, with this limit of the Go runtime's memory
// in bytes.
func waitingPlaces(memoryLimit int64) int {
	return int(min(memoryLimit/4/metadata.WaitBytes, mostPlaces))
}

// endpoints are that of the metadata API, first, and the auxiliary ones.
func (s *server) endpoints() []program.Endpoint {
	// What waits at the end may wait to its end.
	longest := s.cfg.MaxWait + writeReserve
	api := program.Endpoint{
		Flag: "--listen-on", Address: s.cfg.ListenOn, Handler: s.handler, WriteTimeout: longest, Grace: longest,
		Limits: listener.Limits{Connections: connections, PerSource: connectionsPerAddress},
	}
	aux := auxserver.Endpoints(s.cfg.AuxListenOn, s.cfg.Debug, s.registry, s.readiness.Err, map[string]func() any{
		"pods":  func() any { return s.index.Dump() },
		"roles": func() any { return s.cache.Dump() },
	}, page.New(page.Source{
		Roles: s.cache.Dump, Namespaces: s.index.DumpNamespaces, Ready: s.readiness.Err, Metrics: s.registry,
		Replicas: func() []netip.Addr { return s.index.Replicas(ownAddresses()) },
	}))
	aux[0].Handler = answerPeers(s.watches, aux[0].Handler)
	return append([]program.Endpoint{api}, aux...)
}

// drain waits for the end of ctx, and then keeps requests coming while the cluster takes
// notice that this replica is not ready any more. A part that fails, which ends working,
// leaves nothing to wait for.
func (s *server) drain(ctx, working context.Context) {
	select {
	case <-ctx.Done():
	case <-working.Done():
		return
	}
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
