//go:build !podonly

package ip2service

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/iam4kube/iam4kube/internal/ip2service/backends"
	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
)

// metrics are what ip2service counts; docs/observability.md describes them.
type metrics struct {
	endpoints *prometheus.GaugeVec
	applies   *prometheus.CounterVec
	duration  prometheus.Histogram
	repairs   prometheus.Counter
	lastSync  prometheus.Gauge
	beside    prometheus.Gauge
	stale     prometheus.Gauge
}

func newMetrics(registry prometheus.Registerer) *metrics {
	m := &metrics{
		endpoints: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "iam4kube_endpoints", Help: "Endpoints of the Service by state.",
		}, []string{"state"}),
		applies: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "iam4kube_ruleset_applies_total", Help: "Transactions that changed the kernel's rules, by outcome.",
		}, []string{"outcome"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "iam4kube_ruleset_apply_duration_seconds", Help: "Time that reading and changing the kernel's rules took.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 5},
		}),
		repairs: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "iam4kube_ruleset_repairs_total", Help: "Changes to the rules by others that were changed back.",
		}),
		lastSync: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "iam4kube_ruleset_last_sync_timestamp_seconds", Help: "When the kernel's rules were last seen or made as they should be.",
		}),
		beside: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "iam4kube_bpf_host_routing_suspected", Help: "1 if packets of pods may pass netfilter by.",
		}),
	}
	m.stale = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "iam4kube_stale", Help: "1 while what pods ask is rejected because nothing was heard from the API server for longer than --max-staleness.",
	})
	registry.MustRegister(m.stale, m.endpoints, m.applies, m.duration, m.repairs, m.lastSync, m.beside)
	for _, s := range backends.States {
		m.endpoints.WithLabelValues(string(s))
	}
	for _, outcome := range []string{"success", "failure"} {
		m.applies.WithLabelValues(outcome)
	}
	return m
}

func (m *metrics) observe(endpoints []backends.Endpoint, beside []string, stale bool) {
	count := map[backends.State]float64{}
	for _, e := range endpoints {
		count[e.State]++
	}
	for _, s := range backends.States {
		m.endpoints.WithLabelValues(string(s)).Set(count[s])
	}
	m.beside.Set(min(1, float64(len(beside))))
	m.stale.Set(0)
	if stale {
		m.stale.Set(1)
	}
}

func (m *metrics) applied(err error, took time.Duration) {
	outcome := "success"
	if err != nil {
		outcome = "failure"
	}
	m.applies.WithLabelValues(outcome).Inc()
	m.duration.Observe(took.Seconds())
}

func (m *metrics) synced(at time.Time) { m.lastSync.Set(float64(at.UnixNano()) / 1e9) }

var (
	translatedDesc = prometheus.NewDesc("iam4kube_translated_connections_total",
		"Connections that were led to an endpoint, of pods, and of the host with --intercept-host.", []string{"family"}, nil)
	rejectedDesc = prometheus.NewDesc("iam4kube_guard_rejected_packets_total",
		"Packets that the guard rejected, of pods, and of the host with --intercept-host.", []string{"family"}, nil)
)

// packets exports the counters of the kernel, those of all data paths together. Each begins
// anew when somebody deletes the tables or pins; what was counted before is kept here.
type packets struct {
	mu    sync.Mutex
	paths []counted
}

// counted is a data path with what it counted last, and what before that began anew.
type counted struct {
	kernel     dataPath
	last, base map[routes.Family]routes.Counters
}

func newPackets(paths ...dataPath) *packets {
	p := &packets{}
	for _, kernel := range paths {
		p.paths = append(p.paths, counted{kernel, map[routes.Family]routes.Counters{}, map[routes.Family]routes.Counters{}})
	}
	return p
}

// Describe implements prometheus.Collector.
func (p *packets) Describe(ch chan<- *prometheus.Desc) {
	ch <- translatedDesc
	ch <- rejectedDesc
}

// Collect implements prometheus.Collector.
func (p *packets) Collect(ch chan<- prometheus.Metric) {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := map[routes.Family]routes.Counters{}
	for _, path := range p.paths {
		path.count()
		for _, family := range routes.Families {
			last, base := path.last[family], path.base[family]
			all[family] = routes.Counters{
				Translated: all[family].Translated + base.Translated + last.Translated,
				Rejected:   all[family].Rejected + base.Rejected + last.Rejected,
			}
		}
	}
	for _, family := range routes.Families {
		ch <- prometheus.MustNewConstMetric(translatedDesc, prometheus.CounterValue, float64(all[family].Translated), string(family))
		ch <- prometheus.MustNewConstMetric(rejectedDesc, prometheus.CounterValue, float64(all[family].Rejected), string(family))
	}
}

// count asks the kernel. Without an answer the last one stands: an invalid metric would take
// all others with it.
func (c counted) count() {
	now, err := c.kernel.Counters()
	if err != nil {
		return
	}
	for _, family := range routes.Families {
		value, last, base := now[family], c.last[family], c.base[family]
		if value.Translated < last.Translated {
			base.Translated += last.Translated
		}
		if value.Rejected < last.Rejected {
			base.Rejected += last.Rejected
		}
		c.last[family], c.base[family] = value, base
	}
}
