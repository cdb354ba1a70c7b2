package identity

import "github.com/prometheus/client_golang/prometheus"

var (
	podsDesc = prometheus.NewDesc("iam4kube_pods",
		"Pods in the index, by whether a request from their addresses can be theirs (no: hostNetwork, or all containers have terminated).",
		[]string{"served"}, nil)
	accountsDesc = prometheus.NewDesc("iam4kube_service_accounts",
		"ServiceAccounts by what their annotations say: a role, none, something wrong, or a role that the namespace does not allow; deleted ones are those whose last pods are still terminating.",
		[]string{"role"}, nil)
	sharedDesc = prometheus.NewDesc("iam4kube_ambiguous_addresses",
		"Addresses that more than one live pod claims; their requests are refused.", nil, nil)
)

// collector counts when it is asked, so that the gauges cannot disagree with the
// index.
type collector struct{ index *Index }

// Describe implements prometheus.Collector.
func (collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- podsDesc
	ch <- accountsDesc
	ch <- sharedDesc
}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	served := map[string]int{"yes": 0, "no": 0}
	roles := map[string]int{"valid": 0, "none": 0, "invalid": 0, "not-allowed": 0, "deleted": 0}
	ambiguous := 0
	c.index.changes.Lock()
	for _, p := range c.index.pods {
		if p.hasOwnAddresses() {
			served["yes"]++
		} else {
			served["no"]++
		}
	}
	for _, a := range c.index.accounts {
		switch {
		case !a.exists && a.said != nil:
			roles["deleted"]++
		case !a.exists: // only named by pods
		case a.wrong != "":
			roles["invalid"]++
		case a.role != nil:
			roles["valid"]++
		case a.said != nil:
			roles["not-allowed"]++
		default:
			roles["none"]++
		}
	}
	for address, pods := range c.index.addresses {
		if p, _ := c.index.owner(address, pods); p == nil {
			ambiguous++
		}
	}
	c.index.changes.Unlock()
	for label, n := range served {
		ch <- prometheus.MustNewConstMetric(podsDesc, prometheus.GaugeValue, float64(n), label)
	}
	for label, n := range roles {
		ch <- prometheus.MustNewConstMetric(accountsDesc, prometheus.GaugeValue, float64(n), label)
	}
	ch <- prometheus.MustNewConstMetric(sharedDesc, prometheus.GaugeValue, float64(ambiguous))
}
