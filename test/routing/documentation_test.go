package routing

import (
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/iam4kube/iam4kube/test/docs"
	"github.com/iam4kube/iam4kube/test/netns"
	"github.com/iam4kube/iam4kube/test/node"
)

// The page has each metric with its type and labels, and names no other.
func TestDocumentedMetrics(t *testing.T) {
	const page = "routing.md"
	netns.NewFarSide(t)
	service := cluster.NewService()
	service.Set(t, "1", node.Ready("10.244.1.2"))
	i := service.Start(t)
	i.WaitReady(t)
	status, text := i.Get(t, "/metrics")
	if status != http.StatusOK {
		t.Fatal(status, text)
	}
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v, %v", problems, err)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	table := docs.Rows(t, page, "Metrics")
	for name, family := range families {
		if !strings.HasPrefix(name, "iam4kube_") {
			delete(families, name)
			continue
		}
		labels := map[string]bool{}
		for _, m := range family.GetMetric() {
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = true
			}
		}
		row := table[name]
		if row == nil {
			t.Errorf("%s is not documented", name)
			continue
		}
		documented := slices.Sorted(slices.Values(docs.InBackquotes(row[1])))
		if row[0] != strings.ToLower(family.GetType().String()) || !slices.Equal(slices.Sorted(maps.Keys(labels)), documented) {
			t.Errorf("%s is a %s with labels %v, documented as %v", name, family.GetType(), labels, row[:2])
		}
	}
	for _, name := range regexp.MustCompile(`iam4kube_[a-z0-9_]+`).FindAllString(docs.Text(t, page), -1) {
		if families[name] == nil {
			t.Errorf("%s is documented and not exported", name)
		}
	}
}
