package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/iam4kube/iam4kube/internal/kube"
	"github.com/iam4kube/iam4kube/internal/server/credentials"
	"github.com/iam4kube/iam4kube/internal/server/imdstoken"
)

// Reasons for not being ready.
var (
	errDraining  = errors.New("draining: the server was told to stop")
	errNotSynced = errors.New("the first list of pods, ServiceAccounts, nodes, namespaces, the token key or the issuer's key has not arrived")
	errNoKey     = errors.New("the Secret " + imdstoken.SecretName + " has no usable key")
	errNoKeys    = errors.New("the API server has not told the keys of ServiceAccounts' tokens: does the server's ServiceAccount have get on /.well-known/openid-configuration and /openid/v1/jwks?")
	errNotFilled = errors.New("roles known at the start have not been tried yet")
)

// readiness says whether requests should be sent here.
type readiness struct {
	watches *kube.Watches
	peers   *peers
	cache   *credentials.Cache
	tokens  *imdstoken.Keys
	// keysKnown says whether ServiceAccounts' tokens can be verified. It keeps the server
	// from being ready no longer than roles do: who asks by his address needs none.
	keysKnown func() bool
	// fillWithin is how long after the first lists roles that were not tried, or in vain
	// because of the server's own identity, still count.
	fillWithin time.Duration

	synced, filled, late, draining chan struct{}
}

func newReadiness(watches *kube.Watches, peers *peers, cache *credentials.Cache, tokens *imdstoken.Keys, keysKnown func() bool, fillWithin time.Duration) *readiness {
	return &readiness{
		watches: watches, peers: peers, cache: cache, tokens: tokens, keysKnown: keysKnown, fillWithin: fillWithin,
		synced: make(chan struct{}), filled: make(chan struct{}), late: make(chan struct{}), draining: make(chan struct{}),
	}
}

// Run follows the start.
func (r *readiness) Run(ctx context.Context) error {
	if err := r.watches.Sync(ctx); err != nil {
		return nil // only the end of ctx ends Sync
	}
	// Not before, so that an outage of the API server does not use the time up.
	timer := time.NewTimer(r.fillWithin)
	defer timer.Stop()
	r.cache.Fill()
	close(r.synced)
	select {
	case <-r.cache.Filled():
	case <-timer.C:
		close(r.late)
	case <-ctx.Done():
		return nil
	}
	close(r.filled)
	if isClosed(r.late) {
		return nil
	}
	select {
	case <-timer.C:
		close(r.late)
	case <-ctx.Done():
	}
	return nil
}

// Drain makes the server not ready for good. Call it once.
func (r *readiness) Drain() { close(r.draining) }

// Err is why the server is not ready, nil if it is.
func (r *readiness) Err() error {
	switch {
	case isClosed(r.draining):
		return errDraining
	case !isClosed(r.synced):
		return errNotSynced
	case !r.tokens.Known():
		return errNoKey
	case !isClosed(r.filled):
		if failure := r.cache.Unfilled(); failure != nil {
			return fmt.Errorf("%w: %w", errNotFilled, failure)
		}
		return errNotFilled
	case !r.keysKnown() && !isClosed(r.late):
		return errNoKeys
	}
	if err := r.watches.Broken(); err != nil {
		return err
	}
	return r.peers.Err()
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
