package webhook

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/iam4kube/iam4kube/internal/webhook/inject"
	"github.com/iam4kube/iam4kube/test/docs"
)

// seen is what became of a pod.
type seen struct {
	pod      *corev1.Pod
	err      error
	warnings []string
}

// injected is how many init containers are there, or that the pod was refused, and in whose words.
func (s seen) injected(part string) string {
	switch {
	case s.err == nil:
		return fmt.Sprintf("%d init containers", len(s.pod.Spec.InitContainers))
	case strings.Contains(s.err.Error(), part):
		return "refused"
	default:
		return s.err.Error()
	}
}

// differences are by the names that docs/webhook.md has for them: what the webhook and the policies
// make of a pod where that is not the same.
var differences = map[string]struct {
	labels map[string]string
	pod    corev1.Pod
	// without is that there is no Service.
	without         bool
	see             func(seen) string
	webhook, policy string
}{
	"no-service": {
		labels: optIn, without: true, pod: corev1.Pod{Spec: corev1.PodSpec{HostNetwork: true}},
		see:     func(s seen) string { return s.injected("no params found for policy binding") },
		webhook: "0 init containers", policy: "refused",
	},
	"message": {
		labels: optIn, pod: corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: inject.ContainerName, Image: "registry.invalid/app:1"}}}},
		see: func(s seen) string {
			if s.err == nil {
				return "not refused"
			}
			before, after, found := strings.Cut(s.err.Error(), "a container of the pod is called iam4kube-ip2service, as the init container that iam4kube injects: give it another name")
			return fmt.Sprint(found, after, " error first: ", strings.Contains(before, "resulted in error"))
		},
		webhook: "true error first: false", policy: "true error first: true",
	},
	"stricter": {
		labels: optIn, pod: corev1.Pod{Spec: corev1.PodSpec{InitContainers: []corev1.Container{{
			Name: inject.ContainerName, Image: "registry.invalid/other:1", ImagePullPolicy: corev1.PullAlways,
		}}}},
		see: func(s seen) string {
			if s.err != nil {
				return s.err.Error()
			}
			return fmt.Sprint(s.pod.Spec.InitContainers[0].Image, " ", s.pod.Spec.InitContainers[0].ImagePullPolicy)
		},
		webhook: initImage + " Always", policy: initImage + " IfNotPresent",
	},
	"warnings": {
		labels: asksFor, pod: corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "app", Image: "registry.invalid/app:1", Env: []corev1.EnvVar{{Name: "AWS_ACCESS_KEY_ID", Value: "AKIAEXAMPLE"}},
		}}}},
		see:     func(s seen) string { return fmt.Sprint(len(s.warnings), " ", uri(s.pod.Spec.Containers[0])) },
		webhook: "1 ", policy: "0 ",
	},
	"volume": {
		labels: asksFor, pod: corev1.Pod{Spec: corev1.PodSpec{
			Containers: []corev1.Container{{Name: "app", Image: "registry.invalid/app:1", Env: []corev1.EnvVar{{Name: "AWS_ACCESS_KEY_ID", Value: "AKIAEXAMPLE"}}}},
			Volumes:    []corev1.Volume{{Name: "iam4kube-token", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}},
		}},
		see:     func(s seen) string { return s.injected("a volume of the pod is called iam4kube-token") },
		webhook: "refused", policy: "0 init containers",
	},
	"path": {
		labels: asksFor, pod: corev1.Pod{Spec: corev1.PodSpec{
			Containers: []corev1.Container{{Name: "app", Image: "registry.invalid/app:1", VolumeMounts: []corev1.VolumeMount{{
				Name: "data", MountPath: "/var/lib/../run/secrets/iam4kube.io/serviceaccount",
			}}}},
			Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}},
		}},
		see: func(s seen) string {
			if s.err != nil {
				return s.err.Error()
			}
			return uri(s.pod.Spec.Containers[0])
		},
		webhook: "", policy: "/v1/credentials, file true, mounted true",
	},
}

// TestPolicyDiffersAsDocumented: the table of docs/webhook.md is what the API server makes of pods by
// the webhook and by the policies. All else is the same, see TestFixturesByPolicy.
func TestPolicyDiffersAsDocumented(t *testing.T) {
	documented := docs.Rows(t, "webhook.md", "Without the webhook")
	if have, want := slices.Sorted(maps.Keys(documented)), slices.Sorted(maps.Keys(differences)); !slices.Equal(have, want) {
		t.Errorf("docs/webhook.md has %q, the test %q", have, want)
	}
	for way, begin := range ways {
		t.Run(way, func(t *testing.T) {
			if way == "webhook" {
				installTokens(t, startReady(t))
			} else {
				begin(t)
			}
			for name, d := range differences {
				t.Run(name, func(t *testing.T) {
					want := d.webhook
					if way == "policy" {
						want = d.policy
					}
					if d.without {
						t.Cleanup(func() { replaceService(t, service()) })
						replaceService(t, nil)
					}
					namespace := newNamespace(t, "", d.labels)
					eventually(t, func() error { // the API server's watch of Services is later
						if have := d.see(look(t, namespace, &d.pod)); have != want {
							return fmt.Errorf("%s, want %s", have, want)
						}
						return nil
					})
				})
			}
		})
	}
}

func look(t *testing.T, namespace string, pod *corev1.Pod) seen {
	t.Helper()
	heard := &warnings{}
	cfg := cp.Config()
	cfg.WarningHandler = heard
	pod = pod.DeepCopy()
	pod.Name = "app"
	if len(pod.Spec.Containers) == 0 {
		pod.Spec.Containers = plainSpec().Containers
	}
	created, err := kubernetes.NewForConfigOrDie(cfg).CoreV1().Pods(namespace).Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	return seen{created, err, heard.take()}
}
