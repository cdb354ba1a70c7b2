package monitoring

import (
	"os"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	"sigs.k8s.io/yaml"

	"github.com/iam4kube/iam4kube/test/checkout"
)

// TestMonitorsFindThePods: each PodMonitor selects the pods of one workload of manifests/, by
// a port that they have.
func TestMonitorsFindThePods(t *testing.T) {
	files, err := Files()
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for document := range strings.SplitSeq(string(files["observability/podmonitors.yaml"]), "---\n") {
		var monitor struct {
			Metadata struct{ Name, Namespace string }
			Spec     struct {
				Selector            struct{ MatchLabels map[string]string }
				PodMetricsEndpoints []struct{ Port string }
			}
		}
		if err := yaml.Unmarshal([]byte(document), &monitor); err != nil {
			t.Fatal(err)
		}
		found++
		workload := workload(t, monitor.Metadata.Name)
		for name, value := range monitor.Spec.Selector.MatchLabels {
			if workload.Spec.Template.Labels[name] != value {
				t.Errorf("%s selects %s=%s, the pods have %v", monitor.Metadata.Name, name, value, workload.Spec.Template.Labels)
			}
		}
		port := false
		for _, p := range workload.Spec.Template.Spec.Containers[0].Ports {
			port = port || p.Name == monitor.Spec.PodMetricsEndpoints[0].Port
		}
		if !port || workload.Namespace != monitor.Metadata.Namespace || len(monitor.Spec.Selector.MatchLabels) == 0 {
			t.Errorf("%+v", monitor)
		}
	}
	if found != 3 {
		t.Errorf("%d PodMonitors", found)
	}
}

// workload is the Deployment or DaemonSet of manifests/base with this name; what is read of
// them is alike.
func workload(t *testing.T, name string) appsv1.Deployment {
	t.Helper()
	for _, kind := range []string{"deployment", "daemonset"} {
		text, err := os.ReadFile(checkout.Path("manifests", "base", strings.TrimPrefix(name, "iam4kube-")+"-"+kind+".yaml"))
		if err != nil {
			continue
		}
		for document := range strings.SplitSeq(string(text), "\n---\n") {
			var w appsv1.Deployment
			if err := yaml.Unmarshal([]byte(document), &w); err == nil && strings.EqualFold(w.Kind, kind) && w.Name == name {
				return w
			}
		}
	}
	t.Fatalf("no workload %s", name)
	return appsv1.Deployment{}
}
