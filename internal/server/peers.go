package server

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/iam4kube/iam4kube/internal/kube"
	"github.com/iam4kube/iam4kube/internal/logging"
)

const (
	// hearingPath is where a replica says on --aux-listen-on whether it hears from the API
	// server: 200 or 503.
	hearingPath = "/readyz/watches"

	askEvery   = 10 * time.Second
	askTimeout = 3 * time.Second
	// askAtMost bounds what one round asks. One that hears is enough.
	askAtMost = 16
)

// peers finds out whether this replica alone has lost the API server. In a total outage
// nobody is served better if replicas are taken away. But one that is cut off while others
// are not goes by what it knew, and pods come and go that it does not hear of: the others
// should answer in its place.
//
// It asks them. Their addresses are those that it heard of last, and their word is taken as it
// is: whoever has such an address now, or is on the way there, can make a replica unready that
// has heard nothing for two minutes anyway, and nothing else. That requests come from addresses
// that nobody knows says nothing: whoever can send with such an address could end all replicas
// in an outage.
type peers struct {
	watches *kube.Watches
	// addresses are those of the other replicas, as known last.
	addresses func() []netip.Addr
	// port is that of their --aux-listen-on, which is this one's.
	port   uint16
	client *http.Client
	log    *zap.Logger

	// hearer is who heard from the API server when this replica did not; nil: nobody.
	hearer atomic.Pointer[netip.Addr]
}

func newPeers(watches *kube.Watches, addresses func() []netip.Addr, registry prometheus.Registerer, log *zap.Logger) *peers {
	p := &peers{watches: watches, addresses: addresses, log: log, client: &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       askTimeout,
	}}
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "iam4kube_cut_off", Help: "1 while this replica is not ready because it hears nothing from the API server and another replica does.",
	}, func() float64 {
		if p.Err() != nil {
			return 1
		}
		return 0
	}))
	return p
}

// Run asks while nothing is heard, until ctx ends.
func (p *peers) Run(ctx context.Context) error {
	ticker := time.NewTicker(askEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			p.look(ctx)
		case <-ctx.Done():
			return nil
		}
	}
}

func (p *peers) look(ctx context.Context) {
	switch {
	case !p.watches.Silent():
		if p.hearer.Swap(nil) != nil {
			p.log.Info("not cut off from the API server any more")
		}
	case p.hearer.Load() != nil: // and what this replica knows becomes only older
	case p.watches.Broken() != nil: // the API server answers it
	default:
		if hearer, ok := p.ask(ctx); ok {
			p.hearer.Store(&hearer)
			p.log.Warn("cut off from the API server: not ready, because another replica hears from it", zap.Stringer(logging.Address, hearer))
		}
	}
}

// ask returns a replica that hears from the API server.
func (p *peers) ask(ctx context.Context) (hearer netip.Addr, ok bool) {
	all := p.addresses()
	answers := make(chan netip.Addr, askAtMost)
	var asking sync.WaitGroup
	for _, a := range all[:min(len(all), askAtMost)] {
		asking.Go(func() {
			if p.hears(ctx, a) {
				answers <- a
			}
		})
	}
	asking.Wait()
	close(answers)
	hearer, ok = <-answers
	return hearer, ok
}

func (p *peers) hears(ctx context.Context, a netip.Addr) bool {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+netip.AddrPortFrom(a, p.port).String()+hearingPath, http.NoBody)
	if err != nil {
		return false
	}
	response, err := p.client.Do(request)
	if err != nil {
		return false
	}
	_ = response.Body.Close()
	return response.StatusCode == http.StatusOK
}

// Err is that this replica is cut off.
func (p *peers) Err() error {
	hearer := p.hearer.Load()
	if hearer == nil || !p.watches.Silent() {
		return nil
	}
	return fmt.Errorf("cut off from the API server: this replica has heard nothing for over two minutes, and replica %s does", hearer)
}

// answerPeers answers what peers ask, and leaves the rest to next.
func answerPeers(watches *kube.Watches, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != hearingPath || r.Method != http.MethodGet {
			next.ServeHTTP(w, r)
			return
		}
		if err := watches.Hearing(); err != nil {
			http.Error(w, "not ready: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ok\n")
	})
}

// ownAddresses are those of this machine's or pod's interfaces; none if they cannot be read.
func ownAddresses() (own []netip.Addr) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	for _, a := range all {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil {
			own = append(own, prefix.Addr().Unmap())
		}
	}
	return own
}
