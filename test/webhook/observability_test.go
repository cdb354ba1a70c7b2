package webhook

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/internal/webhook/inject"
	"github.com/iam4kube/iam4kube/test/docs"
)

// TestMetricsAreDocumented: the page's table has each of its metrics with type, labels
// and label values, and no others.
func TestMetricsAreDocumented(t *testing.T) {
	h := startReady(t)
	_, section, _ := strings.Cut(docs.Text(t, "webhook.md"), "\n## Metrics\n")
	section, _, _ = strings.Cut(section, "\n## ")
	documented := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z0-9_]+)` (\\|.*)$").FindAllStringSubmatch(section, -1) {
		documented[row[1]] = row[2]
	}
	have := map[string]bool{}
	for name, family := range h.metrics(t) {
		switch {
		case !strings.HasPrefix(name, "iam4kube_"), name == "iam4kube_build_info", name == "iam4kube_informer_synced", name == "iam4kube_watch_last_event_timestamp_seconds":
			continue
		}
		have[name] = true
		row := documented[name]
		if !strings.HasPrefix(row, "| "+strings.ToLower(family.GetType().String())+" |") {
			t.Errorf("%s is a %s: %s", name, family.GetType(), row)
		}
		for _, m := range family.GetMetric() {
			for _, l := range m.GetLabel() {
				if !strings.Contains(row, "`"+l.GetName()+"`") || !strings.Contains(row, "`"+l.GetValue()+"`") {
					t.Errorf("%s: no label %s=%s in: %s", name, l.GetName(), l.GetValue(), row)
				}
			}
		}
	}
	if !slices.Equal(slices.Sorted(maps.Keys(have)), slices.Sorted(maps.Keys(documented))) {
		t.Errorf("have %v, documented %v", have, documented)
	}
}

func TestOneLineForEachDecision(t *testing.T) {
	h := startReady(t)
	namespace := newNamespace(t, inject.Enabled, nil)
	named := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "app"}, Spec: plainSpec()}
	generated := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "app-"}, Spec: plainSpec()}
	taken := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "taken"}, Spec: plainSpec()}
	taken.Spec.Containers[0].Name = inject.ContainerName
	for _, pod := range []*corev1.Pod{named, generated, taken} {
		if _, err := create(t, namespace, pod); (err != nil) != (pod == taken) {
			t.Fatal(err)
		}
	}
	var have []string
	for _, line := range append(h.logs.Lines("admitted a pod"), h.logs.Lines("denied a pod")...) {
		if line["namespace"] != namespace {
			continue
		}
		text := []string{line["level"].(string), line["pod"].(string), line["outcome"].(string), line["reason"].(string)}
		if cause, ok := line["cause"].(string); ok {
			text = append(text, cause[:30])
		}
		have = append(have, strings.Join(text, " "))
	}
	want := []string{
		"info app injected new", "info app unchanged present", "info app- injected new", "info app- unchanged present",
		"warn taken denied name-taken a container of the pod is call",
	}
	if !slices.Equal(have, want) {
		t.Errorf("%q", have)
	}
	if h.sum(t, "iam4kube_admissions_total", "denied", "name-taken") != 1 {
		t.Error("the denial is not counted")
	}
}
