//go:build !podonly

package ip2service

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/iam4kube/iam4kube/internal/ip2service/bpf"
	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
)

// fakePrograms is a data path of programs.
type fakePrograms struct{ fakeKernel }

// Attached implements programsPath.
func (p *fakePrograms) Attached() bool { return p.text() != "" }

// Programs implements programsPath.
func (p *fakePrograms) Programs() bpf.Programs { return bpf.Programs{Attached: 6, Effective: 5} }

type twoPaths struct {
	*dataPaths
	rules    *fakeKernel
	programs *fakePrograms
	logs     *observer.ObservedLogs
}

func newTwoPaths(choice string) twoPaths {
	core, logs := observer.New(zap.InfoLevel)
	rules, programs := &fakeKernel{changed: func() {}}, &fakePrograms{fakeKernel{changed: func() {}}}
	d := &dataPaths{rules: rules, programs: programs, log: zap.New(core), choice: choice, inForce: choice != dataPathNFTables}
	return twoPaths{d, rules, programs, logs}
}

var node1 = routes.Routes{Hooks: routes.Node, Intercept: intercept}

// With eBPF both have the routes, whichever of them fails, and all is well only with both.
func TestBothDataPathsAreKept(t *testing.T) {
	p := newTwoPaths(dataPathEBPF)
	for range 2 {
		if _, err := p.Sync(node1); err != nil || p.rules.text() == "" || p.programs.text() == "" || p.Netfilter() {
			t.Fatalf("%v, rules %s, programs %s, netfilter alone: %v", err, p.rules.text(), p.programs.text(), p.Netfilter())
		}
	}
	if changed, err := p.Sync(node1); changed || err != nil {
		t.Errorf("again: changed %v, %v", changed, err)
	}
	p.programs.flush(false)
	if changed, err := p.Sync(node1); !changed || err != nil {
		t.Errorf("programs taken away: changed %v, %v", changed, err)
	}
	p.rules.fail(errKernel, nil)
	p.programs.flush(false)
	if _, err := p.Sync(node1); !errors.Is(err, errKernel) || p.programs.text() == "" {
		t.Errorf("the rules fail: %v, programs %s", err, p.programs.text())
	}
	p.rules.fail(nil, nil)
	for _, reason := range []error{errKernel, routes.ErrUnsupported, routes.ErrPermission} {
		p.programs.fail(reason, nil)
		p.rules.flush(false)
		if _, err := p.Sync(node1); !errors.Is(err, reason) || p.rules.text() == "" || !p.Netfilter() {
			t.Errorf("the programs fail: %v, rules %s, netfilter alone: %v", err, p.rules.text(), p.Netfilter())
		}
	}
}

// auto has programs where they can be had, and goes on without where they cannot, for as long
// as it runs. What may pass is no reason to go on without.
func TestAutoChoosesWhatCanBeHad(t *testing.T) {
	for _, reason := range []error{routes.ErrUnsupported, routes.ErrPermission} {
		p := newTwoPaths(dataPathAuto)
		p.programs.fail(fmt.Errorf("why: %w", reason), nil)
		if _, err := p.Sync(node1); err != nil || p.rules.text() == "" || !p.Netfilter() {
			t.Errorf("%v, rules %s", err, p.rules.text())
		}
		if all := p.logs.All(); len(all) != 1 || all[0].Level != zap.WarnLevel || !strings.Contains(fmt.Sprint(all[0].ContextMap()), "why") {
			t.Errorf("logged %v", all)
		}
		p.programs.fail(nil, nil)
		if _, err := p.Sync(node1); err != nil || p.programs.text() != "" {
			t.Errorf("%v, programs %s", err, p.programs.text())
		}
	}
	p := newTwoPaths(dataPathAuto)
	p.programs.fail(errKernel, nil)
	if _, err := p.Sync(node1); !errors.Is(err, errKernel) {
		t.Error(err)
	}
	p.programs.fail(nil, nil)
	if _, err := p.Sync(node1); err != nil || p.programs.text() == "" || p.Netfilter() || p.logs.Len() != 1 {
		t.Errorf("%v, programs %s, logged %v", err, p.programs.text(), p.logs.All())
	}
	p.programs.fail(routes.ErrUnsupported, nil) // later it is a failure
	if _, err := p.Sync(node1); !errors.Is(err, routes.ErrUnsupported) {
		t.Error(err)
	}
}

