package monitoring

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/iam4kube/iam4kube/internal/logging"
	"github.com/iam4kube/iam4kube/internal/server"
	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/internal/webhook"
	"github.com/iam4kube/iam4kube/test/checkout"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/fakests"
	"github.com/iam4kube/iam4kube/test/netns"
	"github.com/iam4kube/iam4kube/test/node"
)

var env *environment.Environment

// TestMain runs the tests in a network namespace of their own, because ip2service makes of it a
// node of a cluster.
func TestMain(m *testing.M) {
	if netns.Check() != nil { // still where modules can be fetched
		_, controlPlane := controlplane.Build(context.Background())
		_, ip2service := node.Program(true)
		_, server := environment.Build("cmd/server", "-race")
		if err := errors.Join(controlPlane, ip2service, server); err != nil {
			fmt.Fprintln(os.Stderr, "monitoring:", err)
			os.Exit(1)
		}
	}
	netns.Main(m, func() int {
		return environment.Main(m, func(e *environment.Environment) { env = e })
	})
}

const (
	within     = 60 * time.Second
	credential = "/latest/meta-data/iam/security-credentials/"
	maxWait    = 3 * time.Second
)

// Pods that are scraped, by their names, with their addresses, which are of the loopback: the
// namespace is the test's own. All have the port of --aux-listen-on, by which replicas find one
// another.
var pods = map[string]string{
	well: "127.0.0.2:9090", cutOff: nodeAddress + ":9090", slow: "127.0.0.4:9090", issuing: "127.0.0.5:9090",
	hook: "127.0.0.6:9090", routing: "127.0.0.7:9090", powerless: "127.0.0.8:9090",
}

const (
	// well is the server that most causes are made at.
	well = "iam4kube-server-well"
	// cutOff is a server that will lose the API server.
	cutOff = "iam4kube-server-cut-off"
	// slow is a server that asks STS once in 20 seconds.
	slow = "iam4kube-server-slow"
	// issuing is a server without AWS credentials, whose audit log is on a small disk.
	issuing = "iam4kube-server-issuing"
	hook    = "iam4kube-webhook-0"
	routing = "iam4kube-ip2service-0"
	// powerless will be an ip2service that may change nothing in the kernel.
	powerless = "iam4kube-ip2service-1"

	// nodeAddress is one of an interface, as those of nodes and pods are.
	nodeAddress = "10.250.0.1"
)

// scene is what runs.
type scene struct {
	well, cutOff, slow, issuing *environment.Server
	// api is between cutOff and the API server.
	api *controlplane.Gate
	// disk is that of the audit log of issuing.
	disk string

	issuer       *environment.Issuer
	certificates string // folder of the webhook's
	service      *node.Service
	app          app
}

// newScene starts the programs, all of which are well, and Prometheus.
func newScene(t *testing.T) *scene {
	t.Helper()
	ip(t, "address", "add", nodeAddress+"/32", "dev", "lo")
	s := &scene{issuer: env.NewIssuer(t)}
	env.STS.AddOIDCProvider(fakests.OIDCProvider{Account: environment.Account, URL: s.issuer.URL, ClientIDs: []string{"sts.amazonaws.com"}})
	err := errors.Join(
		env.ApplyFiles(t.Context(), checkout.Path("manifests", "components", "web-identity", "rbac.yaml"), checkout.Path("manifests", "base", "webhook-rbac.yaml")),
		env.CreateNamespace(t.Context(), "apps"),
	)
	if err != nil {
		t.Fatal(err)
	}
	s.app = s.newApp(t, "app").create(t)
	for name := range pods {
		if address, _, _ := net.SplitHostPort(pods[name]); strings.Contains(name, "server") {
			createPod(t, controlplane.Pod{Namespace: environment.Namespace, Name: name, ServiceAccount: environment.ServiceAccount, IPs: []string{address}})
		}
	}
	s.startServers(t)
	s.startIssuing(t)
	s.startWebhook(t)
	s.startIP2service(t)
	for _, r := range []*environment.Server{s.well, s.cutOff, s.slow, s.issuing} {
		r.WaitReady(t)
		if status, body := r.Get(t, s.app.from, s.app.path()); status != http.StatusOK {
			t.Fatal(status, body)
		}
	}
	startPrometheus(t, pods)
	// The rules are looked at before all has been scraped, too.
	looks(t, within, func(fire map[string][]labels, _ time.Time) error {
		if len(fire) > 0 {
			return fmt.Errorf("these fire: %v", fire)
		}
		return isThere(t, fmt.Sprintf("sum(up) == %d", len(pods)-1))
	})
	return s
}

