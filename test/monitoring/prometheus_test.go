package monitoring

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
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

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/iam4kube/iam4kube/internal/logging"
	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/internal/webhook"
	"github.com/iam4kube/iam4kube/test/checkout"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/netns"
	"github.com/iam4kube/iam4kube/test/node"
)

var env *environment.Environment

// TestMain runs the tests in a network namespace of their own, because ip2service makes of it a
// node of a cluster.
func TestMain(m *testing.M) {
	if netns.Check() != nil { // still where modules can be fetched
		_, controlPlane := controlplane.Build(context.Background())
		_, program := node.Program(true)
		if err := errors.Join(controlPlane, program); err != nil {
			fmt.Fprintln(os.Stderr, "monitoring:", err)
			os.Exit(1)
		}
	}
	netns.Main(m, func() int {
		return environment.Main(m, func(e *environment.Environment) { env = e })
	})
}

const (
	within            = 60 * time.Second
	prometheusAddress = "127.0.0.1:9095" // the namespace is the test's own
)

// TestRealPrometheus lets one scrape the three programs as the PodMonitors make it do, and looks
// whether each panel shows something, whether there is what each alert looks at, and that none
// fires.
func TestRealPrometheus(t *testing.T) {
	scrapePrograms(t)
	var panels []string
	for _, row := range Dashboard {
		for _, p := range row.Panels {
			for _, q := range p.Queries {
				// What there is only while something ends is there all the same.
				panels = append(panels, strings.ReplaceAll(strings.TrimSuffix(q.Expr, " > 0"), "$__rate_interval", "30s"))
			}
		}
	}
	if len(panels) < 30 {
		t.Errorf("%d queries", len(panels))
	}
	environment.Eventually(t, within, func() error {
		var all []error
		for _, expr := range panels {
			all = append(all, isThere(t, expr))
		}
		return errors.Join(all...)
	})
	for _, a := range Alerts {
		for _, selector := range selectors(a.Expr) {
			if strings.HasPrefix(selector, "iam4kube_issuer_") {
				continue // with AssumeRoleWithWebIdentity alone, as test/webidentity has it
			}
			if err := isThere(t, selector); err != nil {
				t.Errorf("%s: %v", a.Name, err)
			}
		}
	}
	// The label of requests is not pushed aside by the operator's of the same name.
	if err := isThere(t, `iam4kube_http_requests_total{endpoint="credentials"}`); err != nil {
		t.Error(err)
	}
	if err := isThere(t, `iam4kube_no_such_metric`); err == nil {
		t.Error("everything is there")
	}
	var rules struct {
		Data struct {
			Groups []struct {
				Rules []struct{ Name, State, Health, LastError string }
			}
		}
	}
	ask(t, "/api/v1/rules", &rules)
	count := 0
	for _, group := range rules.Data.Groups {
		for _, r := range group.Rules {
			count++
			if r.Health != "ok" || r.State == "firing" {
				t.Errorf("%+v", r)
			}
		}
	}
	if count != len(Alerts) {
		t.Errorf("%d rules", count)
	}
}

var selector = regexp.MustCompile(`(iam4kube_[a-z0-9_]+)(\{([a-z]+)(=~?)"([^"]*)"\})?`)

