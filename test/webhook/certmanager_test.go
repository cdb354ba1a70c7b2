package webhook

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/internal/webhook/inject"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
)

// TestCertManager: the real cert-manager issues the certificates of our manifests, writes
// the caBundle, and renews every few seconds while pods are created. Three things are not
// as in a cluster: how long certificates last, that they are for the address of loopback
// too, and that this test does the kubelet's work and mounts the Secret.
func TestCertManager(t *testing.T) {
	program, crds, err := controlplane.BuildCertManager(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if output, err := exec.CommandContext(t.Context(), program, "--decode", manifest("webhook-certificate.yaml")).CombinedOutput(); err != nil {
		t.Fatalf("the manifest: %v: %s", err, output)
	}
	startCertManager(t, program, crds)
	dir := t.TempDir()
	h := startProgram(t, []string{"-race"}, "--cert-dir", dir)
	notReady(t, h, "no certificate yet")
	client := h.clientConfig()
	client.CABundle = nil
	installConfiguration(t, configuration(t, client))
	if err := cp.Apply(t.Context(), shortLived(t)); err != nil {
		t.Fatal(err)
	}
	mount(t, "iam4kube-webhook-tls", dir)
	h.waitReady(t)
	namespace := newNamespace(t, inject.Enabled, nil)
	eventually(t, func() error {
		_, err := create(t, namespace, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "app"}, Spec: plainSpec()}, metav1.DryRunAll)
		return err
	})

	before := bundle(t)
	serials := map[string]bool{}
	stop, watching := make(chan struct{}), sync.WaitGroup{}
	watching.Go(func() {
		ticker := time.NewTicker(200 * time.Millisecond)
		defer ticker.Stop()
		for {
			serials[h.serial(t)] = true
			select {
			case <-ticker.C:
			case <-stop:
				return
			}
		}
	})
	took := createAtRate(t, namespace, 8*rate)
	close(stop)
	watching.Wait()
	after := bundle(t)
	t.Logf("%d pods in %v; %d serving certificates; the caBundle has %d and then %d", 8*rate, took, len(serials), len(before), len(after))
	if len(serials) < 2 {
		t.Errorf("%d serving certificates: no renewal under load", len(serials))
	}
	if len(after) < 2 || !slices.ContainsFunc(after, before[0].Equal) {
		t.Errorf("the CA was not renewed, or took the place of the one before: %d certificates", len(after))
	}
}

// shortLived is the manifest with certificates that are renewed three seconds, and a CA that
// is renewed four seconds, after they were issued.
func shortLived(t testing.TB) []byte {
	t.Helper()
	text, err := os.ReadFile(manifest("webhook-certificate.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for old, changed := range map[string]string{
		"duration: 43800h # five years\n  renewBefore: 8760h\n": "duration: 1h\n  renewBefore: 59m56s\n",
		"duration: 2160h # 90 days\n  renewBefore: 720h\n":      "duration: 1h\n  renewBefore: 59m57s\n  ipAddresses: [127.0.0.1]\n",
	} {
		if bytes.Count(text, []byte(old)) != 1 {
			t.Fatalf("the manifest has no %q", old)
		}
		text = bytes.Replace(text, []byte(old), []byte(changed), 1)
	}
	return text
}

func startCertManager(t testing.TB, program, crds string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(crds, "*cert-manager.io_*.yaml"))
	if err != nil || len(files) < 4 {
		t.Fatalf("%v: CRDs in %s: %v", err, crds, files)
	}
	if err := cp.ApplyFiles(t.Context(), files...); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		_, err := cp.Client.Discovery().ServerResourcesForGroupVersion("cert-manager.io/v1")
		return err
	})
	logs := &environment.Logs{}
	command := exec.Command(program, "--kubeconfig", cp.Kubeconfig(t, cp.Config()))
	command.Stderr = logs
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
		if t.Failed() {
			text := logs.String()
			t.Logf("cert-manager: %s", text[max(0, len(text)-8000):])
		}
	})
}

// mount writes the Secret into the folder, again whenever it changes, until the test ends.
func mount(t testing.TB, secret, dir string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	mounting := sync.WaitGroup{}
	t.Cleanup(func() {
		cancel()
		mounting.Wait()
	})
	mounting.Go(func() {
		ticker := time.NewTicker(100 * time.Millisecond)
		defer ticker.Stop()
		for version := ""; ; {
			s, err := cp.Client.CoreV1().Secrets(ownNamespace).Get(ctx, secret, metav1.GetOptions{})
			switch {
			case ctx.Err() != nil:
				return
			case apierrors.IsNotFound(err):
			case err != nil:
				t.Error(err)
			case s.ResourceVersion != version && len(s.Data["tls.crt"]) > 0: // the key comes first, elsewhere
				version = s.ResourceVersion
				writeSecret(t, dir, s.Data)
			}
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return
			}
		}
	})
}

// bundle is the certificates of the caBundle.
func bundle(t testing.TB) (all []*x509.Certificate) {
	t.Helper()
	c, err := cp.Client.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(t.Context(), "iam4kube-webhook", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for rest := c.Webhooks[0].ClientConfig.CABundle; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return all
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, certificate)
	}
}