// startServers starts those with AWS credentials, in this process: less than five minutes is
// refused as --max-staleness of the program.
func (s *scene) startServers(t *testing.T) {
	t.Helper()
	start := func(pod string, change func(*server.Config)) *environment.Server {
		cfg := env.Config(t)
		cfg.AuxListenOn, cfg.MaxWait = pods[pod], maxWait
		change(&cfg)
		return env.Start(t, cfg)
	}
	s.well = start(well, func(*server.Config) {})
	s.slow = start(slow, func(c *server.Config) { c.STSRateLimit, c.STSRateBurst = 0.05, 20 })
	rights, err := env.ServiceAccountConfig(t.Context(), environment.Namespace, environment.ServiceAccount)
	if err != nil {
		t.Fatal(err)
	}
	if s.api, err = controlplane.NewGate(rights.Host); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.api.Close)
	s.cutOff = start(cutOff, func(c *server.Config) {
		c.Kubeconfig, c.MaxStaleness = env.Kubeconfig(t, s.api.Config(rights)), 100*time.Second
	})
}

// startIssuing starts a server that signs tokens, with an audit log on a disk of 64 KiB.
func (s *scene) startIssuing(t *testing.T) {
	t.Helper()
	s.publish(t)
	folder := t.TempDir()
	var process *os.Process
	s.issuing, process = env.StartProcessWith(t, func(c *exec.Cmd) {
		c.Env = append(c.Env, "SSL_CERT_FILE="+s.issuer.CAFile)
		c.Args = append([]string{"unshare", "--mount", "sh", "-c", `mount -t tmpfs -o size=64k audit "$0" && exec "$@"`, folder, c.Path}, c.Args[1:]...)
		c.Path = "/usr/bin/unshare"
	}, "--aux-listen-on", pods[issuing], "--max-wait", maxWait.String(), "--drain", "0s", "--audit-log", filepath.Join(folder, "audit.log"),
		"--sts-operation", "AssumeRoleWithWebIdentity", "--issuer", s.issuer.URL)
	s.disk = fmt.Sprintf("/proc/%d/root%s", process.Pid, folder)
}

// issue runs `server issuer` with an admin's rights.
func (s *scene) issue(t *testing.T, arguments ...string) {
	t.Helper()
	command := exec.Command(environment.Program(t), append([]string{"issuer"}, append(arguments, "--issuer", s.issuer.URL, "--kubeconfig", env.Kubeconfig(t, env.ControlPlane.Config()))...)...)
	command.Env = environment.Environ()
	var output bytes.Buffer
	command.Stdout, command.Stderr = &output, &output
	if err := command.Run(); err != nil {
		t.Fatalf("server issuer %q: %v: %s", arguments, err, output.String())
	}
}

// publish puts the documents of the key that signs where the issuer's URL is.
func (s *scene) publish(t *testing.T) {
	t.Helper()
	folder := t.TempDir()
	s.issue(t, "--out", folder)
	s.issuer.Publish(t, folder)
}

