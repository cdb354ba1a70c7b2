//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// containerID is what containerd calls a container of a pod that has been started.
func containerID(t *testing.T, pod *corev1.Pod, container string) string {
	t.Helper()
	for _, status := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		if _, id, ok := strings.Cut(status.ContainerID, "containerd://"); ok && status.Name == container {
			return id
		}
	}
	t.Fatalf("%s/%s has no container %s that was started", pod.Namespace, pod.Name, container)
	return ""
}

// pid is that of a running container on its node.
func pid(t *testing.T, pod *corev1.Pod, container string) string {
	t.Helper()
	id := containerID(t, pod, container)
	for line := range strings.Lines(onNode(t, pod.Spec.NodeName, "ctr", "--namespace=k8s.io", "tasks", "ls")) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == id {
			return fields[1]
		}
	}
	t.Fatalf("container %s of %s/%s does not run", container, pod.Namespace, pod.Name)
	return ""
}

// status is what the kernel says of a running container's process.
func status(t *testing.T, pod *corev1.Pod, container string) map[string]string {
	t.Helper()
	fields := map[string]string{}
	for line := range strings.Lines(onNode(t, pod.Spec.NodeName, "cat", "/proc/"+pid(t, pod, container)+"/status")) {
		if name, value, ok := strings.Cut(line, ":"); ok {
			fields[name] = strings.Join(strings.Fields(value), " ")
		}
	}
	return fields
}

// What comes of a connection.
const (
	open    = "open"
	refused = "refused"
	timeout = "nobody answers"
)

// connection is a TCP connection, and what is to come of it.
type connection struct {
	host string
	port int
	want string
}

// dial opens it in the network of a process of the node.
func (c connection) dial(ctx context.Context, node, pid string) (string, error) {
	connect := fmt.Sprintf("exec 3<>/dev/tcp/%s/%d", c.host, c.port)
	cmd, err := machine.Command(ctx, node, "nsenter", "--net=/proc/"+pid+"/ns/net", "--", "timeout", "3", "bash", "-c", connect)
	if err != nil {
		return "", err
	}
	var failure bytes.Buffer
	cmd.Stderr = &failure
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return open, nil
	case errors.As(err, &exit) && exit.ExitCode() == 124:
		return timeout, nil
	case strings.Contains(failure.String(), "Connection refused"):
		return refused, nil
	}
	return "", fmt.Errorf("%w: %s", err, failure.String())
}

// wantDials checks what comes of connections from each of the running clients, beside each
// other, because it takes some three seconds to see that nobody answers.
func wantDials(t *testing.T, pods []*corev1.Pod, connections ...connection) {
	t.Helper()
	var dials sync.WaitGroup
	for _, pod := range pods {
		process := pid(t, pod, "client")
		for _, c := range connections {
			dials.Go(func() {
				if got, err := c.dial(t.Context(), pod.Spec.NodeName, process); err != nil || got != c.want {
					t.Errorf("%s/%s to %s:%d: %s, %v, want %s", pod.Namespace, pod.Name, c.host, c.port, got, err, c.want)
				}
			})
		}
	}
	dials.Wait()
}

// aPod is a ready pod of one of iam4kube's programs.
func aPod(t *testing.T, name string) *corev1.Pod {
	t.Helper()
	return waitFor(t, own, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + name}, func(pod *corev1.Pod) bool {
		return pod.DeletionTimestamp == nil && slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		})
	})
}
