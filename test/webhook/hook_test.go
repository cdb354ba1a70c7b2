package webhook

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	admissionv1 "k8s.io/api/admissionregistration/v1"

	"github.com/iam4kube/iam4kube/internal/logging"
	"github.com/iam4kube/iam4kube/internal/webhook"
	"github.com/iam4kube/iam4kube/test/environment"
)

func eventually(t testing.TB, check func() error) {
	t.Helper()
	environment.Eventually(t, within, check)
}

// hook is a running webhook.
type hook struct {
	url, aux string
	logs     *environment.Logs
	ca       *authority
	certDir  string
	stop     func() error
	// process is that of startProgram.
	process *os.Process
}

// start runs a webhook in this process, with the rights of its ServiceAccount, until the
// test ends.
func start(t testing.TB, change ...func(*webhook.Config)) *hook {
	t.Helper()
	rights, err := cp.ServiceAccountConfig(t.Context(), ownNamespace, account)
	if err != nil {
		t.Fatal(err)
	}
	h := &hook{logs: &environment.Logs{}, ca: newAuthority(t), certDir: t.TempDir()}
	h.ca.issue(t, h.certDir, time.Hour)
	cfg := webhook.Config{
		ListenOn: "127.0.0.1:0", AuxListenOn: "127.0.0.1:0", Kubeconfig: cp.Kubeconfig(t, rights), CertDir: h.certDir,
		ServiceNamespace: ownNamespace, ServiceName: "iam4kube", InitImage: initImage, InitPullPolicy: webhook.PullPolicies[0], ProbeTimeout: time.Minute, Wait: 5 * time.Second,
	}
	for _, c := range change {
		c(&cfg)
	}
	log, err := logging.New(h.logs, "info", "json")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- webhook.Run(ctx, cfg, log) }()
	h.stop = func() error {
		cancel()
		err := <-ended
		ended <- nil
		return err
	}
	t.Cleanup(func() {
		if err := h.stop(); err != nil {
			t.Errorf("the webhook ended with: %v", err)
		}
	})
	h.serving(t)
	return h
}

// startProgram runs the program, built with these flags, with what start does besides.
func startProgram(t testing.TB, buildFlags []string, flags ...string) *hook {
	t.Helper()
	path, err := environment.Build("cmd/webhook", buildFlags...)
	if err != nil {
		t.Fatal(err)
	}
	rights, err := cp.ServiceAccountConfig(t.Context(), ownNamespace, account)
	if err != nil {
		t.Fatal(err)
	}
	h := &hook{logs: &environment.Logs{}, ca: newAuthority(t), certDir: t.TempDir()}
	h.ca.issue(t, h.certDir, time.Hour)
	command := exec.Command(path, append([]string{
		"--listen-on=127.0.0.1:0", "--aux-listen-on=127.0.0.1:0", "--kubeconfig", cp.Kubeconfig(t, rights),
		"--cert-dir", h.certDir, "--init-image", initImage,
	}, flags...)...)
	command.Stderr = h.logs
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	h.process = command.Process
	h.stop = sync.OnceValue(func() error {
		_ = command.Process.Signal(syscall.SIGTERM)
		return command.Wait()
	})
	t.Cleanup(func() {
		if err := h.stop(); err != nil {
			t.Errorf("the webhook ended with: %v", err)
		}
	})
	h.serving(t)
	return h
}

func (h *hook) serving(t testing.TB) {
	t.Helper()
	starting, done := context.WithTimeout(t.Context(), within)
	defer done()
	line, err := h.logs.Wait(starting, "serving")
	if err != nil {
		t.Fatal(err)
	}
	h.url, h.aux = "https://"+line[logging.Address].(string)+webhook.Path, line[logging.AuxAddress].(string)
}

// startReady starts a webhook that the API server asks.
func startReady(t testing.TB) *hook {
	t.Helper()
	h := start(t)
	h.waitReady(t)
	install(t, h)
	return h
}

func (h *hook) waitReady(t testing.TB) {
	t.Helper()
	eventually(t, func() error {
		if status, body := h.get(t, "/readyz"); status != http.StatusOK {
			return fmt.Errorf("%d %s", status, body)
		}
		return nil
	})
}

// get asks the auxiliary listener.
func (h *hook) get(t testing.TB, path string) (status int, body string) {
	t.Helper()
	response, err := http.Get("http://" + h.aux + path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(content)
}

// metrics are those of the webhook.
func (h *hook) metrics(t testing.TB) map[string]*dto.MetricFamily {
	t.Helper()
	_, body := h.get(t, "/metrics")
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return families
}

// sum is that of a counter over the series that have these label values.
func (h *hook) sum(t testing.TB, name string, values ...string) (sum float64) {
	t.Helper()
	for _, m := range h.metrics(t)[name].GetMetric() {
		have := map[string]bool{}
		for _, l := range m.GetLabel() {
			have[l.GetValue()] = true
		}
		if !slices.ContainsFunc(values, func(v string) bool { return !have[v] }) {
			sum += m.GetCounter().GetValue()
		}
	}
	return sum
}

func (h *hook) clientConfig() admissionv1.WebhookClientConfig {
	return admissionv1.WebhookClientConfig{URL: &h.url, CABundle: h.ca.pem}
}

// authority signs the webhook's certificates, as cert-manager would.
type authority struct {
	key         *ecdsa.PrivateKey
	certificate *x509.Certificate
	pem         []byte
	serial      int64
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key}
	a.renew(t)
	return a
}

// renew makes a new certificate of the same key and name.
func (a *authority) renew(t testing.TB) {
	t.Helper()
	a.serial++
	a.certificate = &x509.Certificate{
		SerialNumber: big.NewInt(a.serial), Subject: pkix.Name{CommonName: "test CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, a.certificate, a.certificate, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	a.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// issue writes a new certificate and key for 127.0.0.1 as the kubelet writes a Secret.
func (a *authority) issue(t testing.TB, dir string, lifetime time.Duration) (serial string) {
	t.Helper()
	certificate, key := a.sign(t, lifetime)
	writeSecret(t, dir, map[string][]byte{"tls.crt": certificate, "tls.key": key})
	return fmt.Sprint(a.serial)
}

func (a *authority) sign(t testing.TB, lifetime time.Duration) (certificate, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a.serial++
	template := &x509.Certificate{
		SerialNumber: big.NewInt(a.serial), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(lifetime),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, private.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
}

// writeSecret writes files the way the kubelet does: links into a folder that is replaced in
// one step.
func writeSecret(t testing.TB, dir string, files map[string][]byte) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	fresh := filepath.Join(dir, fmt.Sprintf("..%d", time.Now().UnixNano()))
	must(os.Mkdir(fresh, 0o700))
	for name, content := range files {
		must(os.WriteFile(filepath.Join(fresh, name), content, 0o600))
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			must(os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)))
		}
	}
	data := filepath.Join(dir, "..data")
	old, _ := os.Readlink(data) // none the first time
	must(os.Symlink(filepath.Base(fresh), data+"_new"))
	must(os.Rename(data+"_new", data))
	if old != "" {
		must(os.RemoveAll(filepath.Join(dir, old)))
	}
}
