//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/test/netns"
)

// Whatever of iam4kube is not there, pods that ask for container credentials, also those on the
// host's network, meet it or nobody.
func TestContainerCredentialsFailClosed(t *testing.T) {
	t.Cleanup(func() { reinstall(t) })
	start := time.Now()
	var pods []*corev1.Pod
	for _, way := range []path{withToken, inPodToken, onHost} {
		pods = append(pods, containerKnockers(t, way)...)
	}
	for i, pod := range pods {
		pods[i] = waitPod(t, pod.Namespace, pod.Name, running)
	}
	wantServed(t, pods)
	// Of a pod's own rules it is kube-proxy that refuses, whose node says so once a second at most.
	refused := always(func(k knocks) bool { return k.only("refused", "timeout") })
	for _, state := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"ip2service is killed", func(t *testing.T) {
			t.Helper()
			served := time.Now()
			killIP2Service(t)
			wantOnlyServed(t, pods, served)
		}},
		{"no server", func(t *testing.T) {
			t.Helper()
			scaleServer(t, 0)
			untilKnocks(t, pods, refused)
			scaleServer(t, 2)
			wantServed(t, pods)
		}},
		{"no ip2service", func(t *testing.T) {
			t.Helper()
			served := time.Now()
			mustKubectl(t, "--namespace="+own, "delete", "daemonset", "iam4kube-ip2service")
			gone(t, "ip2service")
			wantNewServed(t, pods)
			wantOnlyServed(t, pods, served)
		}},
		{"neither", func(t *testing.T) {
			t.Helper()
			scaleServer(t, 0)
			untilKnocks(t, pods, always(func(k knocks) bool { return k.HTTP["iam4kube"] == 0 }))
		}},
	} {
		if !t.Run(state.name, func(t *testing.T) {
			state.run(t)
			wantNobodyElse(t, pods, start)
		}) {
			return // each begins with what the one before has left
		}
	}
	reinstall(t)
	wantServed(t, pods)
	wantNobodyElse(t, pods, start)
}

// containerKnockers are on both workers, each at another address.
func containerKnockers(t *testing.T, way path) (pods []*corev1.Pod) {
	t.Helper()
	ns := namespace(t, way)
	for i, node := range []string{"worker-1", "worker-2"} {
		name := fmt.Sprintf("role-%02d", 1+i)
		role(t, ns, name)
		pod := way.of(knocker(ns, name, node))
		pod.Spec.Containers[0].Args = append(pod.Spec.Containers[0].Args, containerAddresses[i])
		create(t, pod)
		pods = append(pods, pod)
	}
	return pods
}

// killIP2Service leaves its pods, whose containers start anew.
func killIP2Service(t *testing.T) {
	t.Helper()
	for _, node := range []string{"worker-1", "worker-2"} {
		name := ip2serviceOn(t, node)
		before, err := client.CoreV1().Pods(own).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		onNode(t, node, "ctr", "--namespace=k8s.io", "tasks", "kill", "--signal=SIGKILL", containerID(t, before, "ip2service"))
		waitPod(t, own, name, func(pod *corev1.Pod) bool {
			now := pod.Status.ContainerStatuses[0]
			return now.RestartCount > before.Status.ContainerStatuses[0].RestartCount && now.Ready
		})
	}
}

func scaleServer(t *testing.T, replicas int) {
	t.Helper()
	mustKubectl(t, "--namespace="+own, "scale", "deployment/iam4kube-server", fmt.Sprint("--replicas=", replicas))
	if replicas == 0 {
		gone(t, "server")
	}
}

// wantNewServed starts others beside the pods: an SDK gets their roles.
func wantNewServed(t *testing.T, pods []*corev1.Pod) {
	t.Helper()
	for i, pod := range newPods(t, pods, "sdk") {
		pod = waitPod(t, pod.Namespace, pod.Name, ended)
		if pod.Spec.HostNetwork != pods[i].Spec.HostNetwork {
			t.Errorf("%s/%s is not where the other one is", pod.Namespace, pod.Name)
		}
		wantProven(t, pod, decode(t, logs(t, pod.Namespace, pod.Name, "client")))
	}
}

// wantNobodyElse checks that nobody but iam4kube has answered the pods since then, and nothing
// has left the nodes.
func wantNobodyElse(t *testing.T, pods []*corev1.Pod, then time.Time) {
	t.Helper()
	for _, pod := range pods {
		if err := eachKnocks(t.Context(), pod, then, false, func(k knocks) bool {
			for outcome := range k.HTTP {
				if strings.HasPrefix(outcome, "answered by another") {
					t.Errorf("%s/%s: %+v", pod.Namespace, pod.Name, k)
				}
			}
			for outcome := range k.Others {
				if outcome != "closed" && outcome != "silent" {
					t.Errorf("%s/%s: %+v", pod.Namespace, pod.Name, k)
				}
			}
			return true
		}); err != nil {
			t.Error(err)
		}
	}
	wantNoLeaks(t)
}

// On a node without ip2service somebody else answers at these addresses, and the counter that
// the test relies on sees it.
func TestTheCounterSeesLeaksOfContainerCredentials(t *testing.T) {
	for _, address := range containerAddresses {
		var answer string
		leaks := leaking(t, func() {
			answer = onNode(t, "server-1", "bash", "-c", `exec 3<>/dev/tcp/`+address+`/80; printf 'GET /v1/credentials HTTP/1.0\r\n\r\n' >&3; cat <&3`)
		})
		if leaks == 0 || !strings.Contains(answer, netns.NodeRole) {
			t.Errorf("%s on a node without ip2service: %d packets, %q", address, leaks, answer)
		}
	}
}
