package webhook

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/iam4kube/iam4kube/internal/webhook/inject"
)

// fixture is one of package inject: a pod, what else is in its namespace, and the result.
type fixture struct {
	name   string
	pod    *corev1.Pod
	quotas []*corev1.ResourceQuota
	ranges []*corev1.LimitRange
	// service is another than the one of these tests, if the result is for that.
	service *corev1.Service
	// only is that the namespace insists on tokens.
	only bool

	outcome  inject.Outcome
	reason   inject.Reason
	message  string
	warnings []string
	patched  *corev1.Pod
}

// fixtures are those of the init container, or in a folder of theirs.
func fixtures(t testing.TB, folders ...string) (all []fixture) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(append(append([]string{"..", "..", "internal", "webhook", "inject", "testdata"}, folders...), "*.yaml")...))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if name := strings.TrimSuffix(filepath.Base(path), ".yaml"); !strings.HasSuffix(name, ".out") {
			all = append(all, readFixture(t, name, path))
		}
	}
	if len(all) < 25 {
		t.Fatalf("%d fixtures", len(all))
	}
	return all
}

func readFixture(t testing.TB, name, path string) fixture {
	t.Helper()
	f := fixture{name: name}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text))); ; {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		var kind metav1.PartialObjectMetadata
		decode(t, document, &kind)
		switch kind.Kind {
		case "Pod":
			f.pod = &corev1.Pod{}
			decode(t, document, f.pod)
		case "ResourceQuota":
			f.quotas = append(f.quotas, &corev1.ResourceQuota{})
			decode(t, document, f.quotas[len(f.quotas)-1])
		case "LimitRange":
			f.ranges = append(f.ranges, &corev1.LimitRange{})
			decode(t, document, f.ranges[len(f.ranges)-1])
		case "Service":
			f.service = &corev1.Service{}
			decode(t, document, f.service)
		case "Namespace":
			f.only = kind.Labels[labelIdentity] == "token"
		}
	}
	if text, err = os.ReadFile(strings.TrimSuffix(path, ".yaml") + ".out.yaml"); err != nil {
		t.Fatal(err)
	}
	var out struct {
		Outcome  inject.Outcome
		Reason   inject.Reason
		Message  string
		Warnings []string
		Pod      *corev1.Pod
	}
	decode(t, text, &out)
	f.outcome, f.reason, f.message, f.warnings, f.patched = out.Outcome, out.Reason, out.Message, out.Warnings, out.Pod
	return f
}

func decode(t testing.TB, document []byte, into any) {
	t.Helper()
	if err := yaml.Unmarshal(document, into); err != nil {
		t.Fatalf("%v: %s", err, document)
	}
}

