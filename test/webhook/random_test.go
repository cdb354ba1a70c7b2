package webhook

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/iam4kube/iam4kube/internal/webhook/inject"
)

// TestRandomPodsStayValid: whatever the API server accepts without injection it accepts
// with it, and the second time nothing changes.
func TestRandomPodsStayValid(t *testing.T) {
	for name, begin := range ways {
		t.Run(name, func(t *testing.T) {
			begin(t)
			testRandomPods(t)
		})
	}
}

func testRandomPods(t *testing.T) {
	t.Helper()
	namespace, without := newNamespace(t, inject.Enabled, nil), newNamespace(t, "", nil)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := pods{rand.New(rand.NewPCG(seed, 0))}
	const count, most = 200, 140
	invalid := 0
	for i := range count {
		pod := r.pod(fmt.Sprintf("app-%d", i))
		plain, err := try(t, without, pod)
		if err != nil {
			invalid++
			if invalid > most {
				t.Fatalf("the generator makes too few valid pods: %v", err)
			}
			continue
		}
		injected, err := try(t, namespace, pod)
		if err != nil {
			t.Fatalf("%v: %+v", err, pod)
		}
		if pod.Spec.HostNetwork {
			sameButOurs(t, plain, injected)
			continue
		}
		// Older API servers take no resources of a pod.
		if plain.Spec.Resources != nil && pod.Spec.Resources != nil && len(pod.Spec.Resources.Limits) < 2 {
			// Where every container has limits, the API server makes their sum the pod's, for
			// each resource that the pod has no limit for.
			plain.Spec.Resources.Limits, injected.Spec.Resources.Limits = nil, nil
			plain.Status.QOSClass, injected.Status.QOSClass = "", ""
		}
		if injected.Spec.InitContainers[0].Name != inject.ContainerName {
			t.Fatalf("not injected: %+v", pod)
		}
		sameButOurs(t, plain, injected)
		again := submit(t, namespace, cleaned(injected))
		sameInitContainers(t, again, withoutMounts(injected))
		if t.Failed() {
			t.Fatalf("%+v", pod)
		}
	}
	t.Logf("%d of %d pods were valid", count-invalid, count)
}

// pods makes random ones, of whatever might get in the way of an init container.
type pods struct{ *rand.Rand }

func (r pods) maybe(do func()) {
	if r.IntN(3) == 0 {
		do()
	}
}

func pick[T any](r pods, of ...T) T { return of[r.IntN(len(of))] }

// resources are requests, limits, or both and equal, of all or some.
func (r pods) resources() (all corev1.ResourceRequirements) {
	list := corev1.ResourceList{}
	if r.IntN(4) != 0 {
		list[corev1.ResourceCPU] = resource.MustParse(pick(r, "1m", "10m", "250m", "2"))
	}
	if r.IntN(4) != 0 {
		list[corev1.ResourceMemory] = resource.MustParse(pick(r, "1Mi", "8Mi", "64Mi", "3Gi"))
	}
	what := r.IntN(3)
	if what != 0 {
		all.Limits = list
	}
	if what != 1 {
		all.Requests = list
	}
	return all
}

func (r pods) container(name string) corev1.Container {
	c := corev1.Container{Name: name, Image: "registry.invalid/" + name + ":1"}
	r.maybe(func() { c.Command = []string{"/" + name, "a < b && c"} })
	r.maybe(func() { c.Env = []corev1.EnvVar{{Name: "A", Value: "$(B)"}} })
	r.maybe(func() { c.Resources = r.resources() })
	r.maybe(func() {
		c.SecurityContext = &corev1.SecurityContext{RunAsUser: new(r.Int64N(1e6)), RunAsNonRoot: new(r.IntN(2) == 0), ReadOnlyRootFilesystem: new(true)}
	})
	r.maybe(func() {
		c.SecurityContext = &corev1.SecurityContext{Privileged: new(true), Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN"}}}
	})
	r.maybe(func() { c.VolumeMounts = []corev1.VolumeMount{{Name: "scratch", MountPath: "/scratch"}} })
	r.maybe(func() { c.ImagePullPolicy = pick(r, corev1.PullAlways, corev1.PullNever) })
	r.maybe(func() { c.TTY, c.Stdin = true, true })
	return c
}

func (r pods) pod(name string) *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"a": "b"}}}
	s := &pod.Spec
	s.Volumes = []corev1.Volume{{Name: "scratch", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
	for i := range 1 + r.IntN(3) {
		c := r.container(fmt.Sprintf("app-%d", i))
		r.maybe(func() { c.Ports = []corev1.ContainerPort{{ContainerPort: 80 + int32(i)}} })
		r.maybe(func() {
			c.LivenessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(80)}}}
		})
		s.Containers = append(s.Containers, c)
	}
	for i := range r.IntN(4) {
		c := r.container(fmt.Sprintf("init-%d", i))
		r.maybe(func() { c.RestartPolicy = new(corev1.ContainerRestartPolicyAlways) })
		s.InitContainers = append(s.InitContainers, c)
	}
	r.maybe(func() { pod.GenerateName, pod.Name = name+"-", "" })
	r.maybe(func() { s.RestartPolicy = pick(r, corev1.RestartPolicyNever, corev1.RestartPolicyOnFailure) })
	r.maybe(func() {
		s.SecurityContext = &corev1.PodSecurityContext{
			RunAsUser: new(r.Int64N(1e6)), RunAsGroup: new(r.Int64N(1e6)), RunAsNonRoot: new(r.IntN(2) == 0), FSGroup: new(r.Int64N(1e6)),
			SeccompProfile: &corev1.SeccompProfile{Type: pick(r, corev1.SeccompProfileTypeUnconfined, corev1.SeccompProfileTypeRuntimeDefault)},
		}
	})
	r.maybe(func() { s.HostNetwork = r.IntN(2) == 0 })
	r.maybe(func() { s.HostUsers = new(r.IntN(2) == 0) })
	r.maybe(func() { s.HostPID = true })
	r.maybe(func() { s.ShareProcessNamespace = new(true) })
	r.maybe(func() { s.AutomountServiceAccountToken = new(false) })
	r.maybe(func() { s.OS = &corev1.PodOS{Name: corev1.Linux} })
	r.maybe(func() { s.NodeSelector = map[string]string{corev1.LabelOSStable: "linux"} })
	r.maybe(func() { s.Resources = new(r.resources()) })
	r.maybe(func() { s.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "registry"}} })
	r.maybe(func() { s.SchedulingGates = []corev1.PodSchedulingGate{{Name: "example.com/gate"}} })
	r.maybe(func() { s.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}} })
	r.maybe(func() { s.TerminationGracePeriodSeconds = new(r.Int64N(100)) })
	r.maybe(func() { s.ActiveDeadlineSeconds = new(1 + r.Int64N(100)) })
	return pod
}
