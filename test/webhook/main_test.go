// Package webhook tests the admission webhook as a cluster uses it: a real API server sends
// it the reviews that the MutatingWebhookConfiguration of manifests/ asks for, with TLS, and
// the webhook has the rights of manifests/ and no others. Only the address differs: there
// is no kube-proxy, so the API server is told a URL on loopback in place of the Service.
package webhook

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/iam4kube/iam4kube/internal/webhook/inject"
	"github.com/iam4kube/iam4kube/test/controlplane"
)

const (
	ownNamespace = "iam4kube"
	account      = "iam4kube-webhook"
	initImage    = "registry.example/iam4kube/ip2service:v1" // that of the fixtures, as is the ClusterIP
	clusterIP    = "10.96.0.77"
	// within bounds what comes in a moment, on a machine that is busy.
	within = 60 * time.Second
)

var cp *controlplane.ControlPlane

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) (status int) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	var err error
	if cp, err = controlplane.Start(ctx, controlplane.Options{
		ServiceAccountAdmission: true,
		APIServerArgs:           []string{"--service-cluster-ip-range=10.96.0.0/16,fd00:96::/112"},
	}); err == nil {
		defer func() {
			if err := cp.Stop(); err != nil {
				fmt.Fprintln(os.Stderr, "webhook:", err)
				status = 1
			}
		}()
		err = errors.Join(cp.CreateNamespace(ctx, ownNamespace), cp.ApplyFiles(ctx, manifest("webhook-rbac.yaml")), createService(ctx))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "webhook:", err)
		return 1
	}
	return m.Run()
}

func manifest(name string) string { return filepath.Join("..", "..", "manifests", "base", name) }

// service is the server's.
func service() *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: ownNamespace, Name: "iam4kube"},
		Spec: corev1.ServiceSpec{
			ClusterIP: clusterIP,
			Selector:  map[string]string{"app.kubernetes.io/name": "iam4kube"},
			Ports:     []corev1.ServicePort{{Name: "http", Port: 80}},
		},
	}
}

func createService(ctx context.Context) error {
	_, err := cp.Client.CoreV1().Services(ownNamespace).Create(ctx, service(), metav1.CreateOptions{})
	return err
}

// configuration is that of manifests/, with this client configuration.
func configuration(t testing.TB, client admissionv1.WebhookClientConfig) *admissionv1.MutatingWebhookConfiguration {
	t.Helper()
	c := manifestConfiguration(t)
	c.Webhooks[0].ClientConfig = client
	return c
}

func manifestClientConfig(t testing.TB) admissionv1.WebhookClientConfig {
	t.Helper()
	return manifestConfiguration(t).Webhooks[0].ClientConfig
}

func manifestConfiguration(t testing.TB) *admissionv1.MutatingWebhookConfiguration {
	t.Helper()
	text, err := os.ReadFile(manifest("webhook-configuration.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	c := &admissionv1.MutatingWebhookConfiguration{}
	if err := yaml.UnmarshalStrict(text, c); err != nil {
		t.Fatal(err)
	}
	if len(c.Webhooks) != 1 {
		t.Fatalf("%d webhooks", len(c.Webhooks))
	}
	return c
}

// install lets the API server ask at the hook until the test ends, and waits until it does.
func install(t testing.TB, h *hook) {
	t.Helper()
	installConfiguration(t, configuration(t, h.clientConfig()))
	probe := newNamespace(t, inject.Enabled, nil)
	eventually(t, func() error {
		created, err := create(t, probe, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "probe"}, Spec: plainSpec()}, metav1.DryRunAll)
		if err == nil && len(created.Spec.InitContainers) == 0 {
			err = errors.New("not injected yet")
		}
		return err
	})
}

// installConfiguration puts the configuration in place of what is there.
func installConfiguration(t testing.TB, c *admissionv1.MutatingWebhookConfiguration) {
	t.Helper()
	ctx, client := context.Background(), cp.Client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	remove := func() {
		if err := client.Delete(ctx, c.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			t.Error(err)
		}
	}
	remove()
	if _, err := client.Create(ctx, c, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(remove)
}

// newNamespace makes a namespace with this value of the label iam4kube.io/inject, empty for
// none. It has the ServiceAccount that controllers would make.
func newNamespace(t testing.TB, label string, labels map[string]string) (name string) {
	t.Helper()
	all := map[string]string{}
	maps.Copy(all, labels)
	if label != "" {
		all[inject.Label] = label
	}
	n, err := cp.Client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-", Labels: all}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := cp.CreateServiceAccount(t.Context(), controlplane.ServiceAccount{Namespace: n.Name, Name: "default"}); err != nil {
		t.Fatal(err)
	}
	return n.Name
}

func plainSpec() corev1.PodSpec {
	return corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "registry.invalid/app:1"}}}
}

// create creates a pod. It goes with the test.
func create(t testing.TB, namespace string, pod *corev1.Pod, dryRun ...string) (*corev1.Pod, error) {
	t.Helper()
	pods := cp.Client.CoreV1().Pods(namespace)
	created, err := pods.Create(t.Context(), pod, metav1.CreateOptions{DryRun: dryRun})
	if err == nil && len(dryRun) == 0 {
		t.Cleanup(func() {
			if err := cp.DeletePod(context.Background(), namespace, created.Name, 0); err != nil && !apierrors.IsNotFound(err) {
				t.Error(err)
			}
		})
	}
	return created, err
}
