package webhook

import (
	"crypto/tls"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	admissionapi "k8s.io/api/admission/v1"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/iam4kube/iam4kube/internal/webhook/inject"
)

// left are pods that injection leaves alone, by what the API server knows of them.
var left = []struct {
	name      string
	namespace string // empty: one that opted in
	pod       corev1.Pod
}{
	{"host network", "", corev1.Pod{Spec: corev1.PodSpec{HostNetwork: true}}},
	{"Windows", "", corev1.Pod{Spec: corev1.PodSpec{OS: &corev1.PodOS{Name: corev1.Windows}}}},
	{"Windows by node selector", "", corev1.Pod{Spec: corev1.PodSpec{NodeSelector: map[string]string{corev1.LabelOSStable: "windows"}}}},
	{"Windows by the old label", "", corev1.Pod{Spec: corev1.PodSpec{NodeSelector: map[string]string{"beta.kubernetes.io/os": "windows"}}}},
	{"Windows by affinity", "", corev1.Pod{Spec: corev1.PodSpec{Affinity: &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
		RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelOSStable, Operator: corev1.NodeSelectorOpIn, Values: []string{"windows"}}},
		}}},
	}}}}},
	{"mirror", "", corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{corev1.MirrorPodAnnotationKey: "1"}}, Spec: corev1.PodSpec{NodeName: "node"},
	}},
	{"opted out", "", corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{inject.Label: inject.Disabled}}}},
	{"kube-system", "kube-system", corev1.Pod{}},
	{"own namespace", ownNamespace, corev1.Pod{}},
	{"namespace that did not opt in", "not", corev1.Pod{}},
	{"namespace with another value", "disabled", corev1.Pod{}},
}

// eachLeft creates them, as dry runs. kube-system and our own namespace have opted in by
// mistake.
func eachLeft(t *testing.T, check func(t *testing.T, created *corev1.Pod, err error)) {
	t.Helper()
	optedIn := newNamespace(t, inject.Enabled, nil)
	namespaces := map[string]string{
		"": optedIn, "kube-system": "kube-system", ownNamespace: ownNamespace,
		"not": newNamespace(t, "", nil), "disabled": newNamespace(t, inject.Disabled, nil),
	}
	for _, name := range []string{"kube-system", ownNamespace} {
		setLabel(t, name, inject.Label, inject.Enabled)
		t.Cleanup(func() { setLabel(t, name, inject.Label, nil) })
		ensureAccount(t, name)
	}
	for _, l := range left {
		t.Run(l.name, func(t *testing.T) {
			pod := l.pod.DeepCopy()
			pod.Name, pod.Spec.Containers = "app", plainSpec().Containers
			created, err := create(t, namespaces[l.namespace], pod, metav1.DryRunAll)
			check(t, created, err)
		})
	}
}

// setLabel sets a label of a namespace; nil removes it.
func setLabel(t testing.TB, namespace, label string, value any) {
	t.Helper()
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": map[string]any{label: value}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if ctx.Err() != nil {
		ctx = background
	}
	if _, err := cp.Client.CoreV1().Namespaces().Patch(ctx, namespace, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Error(err)
	}
}

func TestPodsThatAreLeftAloneAreNotEvenAskedAbout(t *testing.T) {
	h := startReady(t)
	eachLeft(t, func(t *testing.T, created *corev1.Pod, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if len(created.Spec.InitContainers) != 0 {
			t.Errorf("%+v", created.Spec.InitContainers)
		}
	})
	if n := h.sum(t, "iam4kube_admissions_total", "skipped"); n != 0 {
		t.Errorf("the webhook was asked about %v of them", n)
	}
}

// Somebody may change the configuration; nodes and the servers must not break by it.
func TestTheWebhookRepeatsWhatTheConfigurationAsks(t *testing.T) {
	h := startReady(t)
	c := configuration(t, h.clientConfig())
	hook := &c.Webhooks[0]
	hook.MatchConditions, hook.ObjectSelector, hook.NamespaceSelector = nil, nil, nil
	installConfiguration(t, c)
	reasons := map[string]inject.Reason{
		"host network": inject.HostNetwork, "Windows": inject.Windows, "Windows by node selector": inject.Windows,
		"Windows by the old label": inject.Windows, "Windows by affinity": inject.Windows,
		"mirror": inject.Mirror, "opted out": inject.OptedOut, "kube-system": inject.Namespace, "own namespace": inject.Namespace,
	}
	ensureAccount(t, "kube-system")
	eventually(t, func() error { // until the configuration is in effect
		_, err := create(t, "kube-system", &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "app"}, Spec: plainSpec()}, metav1.DryRunAll)
		if err == nil && h.sum(t, "iam4kube_admissions_total", "skipped", string(inject.Namespace)) == 0 {
			err = errNotYet
		}
		return err
	})
	before := map[inject.Reason]float64{}
	for _, reason := range reasons {
		before[reason] = h.sum(t, "iam4kube_admissions_total", "skipped", string(reason))
	}
	want := map[inject.Reason]float64{}
	eachLeft(t, func(t *testing.T, created *corev1.Pod, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		_, name, _ := strings.Cut(t.Name(), "/")
		reason, ok := reasons[strings.ReplaceAll(name, "_", " ")]
		if !ok {
			return // a namespace that did not opt in: what the API server says about that is believed
		}
		want[reason]++
		if len(created.Spec.InitContainers) != 0 {
			t.Errorf("%+v", created.Spec.InitContainers)
		}
	})
	for reason, n := range want {
		if have := h.sum(t, "iam4kube_admissions_total", "skipped", string(reason)) - before[reason]; have != n {
			t.Errorf("%s: %v, want %v", reason, have, n)
		}
	}
}