// selectors are what an expression looks at, one for each value of a label that it names.
// Statuses are only there once an answer had them.
func selectors(expr string) (all []string) {
	for _, m := range selector.FindAllStringSubmatch(expr, -1) {
		name, label, values := m[1], m[3], m[5]
		if label == "" || label == "code" {
			all = append(all, name)
			continue
		}
		for value := range strings.SplitSeq(values, "|") {
			all = append(all, fmt.Sprintf("%s{%s=%q}", name, label, value))
		}
	}
	return all
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

// scrapePrograms starts the three programs, with a pod that asks, and Prometheus.
func scrapePrograms(t *testing.T) {
	t.Helper()
	s := env.Start(t, env.Config(t))
	s.WaitReady(t)
	warm(t, s)
	monitored := map[string]string{"server": s.Aux, "webhook": startWebhook(t), "ip2service": startIP2service(t)}
	var jobs []any
	for name, address := range monitored {
		jobs = append(jobs, object{
			// As the operator makes it of a PodMonitor.
			"job_name": "iam4kube/iam4kube-" + name, "honor_labels": true,
			"static_configs": []object{{"targets": []string{address}, "labels": object{"namespace": "iam4kube", "pod": "iam4kube-" + name + "-0", "container": name, "endpoint": "metrics"}}},
		})
	}
	configuration, err := yaml.Marshal(object{
		"global":     object{"scrape_interval": "1s", "evaluation_interval": "1s"},
		"rule_files": []string{checkout.Path("observability", "rules.yaml")}, "scrape_configs": jobs,
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

// warm lets a pod ask for credentials.
func warm(t *testing.T, s *environment.Server) {
	t.Helper()
	from, arn := env.Address(), env.NewRole()
	err := errors.Join(
		env.CreateNamespace(t.Context(), "apps"),
		env.CreateServiceAccount(t.Context(), controlplane.ServiceAccount{Namespace: "apps", Name: "app", Annotations: map[string]string{role.AnnotationARN: arn}}),
	)
	if err == nil {
		_, err = env.CreatePod(t.Context(), controlplane.Pod{Namespace: "apps", Name: "app", ServiceAccount: "app", IPs: []string{from.String()}})
	}
	if err != nil {
		t.Fatal(err)
	}
	if status, body := s.Get(t, from, "/latest/meta-data/iam/security-credentials/"+role.Role{ARN: arn}.Name()); status != http.StatusOK {
		t.Fatal(status, body)
	}
}

// startWebhook starts one with a certificate of its own and returns where its metrics are.
func startWebhook(t *testing.T) (aux string) {
	t.Helper()
	if err := env.ApplyFiles(t.Context(), checkout.Path("manifests", "base", "webhook-rbac.yaml")); err != nil {
		t.Fatal(err)
	}
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: environment.Namespace, Name: "iam4kube"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80}}}}
	if _, err := env.Client.CoreV1().Services(environment.Namespace).Create(t.Context(), service, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	rights, err := env.ServiceAccountConfig(t.Context(), environment.Namespace, "iam4kube-webhook")
	if err != nil {
		t.Fatal(err)
	}
	certificates := t.TempDir()
	writeCertificate(t, certificates)
	var logs environment.Logs
	log, err := logging.New(&logs, "info", "json")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- webhook.Run(ctx, webhook.Config{
			ListenOn: "127.0.0.1:0", AuxListenOn: "127.0.0.1:0", Kubeconfig: env.Kubeconfig(t, rights), CertDir: certificates,
			ServiceNamespace: environment.Namespace, ServiceName: "iam4kube", InitImage: "registry.example/ip2service:v1", InitPullPolicy: webhook.PullPolicies[0],
			ProbeTimeout: time.Minute, Wait: 5 * time.Second,
		}, log)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	starting, done := context.WithTimeout(t.Context(), within)
	defer done()
	line, err := logs.Wait(starting, "serving")
	if err != nil {
		t.Fatal(err)
	}
	return line[logging.AuxAddress].(string)
}

func writeCertificate(t *testing.T, folder string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"iam4kube-webhook.iam4kube.svc"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(90 * 24 * time.Hour)}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"tls.crt": {Type: "CERTIFICATE", Bytes: certificate}, "tls.key": {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(filepath.Join(folder, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// startIP2service starts it with the server as its endpoint and returns where its metrics are.
func startIP2service(t *testing.T) (aux string) {
	t.Helper()
	cluster, err := node.NewCluster(t.Context(), env.ControlPlane)
	if err != nil {
		t.Fatal(err)
	}
	service := cluster.NewService()
	service.Set(t, "a", node.Ready("10.99.0.1")) // it need not answer
	return service.Start(t).Aux
}
