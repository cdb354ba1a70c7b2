package cluster

import (
	"strconv"
	"strings"
)

// Metrics are the samples of a page of /metrics by name and labels, as they are written there:
// iam4kube_roles{state="valid"}. A parser of all that Prometheus can write is a large
// dependency, and these are our own programs' pages.
type Metrics map[string]float64

// ParseMetrics reads the text format.
func ParseMetrics(text string) Metrics {
	metrics := Metrics{}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		name, value, found := strings.Cut(strings.TrimSpace(line), "} ")
		if found {
			name += "}"
		} else if name, value, found = strings.Cut(strings.TrimSpace(line), " "); !found {
			continue
		}
		if number, err := strconv.ParseFloat(value, 64); err == nil {
			metrics[name] = number
		}
	}
	return metrics
}

// Lacks is the first of these metrics that is not on the page, empty if all are. A server of
// another version may not have what this plugin reads, and that is not 0.
func (m Metrics) Lacks(names ...string) string {
	for _, name := range names {
		if _, found := m[name]; !found && len(m.Of(name, "")) == 0 {
			return name
		}
	}
	return ""
}

// Of returns the samples of one metric by the value of one of its labels.
func (m Metrics) Of(metric, label string) map[string]float64 {
	values := map[string]float64{}
	for name, value := range m {
		if strings.HasPrefix(name, metric+"{") {
			values[m.label(name, label)] += value
		}
	}
	return values
}

// Label is a label's value in the only series of a metric.
func (m Metrics) Label(metric, label string) string {
	for name := range m {
		if strings.HasPrefix(name, metric+"{") {
			return m.label(name, label)
		}
	}
	return ""
}

func (Metrics) label(series, label string) string {
	_, after, found := strings.Cut(series, "{"+label+`="`)
	if !found { // a longer label may end with the name of this one
		_, after, _ = strings.Cut(series, ","+label+`="`)
	}
	value, _, _ := strings.Cut(after, `"`)
	return value
}
