//go:build !podonly

package ip2service

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"go.uber.org/zap"

	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
)

// counts are the kernel's counters of one family.
func counts(translated, rejected uint64) routes.Counters {
	return routes.Counters{Translated: translated, Rejected: rejected}
}

// What began anew is counted for its data path alone.
func TestCountersOfDataPathsAreApart(t *testing.T) {
	rules, programs := &fakeKernel{counters: map[routes.Family]routes.Counters{routes.IPv4: counts(5, 7)}}, &fakeKernel{counters: map[routes.Family]routes.Counters{routes.IPv4: counts(100, 0)}}
	registry := prometheus.NewRegistry()
	registry.MustRegister(newPackets(rules, programs))
	want := func(translated float64) {
		t.Helper()
		if have := metric(t, registry, "iam4kube_translated_connections_total", string(routes.IPv4)); have != translated {
			t.Errorf("%v, want %v", have, translated)
		}
	}
	want(105)
	rules.counters = nil
	want(105)
	programs.counters[routes.IPv4] = counts(101, 0)
	want(106)
}

// The kernel's counters begin anew with their table; those of /metrics never go back.
func TestCountersSurviveTheTables(t *testing.T) {
	kernel := &fakeKernel{}
	registry := prometheus.NewRegistry()
	registry.MustRegister(newPackets(kernel))
	check := func(ipv4, ipv6 routes.Counters) {
		t.Helper()
		for family, want := range map[routes.Family]routes.Counters{routes.IPv4: ipv4, routes.IPv6: ipv6} {
			have := counts(
				uint64(metric(t, registry, "iam4kube_translated_connections_total", string(family))),
				uint64(metric(t, registry, "iam4kube_guard_rejected_packets_total", string(family))),
			)
			if have != want {
				t.Errorf("%s: %v, want %v", family, have, want)
			}
		}
	}
	check(counts(0, 0), counts(0, 0)) // no table
	kernel.counters = map[routes.Family]routes.Counters{routes.IPv4: counts(5, 7), routes.IPv6: counts(1, 2)}
	check(counts(5, 7), counts(1, 2))
	check(counts(5, 7), counts(1, 2))
	kernel.counters[routes.IPv4] = counts(3, 0) // made anew
	check(counts(8, 7), counts(1, 2))
	kernel.counters[routes.IPv4] = counts(4, 9)
	check(counts(9, 16), counts(1, 2))
	delete(kernel.counters, routes.IPv6) // deleted
	check(counts(9, 16), counts(1, 2))
	kernel.counters[routes.IPv6] = counts(1, 1)
	check(counts(9, 16), counts(2, 3))

	// Without an answer the last ones stand, and the other metrics are there.
	kernel.broken = errors.New("no netlink")
	check(counts(9, 16), counts(2, 3))
	kernel.broken = nil
	check(counts(9, 16), counts(2, 3))
}

// All metrics of a node are named and typed as Prometheus wants it.
func TestMetricsOfANodeAreClean(t *testing.T) {
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	const content = `{"clusters":[{"name":"c","cluster":{"server":"http://127.0.0.1:1"}}],"contexts":[{"name":"c","context":{"cluster":"c"}}],"current-context":"c"}`
	if err := os.WriteFile(kubeconfig, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	n := &node{cfg: Config{Kubeconfig: kubeconfig}, log: zap.NewNop(), registry: prometheus.NewRegistry()}
	n.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		newPackets(&fakeKernel{}))
	n.reconciler = newReconciler(n.cfg, &fakeKernel{changed: func() {}}, (&fakeMachine{}).look, newMetrics(n.registry), n.log)
	if err := n.build(); err != nil {
		t.Fatal(err)
	}
	defer n.hangUp()
	n.reconciler.reconcile()
	families, err := n.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
	names := map[string]bool{}
	for _, f := range families {
		names[f.GetName()] = true
	}
	for _, one := range []string{"go_goroutines", "iam4kube_endpoints", "iam4kube_translated_connections_total", "iam4kube_informer_synced"} {
		if !names[one] {
			t.Errorf("%s is missing, and its collector with it", one)
		}
	}
}
