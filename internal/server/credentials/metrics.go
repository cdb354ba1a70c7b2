package credentials

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/iam4kube/iam4kube/internal/server/sts"
)

var (
	rolesDesc = prometheus.NewDesc("iam4kube_roles",
		"Wanted roles by state: valid (credentials in memory), valid-failing (in memory, but the last refresh failed), pending (not tried yet), or the kind of the last failure.",
		[]string{"state"}, nil)
	queueDesc = prometheus.NewDesc("iam4kube_sts_queue_length",
		"Roles that are due and wait for a place at the STS limiter, by class, most urgent first.",
		[]string{"class"}, nil)
	expiryDesc = prometheus.NewDesc("iam4kube_credentials_soonest_expiration_timestamp_seconds",
		"When the first of the valid credentials in memory expires; 0 if there are none.", nil, nil)
)

const (
	stateValid        = "valid"
	stateValidFailing = "valid-failing"
	statePending      = "pending"
)

// state names what Get would find; the names are those of iam4kube_roles.
func (e *entry) state(now time.Time) string {
	switch valid := e.issued.valid(now); {
	case valid && e.failure == nil:
		return stateValid
	case valid:
		return stateValidFailing
	case e.failure != nil:
		return string(e.failure.Kind)
	}
	return statePending
}

// collector computes the gauges when they are asked for, so that they cannot
// disagree with the cache.
type collector struct{ cache *Cache }

// Describe implements prometheus.Collector.
func (collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- rolesDesc
	ch <- queueDesc
	ch <- expiryDesc
}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	states := map[string]int{stateValid: 0, stateValidFailing: 0, statePending: 0}
	for _, kind := range sts.Kinds {
		states[string(kind)] = 0
	}
	var queue [classes]int
	var soonest float64
	now := time.Now()
	c.cache.planning.Lock()
	for _, e := range c.cache.entries {
		states[e.state(now)]++
		if !e.inFlight && !c.cache.dueAt(e, now).After(now) {
			queue[c.cache.classOf(e, now)]++
		}
		if e.issued.valid(now) {
			if at := float64(e.issued.Expiration.Unix()); soonest == 0 || at < soonest {
				soonest = at
			}
		}
	}
	c.cache.planning.Unlock()
	for state, n := range states {
		ch <- prometheus.MustNewConstMetric(rolesDesc, prometheus.GaugeValue, float64(n), state)
	}
	for i, n := range queue {
		ch <- prometheus.MustNewConstMetric(queueDesc, prometheus.GaugeValue, float64(n), class(i).String())
	}
	ch <- prometheus.MustNewConstMetric(expiryDesc, prometheus.GaugeValue, soonest)
}
