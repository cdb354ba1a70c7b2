package webhook

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/iam4kube/iam4kube/internal/webhook/inject"
)

// metrics are what the webhook counts; docs/observability.md describes them.
type metrics struct {
	admissions *prometheus.CounterVec
	duration   prometheus.Histogram
}

func newMetrics(registry prometheus.Registerer, c *certificate) *metrics {
	m := &metrics{
		admissions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "iam4kube_admissions_total", Help: "Pods that the API server asked about, by what happened to them and why.",
		}, []string{"webhook", "outcome", "reason"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "iam4kube_admission_duration_seconds", Help: "Time from a review's header to its answer.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .5, 1, 5},
		}),
	}
	registry.MustRegister(m.admissions, m.duration, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "iam4kube_certificate_expiration_timestamp_seconds", Help: "When the serving certificate expires; 0 if there is none.",
	}, func() float64 {
		if expires := c.NotAfter(); !expires.IsZero() {
			return float64(expires.Unix())
		}
		return 0
	}))
	for _, webhook := range webhooks {
		for outcome, reasons := range inject.Reasons {
			for _, reason := range reasons {
				m.admissions.WithLabelValues(webhook, string(outcome), string(reason))
			}
		}
	}
	return m
}

func (m *metrics) decided(webhook string, d inject.Decision) {
	m.admissions.WithLabelValues(webhook, string(d.Outcome), string(d.Reason)).Inc()
}

func (m *metrics) timed(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		handler.ServeHTTP(w, r)
		m.duration.Observe(time.Since(start).Seconds())
	})
}
