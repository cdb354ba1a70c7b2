package webhook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/iam4kube/iam4kube/internal/webhook/inject"
)

var (
	optIn    = map[string]string{inject.Label: inject.Enabled}
	asksFor  = map[string]string{inject.TokenLabel: inject.Enabled}
	insistOn = map[string]string{inject.TokenLabel: inject.Enabled, labelIdentity: "token"}
)

// ways are those by which a pod is injected.
var ways = map[string]func(testing.TB){
	"webhook": func(t testing.TB) { t.Helper(); startReady(t) },
	"policy":  installPolicies,
}

// policyFile is a component's, with the image of the fixtures.
func policyFile(t testing.TB, component string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "manifests", "components", component, "policy.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.ReplaceAll(text, []byte("registry.invalid/iam4kube/ip2service-init:latest"), []byte(initImage))
}

// installPolicies lets the API server inject, and give tokens, by the policies of manifests/ until
// the test ends, and waits until it does. Nothing but the API server runs.
func installPolicies(t testing.TB) {
	t.Helper()
	for _, component := range []string{"injection-policy", "token-policy"} {
		if err := cp.Apply(t.Context(), policyFile(t, component)); err != nil {
			t.Fatal(err)
		}
	}
	probe := newNamespace(t, inject.Enabled, asksFor)
	injected := func() (containers int, asks string) {
		created, err := cp.Client.CoreV1().Pods(probe).Create(background,
			&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "probe"}, Spec: plainSpec()}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err != nil {
			return -1, err.Error()
		}
		return len(created.Spec.InitContainers), uri(created.Spec.Containers[0])
	}
	t.Cleanup(func() {
		admission := cp.Client.AdmissionregistrationV1()
		for _, name := range []string{"iam4kube-inject", "iam4kube-token"} {
			if err := errors.Join(
				admission.MutatingAdmissionPolicyBindings().Delete(background, name, metav1.DeleteOptions{}),
				admission.MutatingAdmissionPolicies().Delete(background, name, metav1.DeleteOptions{}),
			); err != nil {
				t.Error(err)
			}
		}
		// The API server looks once a second.
		if err := wait.PollUntilContextTimeout(background, 50*time.Millisecond, within, true, func(context.Context) (bool, error) {
			containers, asks := injected()
			return containers == 0 && asks == "", nil
		}); err != nil {
			t.Errorf("still injected: %v", err)
		}
	})
	eventually(t, func() error {
		if containers, asks := injected(); containers != 1 || asks == "" {
			return fmt.Errorf("not injected yet: %d, %q", containers, asks)
		}
		return nil
	})
}

// TestFixturesByPolicy: the pods that the policies make are those that the webhook makes, as the API
// server takes them, its own validation and admission included, and the second time nothing
// changes. What is different is in docs/webhook.md, see TestPolicyDiffersAsDocumented.
func TestFixturesByPolicy(t *testing.T) {
	installPolicies(t)
	for _, namespace := range []string{"kube-system", ownNamespace} {
		ensureAccount(t, namespace)
		for _, label := range []string{inject.Label, inject.TokenLabel} { // by mistake
			setLabel(t, namespace, label, inject.Enabled)
			t.Cleanup(func() { setLabel(t, namespace, label, nil) })
		}
	}
	for _, f := range fixtures(t) {
		t.Run(f.name, func(t *testing.T) { f.byPolicy(t, optIn) })
	}
	for _, f := range fixtures(t, "token") {
		t.Run("token/"+f.name, func(t *testing.T) {
			if f.only {
				f.byPolicy(t, insistOn)
			} else {
				f.byPolicy(t, asksFor)
			}
		})
	}
}

// TestPolicyBesideTheWebhook: on the way from one to the other both are there, and leave each other's
// work alone.
func TestPolicyBesideTheWebhook(t *testing.T) {
	installPolicies(t)
	h := startReady(t)
	installTokens(t, h)
	namespace := newNamespace(t, inject.Enabled, maps.Clone(asksFor))
	var created *corev1.Pod
	eventually(t, func() error { // until the webhook is asked, too, about both
		created = submit(t, namespace, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "app"}, Spec: plainSpec()})
		for _, webhook := range []string{"inject", "token"} {
			if h.sum(t, "iam4kube_admissions_total", webhook) == 0 {
				return fmt.Errorf("%s: %w", webhook, errNotYet)
			}
		}
		return nil
	})
	if len(created.Spec.InitContainers) != 1 || uri(created.Spec.Containers[0]) == "" || len(created.Spec.Containers[0].Env) != 2 {
		t.Errorf("%+v", created.Spec)
	}
	if n := h.sum(t, "iam4kube_admissions_total", string(inject.Denied)); n != 0 {
		t.Errorf("%v denied", n)
	}
}

