//go:build !podonly

package ip2service

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
)

// A pod's routes lead to the Service, or the program ends with the kernel's reason.
func TestPodRoutesAreBroughtIn(t *testing.T) {
	to := []netip.AddrPort{netip.MustParseAddrPort("10.96.0.7:80")}
	cfg := Config{Mode: ModePod, Intercept: intercept, To: to}
	kernel := &fakeKernel{changed: func() {}}
	if err := runPod(t.Context(), cfg, kernel, zap.NewNop()); err != nil {
		t.Fatal(err)
	}
	if want := text(&routes.Routes{Hooks: routes.Pod, Intercept: intercept, New: to, Live: to}); kernel.text() != want {
		t.Errorf("want %s, have %s", want, kernel.text())
	}
	cfg.AllowDNS = true
	if err := runPod(t.Context(), cfg, kernel, zap.NewNop()); err != nil {
		t.Fatal(err)
	}
	if want := text(&routes.Routes{Hooks: routes.Pod, Intercept: intercept, DNS: true, New: to, Live: to}); kernel.text() != want {
		t.Errorf("with DNS: want %s, have %s", want, kernel.text())
	}
	for name, fault := range map[string][2]error{"before": {errKernel, nil}, "after": {nil, errKernel}} {
		kernel.fail(fault[0], fault[1])
		if err := runPod(t.Context(), cfg, kernel, zap.NewNop()); !errors.Is(err, errKernel) {
			t.Errorf("failed %s the effect: %v", name, err)
		}
	}
}

// So do a node's.
func TestNodeRoutesLetDNSPass(t *testing.T) {
	for _, allow := range []bool{true, false} {
		b := newRig()
		b.cfg.AllowDNS = allow
		b.reconcile()
		if b.kernel.there == nil || b.kernel.there.DNS != allow {
			t.Errorf("--allow-dns=%v: %s", allow, b.kernel.text())
		}
	}
}

func TestCleanupSaysWhyItFailed(t *testing.T) {
	kernel := &fakeKernel{there: &routes.Routes{}, broken: errKernel}
	if err := cleanup(kernel, zap.NewNop()); !errors.Is(err, errKernel) || kernel.text() == "" {
		t.Errorf("%v, left %q", err, kernel.text())
	}
	kernel.broken = nil
	for range 2 { // the second time there is nothing
		if err := cleanup(kernel, zap.NewNop()); err != nil || kernel.text() != "" {
			t.Errorf("%v, left %q", err, kernel.text())
		}
	}
}

// Notifications that cannot be had are asked for again, and what was missed meanwhile is
// looked for.
func TestWatchIsTakenUpAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRig()
		n := &node{reconciler: b.reconciler, log: b.log}
		b.kernel.failWatch(errKernel)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- b.Run(ctx) }()
		go func() { ended <- n.watchKernel(b.kernel)(ctx) }()
		b.list("ready " + one)
		b.kernel.flush(false)
		advance(3 * watchRetry)
		if b.kernel.text() != "" || count(b.takeLogs(), "only noticed at the next resync") != 4 {
			t.Errorf("want four attempts and no repair, have %s", b.kernel.text())
		}
		b.kernel.failWatch(nil)
		advance(watchRetry)
		b.wantRules(t, []string{one}, []string{one})
		b.kernel.flush(true)
		synctest.Wait()
		b.wantRules(t, []string{one}, []string{one})
		now := time.Now()
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		if took := time.Since(now); took > 0 {
			t.Errorf("ended after %v", took)
		}
	})
}
