//go:build e2e

package e2e

import (
	"fmt"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Pods, init containers of the user's own and Jobs ask at once, on both workers, on both
// paths, and are made in the moment in which their ServiceAccounts are: each gets its own
// role, and the server sees its own address.
func TestEveryPodGetsItsOwnRole(t *testing.T) {
	t.Parallel()
	t.Cleanup(func() { wantNoLeaks(t) })
	next := 0
	for _, way := range []path{nodeWide, inPod} {
		ns := namespace(t, way)
		for _, node := range []string{"worker-1", "worker-2"} {
			for _, kind := range []string{"pod", "init container", "job"} {
				next++
				name := fmt.Sprintf("role-%02d", next)
				t.Run(fmt.Sprintf("%s/%s/%s", way, node, kind), func(t *testing.T) {
					t.Parallel()
					role(t, ns, name)
					pod := onWorker(clientPod(ns, name, "once"), node)
					container := "client"
					switch kind {
					case "init container":
						container = "first"
						first := pod.Spec.Containers[0]
						first.Name = container
						pod.Spec.InitContainers = []corev1.Container{first}
						pod.Spec.Containers[0].Args = []string{"wait"}
						create(t, pod)
						pod = waitPod(t, ns, name, func(p *corev1.Pod) bool { return running(p) || ended(p) })
					case "job":
						pod = runJob(t, pod)
					default:
						create(t, pod)
						pod = waitPod(t, ns, name, ended)
					}
					a := decode(t, logs(t, ns, pod.Name, container))
					wantOwn(t, pod, name, a)
					t.Logf("credentials %.3f s after the pod's first request", a.Seconds)
				})
			}
		}
	}
}

// runJob makes a Job of a pod and returns its first pod, ended.
func runJob(t *testing.T, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	never := int32(0)
	job := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name}, Spec: batchv1.JobSpec{
		BackoffLimit: &never,
		Template:     corev1.PodTemplateSpec{Spec: pod.Spec},
	}}
	if _, err := client.BatchV1().Jobs(job.Namespace).Create(t.Context(), job, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	selector := "job-name=" + job.Name
	return waitFor(t, job.Namespace, metav1.ListOptions{LabelSelector: selector}, ended)
}

func wantNoLeaks(t *testing.T) {
	t.Helper()
	if err := noLeaks(); err != nil {
		t.Error(err)
	}
}
