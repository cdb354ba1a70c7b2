package server

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/iam4kube/iam4kube/internal/kube"
	"github.com/iam4kube/iam4kube/internal/logging"
)

const staleCheckEvery = time.Second

// staleness ends that requests are answered by what was known long ago: addresses get other
// owners, and a replica that hears nothing would give them what belonged to the last one.
type staleness struct {
	watches *kube.Watches
	// most is --max-staleness; 0: any.
	most time.Duration
	set  func(stale bool)
	log  *zap.Logger

	stale atomic.Bool
}

func newStaleness(watches *kube.Watches, most time.Duration, set func(bool), registry prometheus.Registerer, log *zap.Logger) *staleness {
	s := &staleness{watches: watches, most: most, set: set, log: log}
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "iam4kube_stale", Help: "1 while requests are refused because nothing was heard from the API server for longer than --max-staleness.",
	}, func() float64 {
		if s.stale.Load() {
			return 1
		}
		return 0
	}))
	return s
}

// Run compares until ctx ends.
func (s *staleness) Run(ctx context.Context) error {
	ticker := time.NewTicker(staleCheckEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			s.look()
		case <-ctx.Done():
			return nil
		}
	}
}

func (s *staleness) look() {
	silence := s.watches.Silence()
	stale := s.most > 0 && silence > s.most
	if stale == s.stale.Load() {
		return
	}
	s.set(stale)
	s.stale.Store(stale)
	if stale {
		s.log.Error("nothing was heard from the API server for longer than --max-staleness: requests are refused", zap.Duration(logging.Silence, silence))
		return
	}
	s.log.Info("the API server was heard again: requests are answered")
}
