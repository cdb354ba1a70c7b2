package monitoring

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/iam4kube/iam4kube/test/checkout"
	"github.com/iam4kube/iam4kube/test/environment"
)

const prometheusAddress = "127.0.0.1:9095" // the namespace is the test's own

// rulesFile has the rules that users get, but for the time that an expression has to be true,
// which a test does not have. The expressions are theirs.
func rulesFile(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(checkout.Path("observability", "rules.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "rules.yaml")
	text = regexp.MustCompile(`(?m)^( +for:) .*$`).ReplaceAll(text, []byte("$1 0s"))
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// scrapeConfigs are what the operator makes of the PodMonitors where these are the pods, by
// their names, with where their metrics are.
func scrapeConfigs(t *testing.T, pods map[string]string) (configs []object) {
	t.Helper()
	text, err := os.ReadFile(checkout.Path("observability", "podmonitors.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for document := range strings.SplitSeq(string(text), "---\n") {
		var monitor struct {
			Metadata struct{ Name, Namespace string }
			Spec     struct {
				PodMetricsEndpoints []struct {
					Port        string
					HonorLabels bool
				}
			}
		}
		if err := yaml.Unmarshal([]byte(document), &monitor); err != nil {
			t.Fatal(err)
		}
		name, endpoint := monitor.Metadata.Name, monitor.Spec.PodMetricsEndpoints[0]
		var targets []object
		for pod, address := range pods {
			if strings.HasPrefix(pod, name+"-") {
				targets = append(targets, object{"targets": []string{address}, "labels": object{
					"namespace": monitor.Metadata.Namespace, "pod": pod, "container": strings.TrimPrefix(name, "iam4kube-"), "endpoint": endpoint.Port,
				}})
			}
		}
		configs = append(configs, object{
			"job_name": monitor.Metadata.Namespace + "/" + name, "honor_labels": endpoint.HonorLabels, "static_configs": targets,
		})
	}
	return configs
}

// startPrometheus starts one that looks at these pods. Its time-out is its interval, and on a busy
// machine a second is too little for an answer.
func startPrometheus(t *testing.T, pods map[string]string) {
	t.Helper()
	configuration, err := yaml.Marshal(object{
		"global":     object{"scrape_interval": "5s", "scrape_timeout": "5s", "evaluation_interval": "1s"},
		"rule_files": []string{rulesFile(t)}, "scrape_configs": scrapeConfigs(t, pods),
	})
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "prometheus.yml"), configuration, 0o600); err != nil {
		t.Fatal(err)
	}
	var logs environment.Logs
	command := exec.Command(tool(t, "prometheus"), "--config.file", filepath.Join(folder, "prometheus.yml"),
		"--storage.tsdb.path", filepath.Join(folder, "data"), "--web.listen-address", prometheusAddress)
	command.Stderr = &logs
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait() // killed
		if t.Failed() {
			t.Log(logs.String())
		}
	})
	environment.Eventually(t, within, func() error {
		response, err := http.Get("http://" + prometheusAddress + "/-/ready")
		if err != nil {
			return err
		}
		_ = response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return errors.New(response.Status)
		}
		return nil
	})
}

func ask(t *testing.T, path string, answer any) {
	t.Helper()
	response, err := http.Get("http://" + prometheusAddress + path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	if err := json.NewDecoder(response.Body).Decode(answer); err != nil {
		t.Fatal(err)
	}
}

func isThere(t *testing.T, expr string) error {
	t.Helper()
	var answer struct {
		Status, Error string
		Data          struct{ Result []any }
	}
	ask(t, "/api/v1/query?query="+url.QueryEscape(expr), &answer)
	if answer.Status != "success" || len(answer.Data.Result) == 0 {
		return fmt.Errorf("%s: nothing is there: %s", expr, answer.Error)
	}
	return nil
}

// labels are what an alert has, or some of that.
type labels = map[string]string

// alertsNow are the alerts that fire now, by name, each with the labels of what it fires for, and
// when all rules had been looked at last.
func alertsNow(t *testing.T) (fire map[string][]labels, at time.Time) {
	t.Helper()
	var rules struct {
		Data struct {
			Groups []struct {
				LastEvaluation time.Time
				Rules          []struct {
					Name, Health, LastError string
					Alerts                  []struct {
						State  string
						Labels labels
					}
				}
			}
		}
	}
	ask(t, "/api/v1/rules", &rules)
	fire, count := map[string][]labels{}, 0
	for _, group := range rules.Data.Groups {
		if at.IsZero() || group.LastEvaluation.Before(at) {
			at = group.LastEvaluation
		}
		for _, r := range group.Rules {
			count++
			if r.Health == "err" {
				t.Errorf("%+v", r)
			}
			for _, a := range r.Alerts {
				fire[r.Name] = append(fire[r.Name], a.Labels)
			}
		}
	}
	if count != len(Alerts) {
		t.Fatalf("%d rules", count)
	}
	return fire, at
}

// looks calls look with the alerts that fire, about as often as the rules are looked at, until it
// has seen enough. Why it has not is told if that takes too long.
func looks(t *testing.T, within time.Duration, look func(fire map[string][]labels, at time.Time) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	ticker := time.NewTicker(300 * time.Millisecond)
	defer ticker.Stop()
	for {
		fire, at := alertsNow(t)
		err := look(fire, at)
		if err == nil {
			return
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			t.Fatalf("not within %v: %v", within, err)
		}
	}
}

// nothingFires waits until the rules were looked at this often, and sees that no expression is
// true.
func nothingFires(t *testing.T, times int) {
	t.Helper()
	var last time.Time
	seen := 0
	looks(t, within, func(fire map[string][]labels, at time.Time) error {
		if len(fire) > 0 {
			t.Fatalf("all is well, and these fire: %v", fire)
		}
		if at.After(last) {
			seen, last = seen+1, at
		}
		if seen < times {
			return fmt.Errorf("the rules were looked at %d times", seen)
		}
		return nil
	})
}

// waitFiring returns once the alert fires with these labels. Another that is not expected is
// told of once.
func waitFiring(t *testing.T, alert string, with labels, expected map[string]bool) {
	t.Helper()
	looks(t, 4*time.Minute, func(fire map[string][]labels, _ time.Time) error {
		for name := range fire {
			if !expected[name] {
				t.Errorf("%s fires, by whatever raises %s: %v", name, alert, fire[name])
				expected[name] = true
			}
		}
		for _, have := range fire[alert] {
			if subset(with, have) {
				return nil
			}
		}
		return fmt.Errorf("%s with %v does not fire, but %v", alert, with, fire)
	})
}

func subset(of, all labels) bool {
	for name, value := range of {
		if all[name] != value {
			return false
		}
	}
	return true
}
