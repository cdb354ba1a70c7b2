package webhook

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/iam4kube/iam4kube/internal/webhook/inject"
	"github.com/iam4kube/iam4kube/test/controlplane"
)

var (
	errNotYet  = errors.New("not yet")
	background = context.Background() // for cleanups, when a test's own has ended
)

func ensureAccount(t testing.TB, namespace string) {
	t.Helper()
	err := cp.CreateServiceAccount(t.Context(), controlplane.ServiceAccount{Namespace: namespace, Name: "default"})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
}

// replaceService puts this one in place of the Service; nil means none.
func replaceService(t testing.TB, s *corev1.Service) {
	t.Helper()
	services := cp.Client.CoreV1().Services(ownNamespace)
	if err := services.Delete(background, "iam4kube", metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	if s == nil {
		return
	}
	if _, err := services.Create(background, s, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func TestPodsAreLedWhereTheServiceIsNow(t *testing.T) {
	h := startReady(t)
	namespace := newNamespace(t, inject.Enabled, nil)
	t.Cleanup(func() { replaceService(t, service()) })
	policy, headless := corev1.IPFamilyPolicyRequireDualStack, service()
	headless.Spec.ClusterIP = corev1.ClusterIPNone
	dual, moved, several := service(), service(), service()
	dual.Spec.IPFamilyPolicy, dual.Spec.ClusterIPs = &policy, []string{clusterIP, "fd00:96::77"}
	moved.Spec.ClusterIP = "10.96.0.78"
	several.Spec.Ports = []corev1.ServicePort{{Name: "a", Port: 1}, {Name: "b", Port: 2}}
	for _, tc := range []struct {
		name    string
		service *corev1.Service
		to      []string
		denied  string
	}{
		{"none", nil, nil, "the Service iam4kube/iam4kube, which pods' requests are to be led to, does not exist"},
		{"headless", headless, nil, "has no ClusterIP"},
		{"of another port", several, nil, "neither a TCP port named http nor a single one"},
		{"of both families", dual, []string{"10.96.0.77:80", "[fd00:96::77]:80"}, ""},
		{"at another address", moved, []string{"10.96.0.78:80"}, ""},
		{"as it was", service(), []string{"10.96.0.77:80"}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			replaceService(t, tc.service)
			eventually(t, func() error {
				created, err := create(t, namespace, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "app"}, Spec: plainSpec()}, metav1.DryRunAll)
				if tc.denied != "" {
					if err == nil || !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), tc.denied) {
						return fmt.Errorf("%w", err)
					}
					return nil
				}
				if err != nil {
					return err
				}
				var to []string
				args := created.Spec.InitContainers[0].Args
				for i, a := range args[1:] {
					if args[i] == "--to" {
						to = append(to, a)
					}
				}
				if !slices.Equal(to, tc.to) {
					return fmt.Errorf("%v", to)
				}
				return nil
			})
			if status, body := h.get(t, "/readyz"); status != http.StatusOK {
				t.Errorf("a Service that is no use is a denial that says so, not a replica less: %d %s", status, body)
			}
		})
	}
}

// warnings collects what the API server warns of.
type warnings struct {
	mu  sync.Mutex
	all []string
}

// HandleWarningHeader implements rest.WarningHandler.
func (w *warnings) HandleWarningHeader(_ int, _, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, text)
}

func (w *warnings) take() (all []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	all, w.all = w.all, nil
	return all
}

// Pod Security names the container and the capability in its refusal, so nobody else has to.
func TestPodSecurityNamesTheContainer(t *testing.T) {
	startReady(t)
	heard := &warnings{}
	cfg := cp.Config()
	cfg.WarningHandler = heard
	client := kubernetes.NewForConfigOrDie(cfg)
	const label = "pod-security.kubernetes.io/enforce"
	namespace := newNamespace(t, inject.Enabled, nil)
	for _, level := range []string{"baseline", "restricted", "privileged", ""} {
		t.Run("level "+level, func(t *testing.T) {
			var value any
			if level != "" {
				value = level
			}
			setLabel(t, namespace, label, value)
			eventually(t, func() error {
				pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "app"}, Spec: plainSpec()}
				_, err := client.CoreV1().Pods(namespace).Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
				if level != "baseline" && level != "restricted" {
					return err
				}
				if err == nil || !strings.Contains(err.Error(), "violates PodSecurity \""+level) ||
					!strings.Contains(err.Error(), `container "iam4kube-ip2service" must not include "NET_ADMIN"`) && !strings.Contains(err.Error(), `containers "iam4kube-ip2service"`) {
					return fmt.Errorf("refused: %w", err)
				}
				return nil
			})
		})
	}
	if all := heard.take(); len(all) != 0 {
		t.Errorf("warnings: %q", all)
	}
}

func notReady(t testing.TB, h *hook, part string) {
	t.Helper()
	eventually(t, func() error {
		status, body := h.get(t, "/readyz")
		if status != http.StatusServiceUnavailable || !strings.Contains(body, part) {
			return fmt.Errorf("%d %s", status, body)
		}
		return nil
	})
}

func TestReadyOnlyWithACertificate(t *testing.T) {
	empty := t.TempDir()
	h := startProgram(t, []string{"-race"}, "--cert-dir", empty)
	notReady(t, h, "no certificate yet")
	if _, err := h.logs.Wait(t.Context(), "no usable certificate yet"); err != nil {
		t.Fatal(err)
	}
	writeSecret(t, empty, map[string][]byte{"tls.crt": []byte("no certificate"), "tls.key": nil})
	notReady(t, h, "no certificate yet")
	h.ca.issue(t, empty, time.Hour)
	h.waitReady(t)
	install(t, h)
	h.ca.issue(t, empty, -time.Minute)
	notReady(t, h, "expired")
	h.ca.issue(t, empty, time.Hour)
	h.waitReady(t)
	t.Run("a bad one does not take its place", func(t *testing.T) {
		writeSecret(t, empty, map[string][]byte{"tls.crt": []byte("no certificate"), "tls.key": nil})
		if _, err := h.logs.Wait(t.Context(), "the new certificate is not usable, the old one stays"); err != nil {
			t.Fatal(err)
		}
		h.waitReady(t)
		install(t, h)
	})
}
