package monitoring

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/iam4kube/iam4kube/test/checkout"
	"github.com/iam4kube/iam4kube/test/controlplane"
)

// tool is one of Prometheus' programs, which make test-tools brings.
func tool(t *testing.T, name string) string {
	t.Helper()
	cache, err := controlplane.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(cache, "prometheus", name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: make test-tools brings it", err)
	}
	return path
}

// TestFilesAreUpToDate: nobody changed a file that is made, or the table without making them.
func TestFilesAreUpToDate(t *testing.T) {
	files, err := Files()
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range files {
		have, err := os.ReadFile(checkout.Path(path))
		if err != nil || !bytes.Equal(have, want) {
			t.Errorf("%s is not what the table makes of it, run make monitoring: %v", path, err)
		}
	}
}

// promtest is a test of promtool, https://prometheus.io/docs/prometheus/latest/configuration/unit_testing_rules/
type promtest struct {
	Name        string       `json:"name"`
	Interval    string       `json:"interval"`
	InputSeries []promseries `json:"input_series"`
	Expressions []promexpr   `json:"promql_expr_test"`
}

type promseries struct {
	Series string `json:"series"`
	Values string `json:"values"`
}

type promexpr struct {
	Expr    string       `json:"expr"`
	Time    string       `json:"eval_time"`
	Samples []promsample `json:"exp_samples"`
}

type promsample struct {
	Labels string  `json:"labels"`
	Value  float64 `json:"value"`
}

const (
	// Causes begin after 20 minutes; none lasts or waits so long that it is over later.
	before, after = "19m", "65m"
	// firing counts the alerts that fire, or did since the start.
	firing = `count by (alertname) (max_over_time(ALERTS{alertstate="firing"}[3h]))`
)

// simulation is Healthy with changes, and which alerts fire at which moment.
func simulation(name string, changes Series, fires map[string][]string) promtest {
	test := promtest{Name: name, Interval: "1m"}
	series := maps.Clone(Healthy)
	maps.Copy(series, changes)
	for _, s := range slices.Sorted(maps.Keys(series)) {
		test.InputSeries = append(test.InputSeries, promseries{s, series[s]})
	}
	for _, at := range slices.Sorted(maps.Keys(fires)) {
		expr := promexpr{Expr: firing, Time: at, Samples: []promsample{}}
		for _, alert := range fires[at] {
			expr.Samples = append(expr.Samples, promsample{`{alertname="` + alert + `"}`, 1})
		}
		test.Expressions = append(test.Expressions, expr)
	}
	return test
}

// TestAlerts: each fires when its cause is there, and no other than the table says; before,
// and in an hour in which all is well, none does. What promtool runs is the file that users
// get.
func TestAlerts(t *testing.T) {
	tests := []promtest{simulation("healthy", nil, map[string][]string{before: nil, after: nil})}
	for _, a := range Alerts {
		if len(a.Cause) == 0 {
			t.Errorf("%s has no cause", a.Name)
		}
		for s := range a.Cause {
			if Healthy[s] == "" {
				t.Errorf("%s: %s is not among the healthy series, so it would not be seen that it does not fire then", a.Name, s)
			}
		}
		tests = append(tests, simulation(a.Name, a.Cause, map[string][]string{before: nil, after: append([]string{a.Name}, a.Also...)}))
	}
	promtool(t, tests, true)
}

// TestAlertsCanFail: promtool would see an alert that does not fire, and one that should not.
func TestAlertsCanFail(t *testing.T) {
	first := Alerts[0]
	promtool(t, []promtest{simulation("not fired", nil, map[string][]string{after: {first.Name}})}, false)
	promtool(t, []promtest{simulation("fired", first.Cause, map[string][]string{after: nil})}, false)
}

func promtool(t *testing.T, tests []promtest, pass bool) {
	t.Helper()
	file, err := yaml.Marshal(map[string]any{
		"rule_files": []string{checkout.Path("observability", "rules.yaml")}, "evaluation_interval": "1m", "tests": tests,
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "tests.yaml")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	output, err := exec.CommandContext(t.Context(), tool(t, "promtool"), "test", "rules", path).CombinedOutput()
	if (err == nil) != pass {
		t.Errorf("%v: %s", err, output)
	}
}
