//go:build !podonly

package ip2service

import (
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
)

// Endpoints of which nothing was heard for too long may be somebody else: nobody is led there
// until something is heard, and no connection stays.
func TestStaleEndpointsGetNothing(t *testing.T) {
	const most = 15 * time.Minute
	var heard atomic.Pointer[time.Time] // nil: just now
	start := func(t *testing.T, most time.Duration) *rig {
		t.Helper()
		heard.Store(nil)
		return startRigWith(t, func(b *rig) {
			b.cfg.MaxStaleness = most
			b.silence = func() time.Duration {
				if at := heard.Load(); at != nil {
					return time.Since(*at)
				}
				return 0
			}
			there := routes.Routes{
				Hooks: routes.Node, Intercept: b.cfg.Intercept,
				New: []netip.AddrPort{netip.MustParseAddrPort(two)}, Live: []netip.AddrPort{netip.MustParseAddrPort(two)},
			}
			b.kernel.there = &there
		})
	}
	t.Run("heard once", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := start(t, most)
			b.list("ready "+one, "terminating "+six)
			advance(time.Hour)
			now := time.Now()
			heard.Store(&now)
			advance(most)
			b.wantRules(t, []string{one, six}, []string{one, six})
			b.wantErr(t, nil)
			advance(resync + time.Second)
			b.wantRules(t, nil, nil)
			b.wantErr(t, errStale)
			if logs := b.takeLogs(); count(logs, "longer than --max-staleness") != 1 || b.metric(t, "iam4kube_stale", "") != 1 {
				t.Errorf("logs: %q", logs)
			}
			// One of them changed, and it is said only then that something was heard.
			b.list("ready " + two)
			b.wantRules(t, nil, nil)
			heard.Store(nil)
			advance(staleRetry)
			b.wantRules(t, []string{two}, []string{two})
			b.wantErr(t, nil)
			if logs := b.takeLogs(); count(logs, "was heard again") != 1 || b.metric(t, "iam4kube_stale", "") != 0 {
				t.Errorf("logs: %q", logs)
			}
		})
	})
	t.Run("never heard", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := start(t, most)
			advance(most)
			b.wantRules(t, []string{two}, []string{two}) // of the run before
			b.wantErr(t, errNotSynced)
			advance(resync + time.Second)
			b.wantRules(t, nil, nil)
			b.wantErr(t, errStale)
			if closed(b.inSync) {
				t.Error("in sync")
			}
			b.list("ready " + one)
			b.wantRules(t, []string{one}, []string{one})
			b.wantErr(t, nil)
		})
	})
	t.Run("no limit", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := start(t, 0)
			b.list("ready " + one)
			now := time.Now()
			heard.Store(&now)
			advance(100 * time.Hour)
			b.wantRules(t, []string{one}, []string{one})
			b.wantErr(t, nil)
		})
	})
}