// Where auto finds programs of an earlier run, they stay although all of them cannot be had any more: rules
// may not see what they see.
func TestAutoKeepsProgramsOfAnEarlierRun(t *testing.T) {
	for _, reason := range []error{routes.ErrUnsupported, routes.ErrPermission} {
		p := newTwoPaths(dataPathAuto)
		p.programs.there = &routes.Routes{}
		p.programs.fail(reason, nil)
		for range 2 {
			if _, err := p.Sync(node1); !errors.Is(err, reason) || p.programs.text() == "" || p.rules.text() == "" {
				t.Errorf("%v, programs %q, rules %q", err, p.programs.text(), p.rules.text())
			}
		}
	}
}

// To rules that could not be brought in, programs leave nothing.
func TestProgramsCountOnNoRulesThatFail(t *testing.T) {
	p := newTwoPaths(dataPathEBPF)
	for _, failure := range []error{errKernel, nil} {
		p.rules.fail(failure, nil)
		if _, err := p.Sync(node1); !errors.Is(err, failure) || p.programs.there.Bypassed != (failure != nil) {
			t.Errorf("%v, %+v", err, p.programs.there)
		}
	}
}

// With nftables the programs of an earlier run go, and not before the rules are in.
func TestProgramsOfAnEarlierRunGo(t *testing.T) {
	p := newTwoPaths(dataPathNFTables)
	p.programs.there = &routes.Routes{}
	p.rules.fail(errKernel, nil)
	if _, err := p.Sync(node1); !errors.Is(err, errKernel) || p.programs.text() == "" {
		t.Errorf("%v, programs %q", err, p.programs.text())
	}
	p.rules.fail(nil, nil)
	p.programs.broken = errKernel
	if _, err := p.Sync(node1); !errors.Is(err, errKernel) {
		t.Errorf("programs that stay: %v", err)
	}
	p.programs.broken = nil
	for range 2 {
		if _, err := p.Sync(node1); err != nil || p.programs.text() != "" || !p.Netfilter() {
			t.Errorf("%v, programs %q", err, p.programs.text())
		}
	}
	if p.logs.Len() != 1 {
		t.Errorf("logged %v", p.logs.All())
	}
}

func TestCleanupRemovesBoth(t *testing.T) {
	for _, broken := range []string{"", "rules", "programs"} {
		p := newTwoPaths(dataPathNFTables)
		p.rules.there, p.programs.there = &routes.Routes{}, &routes.Routes{}
		switch broken {
		case "rules":
			p.rules.broken = errKernel
		case "programs":
			p.programs.broken = errKernel
		}
		removed, err := p.Remove()
		if !removed || (err != nil) != (broken != "") || (p.rules.text() != "") != (broken == "rules") || (p.programs.text() != "") != (broken == "programs") {
			t.Errorf("%s broken: removed %v, %v, left %q and %q", broken, removed, err, p.rules.text(), p.programs.text())
		}
	}
}

// What cannot be watched by one is watched by none, and taken up again as a whole.
func TestBothDataPathsAreWatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(dataPathEBPF)
		p.programs.failWatch(errKernel)
		if err := p.Watch(t.Context(), func() {}); !errors.Is(err, errKernel) {
			t.Error(err)
		}
		p.programs.failWatch(nil)
		ctx, cancel := context.WithCancel(t.Context())
		ended, changes := make(chan error), make(chan struct{}, 10)
		go func() { ended <- p.Watch(ctx, func() { changes <- struct{}{} }) }()
		synctest.Wait()
		p.rules.flush(true)
		p.programs.flush(true)
		if len(changes) != 4 { // both at the beginning, and each
			t.Errorf("told of %d changes", len(changes))
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestCountersOfBothDataPaths(t *testing.T) {
	p := newTwoPaths(dataPathEBPF)
	p.rules.counters = map[routes.Family]routes.Counters{routes.IPv4: counts(1, 2)}
	p.programs.counters = map[routes.Family]routes.Counters{routes.IPv4: counts(10, 20), routes.IPv6: counts(5, 6)}
	sum, err := p.Counters()
	if err != nil || sum[routes.IPv4] != counts(11, 22) || sum[routes.IPv6] != counts(5, 6) {
		t.Errorf("%v, %v", sum, err)
	}
	if p.rules.counters[routes.IPv4] != counts(1, 2) {
		t.Errorf("counted into the rules' own: %v", p.rules.counters)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(p)
	for series, want := range map[string]float64{"nftables ip": 1, "ebpf ip": 10, "ebpf ip6": 5, "nftables ip6": 0} {
		if have := metric(t, registry, "iam4kube_data_path_connections_total", strings.Fields(series)...); have != want {
			t.Errorf("%s: %v, want %v", series, have, want)
		}
	}
	if have := metric(t, registry, "iam4kube_bpf_programs", "effective"); have != 5 {
		t.Errorf("%v programs", have)
	}
}