// startWebhook starts one that the API server asks, with a certificate that is good for long.
func (s *scene) startWebhook(t *testing.T) {
	t.Helper()
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: environment.Namespace, Name: "iam4kube"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80}}}}
	if _, err := env.Client.CoreV1().Services(environment.Namespace).Create(t.Context(), service, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	rights, err := env.ServiceAccountConfig(t.Context(), environment.Namespace, "iam4kube-webhook")
	if err != nil {
		t.Fatal(err)
	}
	s.certificates = t.TempDir()
	ca := s.certify(t, 90*24*time.Hour)
	var logs environment.Logs
	log, err := logging.New(&logs, "info", "json")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- webhook.Run(ctx, webhook.Config{
			ListenOn: "127.0.0.1:0", AuxListenOn: pods[hook], Kubeconfig: env.Kubeconfig(t, rights), CertDir: s.certificates,
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
	text, err := os.ReadFile(checkout.Path("manifests", "base", "webhook-configuration.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var configuration admissionv1.MutatingWebhookConfiguration
	if err := yaml.UnmarshalStrict(text, &configuration); err != nil {
		t.Fatal(err)
	}
	url := "https://" + line[logging.Address].(string) + webhook.Path
	configuration.Webhooks[0].ClientConfig = admissionv1.WebhookClientConfig{URL: &url, CABundle: ca}
	if _, err := env.Client.AdmissionregistrationV1().MutatingWebhookConfigurations().Create(t.Context(), &configuration, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// certify gives the webhook a certificate that ends after so long, and returns it.
func (s *scene) certify(t *testing.T, ends time.Duration) (certificate []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(ends)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certificate = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	err = errors.Join(
		os.WriteFile(filepath.Join(s.certificates, "tls.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600),
		os.WriteFile(filepath.Join(s.certificates, "tls.crt"), certificate, 0o600),
	)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

// serverEndpoint is that of the Service. It need not answer.
var serverEndpoint = node.Ready("10.99.0.1")

// startIP2service starts it with an endpoint.
func (s *scene) startIP2service(t *testing.T) {
	t.Helper()
	cluster, err := node.NewCluster(t.Context(), env.ControlPlane)
	if err != nil {
		t.Fatal(err)
	}
	s.service = cluster.NewService()
	s.service.Set(t, "a", serverEndpoint)
	s.service.Start(t, "--aux-listen-on", pods[routing]).WaitReady(t)
}

// app is a pod with a ServiceAccount of its name.
type app struct {
	controlplane.Pod
	from        netip.Addr
	annotations map[string]string
}

// newApp describes one whose role trusts the servers in both ways.
func (s *scene) newApp(t *testing.T, name string) app {
	t.Helper()
	provider := strings.TrimPrefix(s.issuer.URL, "https://")
	arn := env.NewRole(func(r *fakests.Role) {
		r.Trust.Federated = "arn:aws:iam::" + environment.Account + ":oidc-provider/" + provider
		r.Trust.StringEquals = map[string][]string{provider + ":sub": {"system:serviceaccount:apps:" + name}}
	})
	from := env.Address()
	pod := controlplane.Pod{Namespace: "apps", Name: name, ServiceAccount: name, IPs: []string{from.String()}}
	return app{pod, from, map[string]string{role.AnnotationARN: arn}}
}

func (a app) arn() string { return a.annotations[role.AnnotationARN] }

func (a app) path() string { return credential + role.Role{ARN: a.arn()}.Name() }

// create makes the ServiceAccount and the pod.
func (a app) create(t *testing.T) app {
	t.Helper()
	if err := env.CreateServiceAccount(t.Context(), controlplane.ServiceAccount{Namespace: a.Namespace, Name: a.ServiceAccount, Annotations: a.annotations}); err != nil {
		t.Fatal(err)
	}
	createPod(t, a.Pod)
	return a
}

func createPod(t *testing.T, pod controlplane.Pod) {
	t.Helper()
	if _, err := env.CreatePod(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
}

func ip(t *testing.T, arguments ...string) {
	t.Helper()
	if output, err := exec.Command("ip", arguments...).CombinedOutput(); err != nil {
		t.Fatalf("ip %v: %v: %s", arguments, err, output)
	}
}
