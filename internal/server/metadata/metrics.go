package metadata

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
)

// Outcomes of a wait.
const (
	outcomeAnswered = "answered"
	outcomeTimeout  = "timeout"
	outcomeGone     = "client-gone"
	outcomeRefused  = "too-many"
)

// buckets resolve a warm answer of 0.1 ms as well as a wait of 15 s.
var buckets = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 15, 20}

type metrics struct {
	duration     [endpoints]prometheus.Observer
	ok           [endpoints]prometheus.Counter
	requests     *prometheus.CounterVec
	waitingNow   map[diagnosis.Piece]prometheus.Gauge
	waitDuration *prometheus.HistogramVec
	v1, v2       prometheus.Counter
}

func newMetrics(registry prometheus.Registerer) *metrics {
	duration := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "iam4kube_http_request_duration_seconds", Help: "Time from the request's header to its answer, waiting included.", Buckets: buckets,
	}, []string{"endpoint"})
	waitingNow := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "iam4kube_waiting_requests", Help: "Requests that wait now, by the piece that is missing.",
	}, []string{"missing"})
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "iam4kube_http_requests_total", Help: "Requests by endpoint and status; 499 means that the client went away while it waited.",
		}, []string{"endpoint", "code"}),
		waitingNow: map[diagnosis.Piece]prometheus.Gauge{},
		waitDuration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "iam4kube_wait_duration_seconds", Help: "Time that requests waited, by the piece that was missing first and by how the wait ended.", Buckets: buckets,
		}, []string{"missing", "outcome"}),
	}
	versions := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "iam4kube_imds_requests_total",
		Help: "Requests of the metadata API without a session token (v1), whether that is allowed or not, and with a good one (v2).",
	}, []string{"version"})
	m.v1, m.v2 = versions.WithLabelValues("v1"), versions.WithLabelValues("v2")
	// Looked up once: a warm request should not pay for it.
	for e := range endpoint(endpoints) {
		m.duration[e] = duration.WithLabelValues(e.String())
		m.ok[e] = m.requests.WithLabelValues(e.String(), strconv.Itoa(http.StatusOK))
	}
	for _, p := range diagnosis.Pieces {
		m.waitingNow[p] = waitingNow.WithLabelValues(string(p))
		for _, outcome := range []string{outcomeAnswered, outcomeTimeout, outcomeGone, outcomeRefused} {
			m.waitDuration.WithLabelValues(string(p), outcome)
		}
	}
	registry.MustRegister(duration, m.requests, waitingNow, m.waitDuration, versions)
	return m
}

func (m *metrics) request(e endpoint, status int, took time.Duration) {
	m.duration[e].Observe(took.Seconds())
	if status == http.StatusOK {
		m.ok[e].Inc()
		return
	}
	m.requests.WithLabelValues(e.String(), strconv.Itoa(status)).Inc()
}

// version counts a request by the version of the protocol, if its endpoint has two.
func (m *metrics) version(e endpoint, protocol string) {
	switch e {
	case endpointRole, endpointCredentials, endpointInfo, endpointZone, endpointRegion, endpointDocument:
	case endpointToken, endpointContainer, endpointReady, endpointNone:
		return
	}
	if protocol == protocolIMDSv1 {
		m.v1.Inc()
		return
	}
	m.v2.Inc()
}

func (m *metrics) waiting(p diagnosis.Piece, n float64) { m.waitingNow[p].Add(n) }

func (m *metrics) waited(first diagnosis.Piece, outcome string, took time.Duration) {
	m.waitDuration.WithLabelValues(string(first), outcome).Observe(took.Seconds())
}