func TestWebhookDown(t *testing.T) {
	h := startReady(t)
	namespace := newNamespace(t, inject.Enabled, nil)
	running, err := create(t, namespace, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "running"}, Spec: plainSpec()})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.stop(); err != nil {
		t.Fatal(err)
	}
	t.Run("an opted-in namespace starts no pods and says why", func(t *testing.T) {
		_, err := create(t, namespace, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "app"}, Spec: plainSpec()})
		if err == nil || !strings.Contains(err.Error(), "inject.iam4kube.io") || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("%v", err)
		}
	})
	t.Run("its pods can be changed and deleted", func(t *testing.T) {
		pods := cp.Client.CoreV1().Pods(namespace)
		changed := running.DeepCopy()
		changed.Labels = map[string]string{"a": "b"}
		changed.Spec.Containers[0].Image = "registry.invalid/app:2"
		if changed, err = pods.Update(t.Context(), changed, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		changed.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug", Image: "registry.invalid/debug:1"}}}
		if _, err := pods.UpdateEphemeralContainers(t.Context(), running.Name, changed, metav1.UpdateOptions{}); err != nil {
			t.Error(err)
		}
		if err := cp.DeletePod(t.Context(), namespace, running.Name, 0); err != nil {
			t.Error(err)
		}
	})
	t.Run("everything else starts", func(t *testing.T) {
		eachLeft(t, func(t *testing.T, _ *corev1.Pod, err error) {
			t.Helper()
			if err != nil {
				t.Error(err)
			}
		})
	})
}

func TestDryRun(t *testing.T) {
	h := startReady(t)
	namespace := newNamespace(t, inject.Enabled, nil)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "app"}, Spec: plainSpec()}
	dry, err := create(t, namespace, pod, metav1.DryRunAll)
	if err != nil {
		t.Fatal(err)
	}
	if all, err := cp.Client.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{}); err != nil || len(all.Items) != 0 {
		t.Errorf("%v: %v", err, all)
	}
	wet, err := create(t, namespace, pod)
	if err != nil {
		t.Fatal(err)
	}
	sameButOurs(t, dry, wet)
	sameInitContainers(t, dry, withoutMounts(wet))
	var flags []any
	for _, line := range h.logs.Lines("admitted a pod") {
		if line["namespace"] == namespace && line["outcome"] == string(inject.Injected) {
			flags = append(flags, line["dry_run"])
		}
	}
	if len(flags) != 2 || flags[0] != true || flags[1] != false {
		t.Errorf("log: %v", flags)
	}
}

func withoutMounts(pod *corev1.Pod) *corev1.Pod {
	pod = pod.DeepCopy()
	for i := range pod.Spec.InitContainers {
		pod.Spec.InitContainers[i].VolumeMounts = nil
	}
	return pod
}

// TestReinvocation: a webhook that comes later and puts its init container in front, as a
// service mesh does, is not the last to have a say.
func TestReinvocation(t *testing.T) {
	h := startReady(t)
	// A test double: what a mesh does besides is of no interest here.
	mesh := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var review admissionapi.AdmissionReview
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			t.Error(err)
			return
		}
		patchType := admissionapi.PatchTypeJSONPatch
		review.Response = &admissionapi.AdmissionResponse{UID: review.Request.UID, Allowed: true}
		if !strings.Contains(string(review.Request.Object.Raw), `"mesh-init"`) {
			review.Response.PatchType = &patchType
			review.Response.Patch = []byte(`[{"op":"add","path":"/spec/initContainers/0","value":{"name":"mesh-init","image":"registry.invalid/mesh:1"}}]`)
		}
		if err := json.NewEncoder(w).Encode(review); err != nil {
			t.Error(err)
		}
	}))
	certificate, err := tls.X509KeyPair(h.ca.sign(t, time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	mesh.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
	mesh.StartTLS()
	t.Cleanup(mesh.Close)
	later := configuration(t, admissionv1.WebhookClientConfig{URL: &mesh.URL, CABundle: h.ca.pem})
	later.Name, later.Webhooks[0].Name = "later-mesh", "mesh.example.com"
	installConfiguration(t, later)
	namespace := newNamespace(t, inject.Enabled, nil)
	eventually(t, func() error {
		created, err := create(t, namespace, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "app"}, Spec: plainSpec()}, metav1.DryRunAll)
		if err != nil {
			return err
		}
		if len(created.Spec.InitContainers) != 2 {
			return errNotYet
		}
		if created.Spec.InitContainers[0].Name != inject.ContainerName {
			t.Errorf("first is %s", created.Spec.InitContainers[0].Name)
		}
		return nil
	})
	if n := h.sum(t, "iam4kube_admissions_total", "injected", string(inject.Restored)); n == 0 {
		t.Error("the webhook was not asked again")
	}
}
