package sts

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	attempts *prometheus.CounterVec
	duration prometheus.Histogram
	refused  prometheus.Gauge
}

func newMetrics(registry prometheus.Registerer, limiter *Limiter) *metrics {
	m := &metrics{
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "iam4kube_sts_attempts_total",
			Help: "AssumeRole attempts by outcome; identity means that STS refuses the server's own credentials.",
		}, []string{"outcome"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "iam4kube_sts_attempt_duration_seconds",
			Help:    "Time that an AssumeRole attempt took.",
			Buckets: prometheus.ExponentialBuckets(0.005, 2, 12),
		}),
	}
	m.refused = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "iam4kube_sts_identity_refused",
		Help: "1 if the server's own AWS credentials were refused or missing at the last attempt that STS has decided.",
	})
	m.attempts.WithLabelValues("success")
	for _, kind := range Kinds {
		m.attempts.WithLabelValues(string(kind))
	}
	registry.MustRegister(m.attempts, m.duration, m.refused, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "iam4kube_sts_rate_limit",
		Help: "Attempts a second that the limiter lets through now; below the configured rate while STS throttles.",
	}, limiter.Rate))
	return m
}

func (m *metrics) observe(err *Error, took time.Duration) {
	outcome := "success"
	if err != nil {
		outcome = string(err.Kind)
	}
	m.observeIdentity(err)
	m.attempts.WithLabelValues(outcome).Inc()
	m.duration.Observe(took.Seconds())
}

// observeIdentity notes what the outcome of any call says of the server's own credentials.
func (m *metrics) observeIdentity(err *Error) {
	switch {
	case err == nil || err.Kind == Denied:
		m.refused.Set(0)
	case err.Kind == Identity:
		m.refused.Set(1)
	}
}
