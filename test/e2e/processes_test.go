//go:build e2e

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strings"
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

// dial opens a TCP connection in a running client's network.
func dial(t *testing.T, pod *corev1.Pod, host string, port int) string {
	t.Helper()
	connect := fmt.Sprintf("exec 3<>/dev/tcp/%s/%d", host, port)
	cmd, err := machine.Command(t.Context(), pod.Spec.NodeName, "nsenter", "--net=/proc/"+pid(t, pod, "client")+"/ns/net", "--",
		"timeout", "3", "bash", "-c", connect)
	if err != nil {
		t.Fatal(err)
	}
	var failure bytes.Buffer
	cmd.Stderr = &failure
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return open
	case errors.As(err, &exit) && exit.ExitCode() == 124:
		return timeout
	case strings.Contains(failure.String(), "Connection refused"):
		return refused
	}
	t.Fatalf("connecting from %s/%s to %s: %v: %s", pod.Namespace, pod.Name, net.JoinHostPort(host, fmt.Sprint(port)), err, failure.String())
	return ""
}

// wantDial checks what comes of a connection.
func wantDial(t *testing.T, pod *corev1.Pod, host string, port int, want string) {
	t.Helper()
	if got := dial(t, pod, host, port); got != want {
		t.Errorf("%s/%s to %s:%d: %s, want %s", pod.Namespace, pod.Name, host, port, got, want)
	}
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