// namespace makes one with what the fixture has beside the pod.
func (f fixture) namespace(t *testing.T, labels map[string]string) string {
	t.Helper()
	if len(labels) > 0 && (f.pod.Namespace == "kube-system" || f.pod.Namespace == ownNamespace) {
		return f.pod.Namespace
	}
	name := newNamespace(t, "", labels)
	core := cp.Client.CoreV1()
	for _, r := range f.ranges {
		if _, err := core.LimitRanges(name).Create(t.Context(), r, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, q := range f.quotas {
		created, err := core.ResourceQuotas(name).Create(t.Context(), q, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		// The controller's part.
		created.Status.Hard = q.Spec.Hard
		created.Status.Used = corev1.ResourceList{}
		for hard := range q.Spec.Hard {
			created.Status.Used[hard] = resource.Quantity{}
		}
		if _, err := core.ResourceQuotas(name).UpdateStatus(t.Context(), created, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	return name
}

// TestFixturesThroughTheAPIServer: what the fixtures say is what the API server makes of
// these pods, its own validation and admission included; the second time nothing changes;
// and nothing but our container is different from the same pod without injection.
func TestFixturesThroughTheAPIServer(t *testing.T) {
	h := startReady(t)
	for _, namespace := range []string{"kube-system", ownNamespace} {
		ensureAccount(t, namespace)
	}
	for _, f := range fixtures(t) {
		t.Run(f.name, func(t *testing.T) {
			namespace, without := f.namespace(t, optIn), f.namespace(t, nil)
			if f.service != nil {
				if f.patched != nil { // what was made for the other Service
					submit(t, without, f.patched)
				}
				return
			}
			asked := h.sum(t, "iam4kube_admissions_total")
			injected, err := try(t, namespace, f.pod)
			switch f.outcome {
			case inject.Denied:
				if err == nil || !strings.Contains(err.Error(), f.message) {
					t.Errorf("%v, want %s", err, f.message)
				}
				return
			case inject.Skipped:
				if n := h.sum(t, "iam4kube_admissions_total") - asked; n != 0 {
					t.Errorf("the webhook was asked %v times", n)
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			if f.patched != nil {
				sameInitContainers(t, injected, f.patched)
				again := submit(t, namespace, cleaned(injected))
				if d := cmp.Diff(normal(t, injected), normal(t, again)); d != "" {
					t.Errorf("the second time (-first +second):\n%s", d)
				}
			}
			if plain, err := try(t, without, f.pod); err == nil {
				sameButOurs(t, plain, injected)
			} else if !strings.Contains(err.Error(), "Duplicate value") { // ours took the place of two
				t.Error(err)
			}
		})
	}
}

// try creates a pod of a fixture in the namespace, as a dry run.
func try(t testing.TB, namespace string, pod *corev1.Pod) (*corev1.Pod, error) {
	t.Helper()
	pod = pod.DeepCopy()
	pod.Namespace = namespace
	return create(t, namespace, pod, metav1.DryRunAll)
}

func submit(t testing.TB, namespace string, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	created, err := try(t, namespace, pod)
	if err != nil {
		t.Fatal(err)
	}
	return created
}

// cleaned is a pod as somebody would submit it who got it from the API server.
func cleaned(pod *corev1.Pod) *corev1.Pod {
	pod = pod.DeepCopy()
	pod.ObjectMeta = metav1.ObjectMeta{
		Name: pod.Name, Namespace: pod.Namespace, Labels: pod.Labels, Annotations: pod.Annotations,
		OwnerReferences: pod.OwnerReferences, Finalizers: pod.Finalizers,
	}
	pod.Status = corev1.PodStatus{}
	return pod
}

var random = regexp.MustCompile(`kube-api-access-[a-z0-9]{5}`)

// normal is what is equal in two pods that were created alike.
func normal(t testing.TB, pod *corev1.Pod) map[string]any {
	t.Helper()
	pod = pod.DeepCopy()
	pod.Name, pod.GenerateName, pod.Namespace, pod.UID, pod.ResourceVersion, pod.CreationTimestamp, pod.ManagedFields = "", "", "", "", "", metav1.Time{}, nil
	pod.Status.Conditions = nil // times
	text, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	var object map[string]any
	if err := json.Unmarshal(random.ReplaceAll(text, []byte("kube-api-access-random")), &object); err != nil {
		t.Fatal(err)
	}
	return object
}

// sameInitContainers: names in order, and ours in full but for the token's mount and what
// a LimitRange has added.
func sameInitContainers(t testing.TB, have, want *corev1.Pod) {
	t.Helper()
	names := func(p *corev1.Pod) (all []string) {
		for i := range p.Spec.InitContainers {
			all = append(all, p.Spec.InitContainers[i].Name)
		}
		return all
	}
	if !slices.Equal(names(have), names(want)) {
		t.Fatalf("init containers %v, want %v", names(have), names(want))
	}
	ours := *have.Spec.InitContainers[0].DeepCopy()
	ours.VolumeMounts = nil
	for _, list := range []struct{ have, want *corev1.ResourceList }{
		{&ours.Resources.Limits, &want.Spec.InitContainers[0].Resources.Limits},
		{&ours.Resources.Requests, &want.Spec.InitContainers[0].Resources.Requests},
	} {
		maps.DeleteFunc(*list.have, func(name corev1.ResourceName, _ resource.Quantity) bool {
			_, wanted := (*list.want)[name]
			return !wanted
		})
		if len(*list.have) == 0 {
			*list.have = nil
		}
	}
	if d := cmp.Diff(want.Spec.InitContainers[0], ours); d != "" {
		t.Errorf("our container (-want +have):\n%s", d)
	}
}

// sameButOurs: the injected pod without our container is the plain pod. Its quality of
// service may only be better: BestEffort becomes Burstable.
func sameButOurs(t testing.TB, plain, injected *corev1.Pod) {
	t.Helper()
	strip := func(pod *corev1.Pod) *corev1.Pod {
		pod = pod.DeepCopy()
		delete(pod.Annotations, "kubernetes.io/limit-ranger") // names the containers that it changed
		// What older API servers make of each container's field.
		delete(pod.Annotations, corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix+inject.ContainerName)
		pod.Spec.InitContainers = slices.DeleteFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == inject.ContainerName })
		if pod.Status.QOSClass == corev1.PodQOSBestEffort {
			pod.Status.QOSClass = corev1.PodQOSBurstable
		}
		return pod
	}
	if d := cmp.Diff(normal(t, strip(plain)), normal(t, strip(injected))); d != "" {
		t.Errorf("besides our container (-plain +injected):\n%s", d)
	}
}