func (f fixture) byPolicy(t *testing.T, labels map[string]string) {
	t.Helper()
	namespace, without := f.namespace(t, labels), f.namespace(t, nil)
	once := func() error { return f.once(t, namespace, without) }
	if f.service == nil {
		if err := once(); err != nil {
			t.Error(err)
		}
		return
	}
	s := f.service.DeepCopy() // as the API server takes it
	if addresses := s.Spec.ClusterIPs; len(addresses) > 0 {
		s.Spec.ClusterIP = addresses[0]
	}
	if len(s.Spec.ClusterIPs) == 2 {
		s.Spec.IPFamilyPolicy = new(corev1.IPFamilyPolicyRequireDualStack)
	}
	t.Cleanup(func() { replaceService(t, service()) })
	replaceService(t, s) // of which its watch has to tell
	eventually(t, once)
}

func (f fixture) once(t *testing.T, namespace, without string) error {
	t.Helper()
	injected, err := try(t, namespace, f.pod)
	if f.outcome == inject.Denied {
		if err == nil || !strings.Contains(err.Error(), f.message) {
			return fmt.Errorf("%w, want %s", err, f.message)
		}
		return nil
	}
	if err != nil {
		return err
	}
	pod := f.patched
	if pod == nil {
		pod = f.pod
	}
	want, err := try(t, without, pod)
	if err != nil {
		return err
	}
	if d := cmp.Diff(normal(t, inOrder(want)), normal(t, inOrder(injected))); d != "" {
		return fmt.Errorf("-by the webhook +by the policy:\n%s", d)
	}
	again, err := try(t, namespace, cleaned(injected))
	if err != nil {
		return fmt.Errorf("the second time: %w", err)
	}
	if d := cmp.Diff(normal(t, injected), normal(t, again)); d != "" {
		return fmt.Errorf("-the first +the second time:\n%s", d)
	}
	return nil
}

// inOrder is a pod without what depends on whether the API server's own admission comes before us:
// the order of its volume for the ServiceAccount, and which containers a LimitRange says that it changed.
func inOrder(pod *corev1.Pod) *corev1.Pod {
	pod = pod.DeepCopy()
	delete(pod.Annotations, "kubernetes.io/limit-ranger")
	slices.SortStableFunc(pod.Spec.Volumes, func(a, b corev1.Volume) int { return strings.Compare(a.Name, b.Name) })
	for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range containers {
			slices.SortStableFunc(containers[i].VolumeMounts, func(a, b corev1.VolumeMount) int { return strings.Compare(a.Name, b.Name) })
		}
	}
	return pod
}

// TestPolicyWhileTheAPIServerRestarts: 500 pods are made by who tries again, as controllers do, while
// the API server ends and starts three times. It may refuse pods, but none starts without injection.
func TestPolicyWhileTheAPIServerRestarts(t *testing.T) {
	installPolicies(t)
	namespace := newNamespace(t, inject.Enabled, maps.Clone(asksFor))
	const count, restarts = 500, 3
	var workers sync.WaitGroup
	defer workers.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), 10*within)
	defer cancel()
	made := make(chan struct{}, count)
	queue := make(chan int, count)
	for i := range count {
		queue <- i
	}
	close(queue)
	for range 4 {
		workers.Go(func() {
			for i := range queue {
				insist(ctx, t, namespace, fmt.Sprintf("app-%d", i))
				made <- struct{}{}
			}
		})
	}
	for restart := range restarts {
		for range count / (restarts + 1) {
			select {
			case <-made:
			case <-ctx.Done():
				t.Fatalf("restart %d: %v", restart, ctx.Err())
			}
		}
		if err := errors.Join(cp.StopAPIServer(), cp.StartAPIServer(ctx)); err != nil {
			t.Fatal(err)
		}
	}
	workers.Wait()
	pods, err := cp.Client.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(pods.Items) != count {
		t.Errorf("%d pods", len(pods.Items))
	}
	for i := range pods.Items {
		p := &pods.Items[i]
		first := slices.IndexFunc(p.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == inject.ContainerName })
		if first != 0 || uri(p.Spec.Containers[0]) == "" {
			t.Errorf("pod %s: init container %d, token %q", p.Name, first, uri(p.Spec.Containers[0]))
		}
	}
}

// insist makes a pod, and tries again at once, so that the first moment of a start is met.
func insist(ctx context.Context, t *testing.T, namespace, name string) {
	t.Helper()
	for refused := ""; ; {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: plainSpec()}
		_, err := cp.Client.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{})
		switch {
		case err == nil, apierrors.IsAlreadyExists(err):
			return
		case ctx.Err() != nil:
			t.Errorf("pod %s: %v", name, err)
			return
		case apierrors.ReasonForError(err) != "" && err.Error() != refused:
			refused = err.Error()
			t.Logf("pod %s: %s", name, refused)
		}
	}
}
