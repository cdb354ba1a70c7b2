package webhook

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"github.com/iam4kube/iam4kube/internal/webhook/inject"
)

const labelIdentity = "iam4kube.io/identity"

// tokenConfiguration is that of manifests/components/token.
func tokenConfiguration(t testing.TB) *admissionv1.MutatingWebhookConfiguration {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "manifests", "components", "token", "webhook.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	c := &admissionv1.MutatingWebhookConfiguration{}
	if err := yaml.UnmarshalStrict(text, c); err != nil {
		t.Fatal(err)
	}
	if len(c.Webhooks) != 2 {
		t.Fatalf("%d webhooks", len(c.Webhooks))
	}
	return c
}

// installTokens lets the API server ask at the hook about tokens, too, by the manifest's
// paths, and waits until it does.
func installTokens(t testing.TB, h *hook) {
	t.Helper()
	c := tokenConfiguration(t)
	for i := range c.Webhooks {
		url := "https://" + h.host() + *c.Webhooks[i].ClientConfig.Service.Path
		c.Webhooks[i].ClientConfig = admissionv1.WebhookClientConfig{URL: &url, CABundle: h.ca.pem}
	}
	installConfiguration(t, c)
	probe := newNamespace(t, "", map[string]string{inject.TokenLabel: inject.Enabled})
	eventually(t, func() error {
		created, err := create(t, probe, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "probe"}, Spec: plainSpec()}, metav1.DryRunAll)
		if err == nil && uri(created.Spec.Containers[0]) == "" {
			err = errNotYet
		}
		return err
	})
}

// uri is what a container is told of where to ask, if it has the token, too.
func uri(c corev1.Container) string {
	var set []string
	file := false
	for _, v := range c.Env {
		switch v.Name {
		case "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI":
			set = append(set, v.Value)
		case "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE":
			file = v.Value == "/var/run/secrets/iam4kube.io/serviceaccount/token"
		}
	}
	mounted := slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool {
		return m.MountPath == "/var/run/secrets/iam4kube.io/serviceaccount" && m.ReadOnly
	})
	if len(set) == 0 && !file && !mounted {
		return ""
	}
	return fmt.Sprintf("%s, file %t, mounted %t", strings.Join(set, " and "), file, mounted)
}

// Who gets a token, and which way to show it, is the namespace's labels' and the pod's.
func TestTokens(t *testing.T) {
	h := startReady(t)
	installTokens(t, h)
	const relative, full = "/v1/credentials, file true, mounted true", "http://169.254.170.23/v1/credentials, file true, mounted true"
	asks, insists := map[string]string{inject.TokenLabel: inject.Enabled}, map[string]string{inject.TokenLabel: inject.Enabled, labelIdentity: "token"}
	onHost := func(p *corev1.Pod) { p.Spec.HostNetwork = true }
	for _, tc := range []struct {
		name      string
		injection string
		labels    map[string]string
		change    func(*corev1.Pod)
		want      string
		injected  bool
	}{
		{"asks", "", asks, nil, relative, false},
		{"insists", "", insists, nil, full, false},
		{"on the host's network", "", asks, onHost, relative, false},
		{"on the host's network, insists", "", insists, onHost, full, false},
		{"injected, too", inject.Enabled, asks, nil, relative, true},
		{"injected, on the host's network", inject.Enabled, asks, onHost, relative, false},
		{"insists, but does not ask", "", map[string]string{labelIdentity: "token"}, nil, "", false},
		{"injected alone", inject.Enabled, nil, nil, "", true},
		{"disabled", "", map[string]string{inject.TokenLabel: inject.Disabled}, nil, "", false},
		{"opted out", inject.Enabled, asks, func(p *corev1.Pod) { p.Labels = asksNot }, "", true},
		{"opted out of injection", inject.Enabled, asks, func(p *corev1.Pod) { p.Labels = map[string]string{inject.Label: inject.Disabled} }, relative, false},
		{"Windows", "", asks, func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Windows} }, "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			namespace := newNamespace(t, tc.injection, maps.Clone(tc.labels))
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "app"}, Spec: plainSpec()}
			if tc.change != nil {
				tc.change(pod)
			}
			restored, denied := h.sum(t, "iam4kube_admissions_total", string(inject.Restored)), h.sum(t, "iam4kube_admissions_total", string(inject.Denied))
			// An API server learns of a new namespace's labels a moment later.
			var created *corev1.Pod
			eventually(t, func() (err error) {
				created, err = create(t, namespace, pod, metav1.DryRunAll)
				if err == nil && (uri(created.Spec.Containers[0]) != tc.want || tc.injected != (len(created.Spec.InitContainers) == 1)) {
					err = fmt.Errorf("%q, want %q; %d init containers", uri(created.Spec.Containers[0]), tc.want, len(created.Spec.InitContainers))
				}
				return err
			})
			if tc.injected && uri(created.Spec.InitContainers[0]) != "" {
				t.Errorf("the init container of ours has a token: %+v", created.Spec.InitContainers[0])
			}
			if h.sum(t, "iam4kube_admissions_total", string(inject.Restored)) != restored || h.sum(t, "iam4kube_admissions_total", string(inject.Denied)) != denied {
				t.Error("the two webhooks do not leave each other's work alone")
			}
		})
	}
}

var asksNot = map[string]string{inject.TokenLabel: inject.Disabled}

// Whoever creates a pod whose container has credentials of its own is told.
func TestOwnCredentialsAreWarnedOf(t *testing.T) {
	h := startReady(t)
	installTokens(t, h)
	heard := &warnings{}
	cfg := cp.Config()
	cfg.WarningHandler = heard
	client := kubernetes.NewForConfigOrDie(cfg)
	namespace := newNamespace(t, "", map[string]string{inject.TokenLabel: inject.Enabled})
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "app"}, Spec: plainSpec()}
	pod.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "AWS_ACCESS_KEY_ID", Value: "AKIAEXAMPLE"}}
	eventually(t, func() error {
		created, err := client.CoreV1().Pods(namespace).Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err != nil {
			return err
		}
		if uri(created.Spec.Containers[0]) != "" || len(created.Spec.Containers[0].Env) != 1 {
			t.Errorf("%+v", created.Spec.Containers[0].Env)
		}
		all := heard.take()
		if len(all) != 1 || !strings.Contains(all[0], "container app sets AWS_ACCESS_KEY_ID by itself") || strings.Contains(all[0], "AKIA") {
			return fmt.Errorf("warnings: %q", all)
		}
		return nil
	})
}
