//go:build e2e

package e2e

import (
	"context"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Whatever of iam4kube is not there, pods that are covered meet it or nobody. They keep trying
// every way to the metadata address throughout.
func TestFailsClosed(t *testing.T) {
	t.Cleanup(func() { reinstall(t) })
	pods := knockers(t, nodeWide, inPod)
	wantServed(t, pods)
	t.Run("no webhook", func(t *testing.T) { noWebhook(t, pods) })
	t.Run("no ip2service", func(t *testing.T) { noIP2Service(t, pods) })
	t.Run("no server", func(t *testing.T) { noServer(t, pods) })
	wantNoLeaks(t)
}

// reinstall puts back whatever a test has changed.
func reinstall(t *testing.T) {
	t.Helper()
	if err := install(context.Background(), both); err != nil {
		t.Error(err)
	}
}

// newPods makes others of the same ServiceAccounts in the same places.
func newPods(t *testing.T, pods []*corev1.Pod, argument string) (news []*corev1.Pod) {
	t.Helper()
	for _, pod := range pods {
		other := onWorker(clientPod(pod.Namespace, pod.Spec.ServiceAccountName, argument), pod.Spec.NodeName)
		other.Spec.HostNetwork = pod.Spec.HostNetwork
		other.Name = ""
		other.GenerateName = pod.Spec.ServiceAccountName + "-"
		other, err := client.CoreV1().Pods(pod.Namespace).Create(t.Context(), other, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		news = append(news, other)
	}
	return news
}

// The rules stay without ip2service, and go on leading to the servers of before.
func noIP2Service(t *testing.T, pods []*corev1.Pod) {
	t.Helper()
	start := time.Now()
	mustKubectl(t, "--namespace="+own, "delete", "daemonset", "iam4kube-ip2service")
	gone(t, "ip2service")
	for _, node := range []string{"worker-1", "worker-2"} {
		if table := onNode(t, node, "nft", "list", "table", "ip", "iam4kube"); !strings.Contains(table, "169.254.169.254") {
			t.Errorf("%s has the rules\n%s", node, table)
		}
	}
	for i, pod := range newPods(t, pods, "once") {
		ended := waitPod(t, pod.Namespace, pod.Name, ended)
		wantOwn(t, ended, pods[i].Spec.ServiceAccountName, decode(t, logs(t, ended.Namespace, ended.Name, "client")))
	}
	wantOnlyServed(t, pods, start)
	wantNoLeaks(t)
}

// Without servers, too, the node's rules lead to where nobody is any more, and the pods' own to
// a Service without endpoints.
func noServer(t *testing.T, pods []*corev1.Pod) {
	t.Helper()
	mustKubectl(t, "--namespace="+own, "scale", "deployment/iam4kube-server", "--replicas=0")
	gone(t, "server")
	// Those that are started now, too, have nobody.
	news := newPods(t, pods[:2], "once")
	untilKnocks(t, pods, always(func(k knocks) bool { return k.HTTP["iam4kube"] == 0 }))
	for _, pod := range news {
		pod = waitPod(t, pod.Namespace, pod.Name, ended)
		if a := decode(t, logs(t, pod.Namespace, pod.Name, "client")); !strings.Contains(a.Error, "169.254.169.254") || a.Role != "" {
			t.Errorf("%+v, want no answer", a)
		}
	}
	// Injected ones wait for a server.
	news = newPods(t, pods[2:], "once")
	for _, pod := range news {
		waitPod(t, pod.Namespace, pod.Name, initialising)
	}
	wantNoLeaks(t)
	mustKubectl(t, "--namespace="+own, "scale", "deployment/iam4kube-server", "--replicas=2")
	if dataPath == "ebpf" {
		reinstall(t) // the node's programs lead injected pods, too, and without ip2service to nobody
	}
	for i, pod := range news {
		pod = waitPod(t, pod.Namespace, pod.Name, ended)
		wantOwn(t, pod, pods[2+i].Spec.ServiceAccountName, decode(t, logs(t, pod.Namespace, pod.Name, "client")))
	}
	reinstall(t)
	wantServed(t, pods)
}

// gone waits until the last pod of a part has ended.
func gone(t *testing.T, part string) {
	t.Helper()
	mustKubectl(t, "--namespace="+own, "wait", "--for=delete", "pods", "--selector=app.kubernetes.io/name=iam4kube-"+part, "--timeout="+within.String())
}

func noWebhook(t *testing.T, pods []*corev1.Pod) {
	t.Helper()
	start := time.Now()
	mustKubectl(t, "--namespace="+own, "delete", "deployment", "iam4kube-webhook")
	gone(t, "webhook")
	plain, optedIn := pods[0], pods[2]
	pod := onWorker(clientPod(optedIn.Namespace, optedIn.Spec.ServiceAccountName, "once"), "worker-1")
	pod.Name = "refused"
	if _, err := client.CoreV1().Pods(pod.Namespace).Create(t.Context(), pod, metav1.CreateOptions{}); err == nil || !strings.Contains(err.Error(), "inject.iam4kube.io") {
		t.Errorf("a pod of a namespace that opted in: %v, want to be refused by inject.iam4kube.io", err)
	}
	// What opted out, other namespaces and iam4kube itself are unaffected.
	pod.Labels = map[string]string{"iam4kube.io/inject": "disabled"}
	create(t, pod)
	for _, pod := range append(newPods(t, []*corev1.Pod{plain}, "once"), pod) {
		ended := waitPod(t, pod.Namespace, pod.Name, ended)
		wantOwn(t, ended, pod.Spec.ServiceAccountName, decode(t, logs(t, ended.Namespace, ended.Name, "client")))
	}
	mustKubectl(t, "--namespace="+own, "delete", "pods", "--selector=app.kubernetes.io/name=iam4kube-ip2service", "--field-selector=spec.nodeName=worker-1")
	if err := rolledOut(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantOnlyServed(t, pods, start)
	wantNoLeaks(t)
	reinstall(t)
	for _, pod := range newPods(t, []*corev1.Pod{optedIn}, "once") {
		ended := waitPod(t, pod.Namespace, pod.Name, ended)
		wantOwn(t, ended, pod.Spec.ServiceAccountName, decode(t, logs(t, ended.Namespace, ended.Name, "client")))
	}
}

// Pods that nothing covers are seen by the counter that all tests rely on.
func TestTheCounterSeesLeaks(t *testing.T) {
	ns := namespace(t, nodeWide)
	pod := onWorker(clientPod(ns, "default", "once"), "worker-1")
	pod.Spec.HostNetwork = true
	leaks := leaking(t, func() {
		create(t, pod)
		pod = waitPod(t, ns, pod.Name, ended)
	})
	if a := decode(t, logs(t, ns, pod.Name, "client")); leaks == 0 || !strings.Contains(a.Error, "not by iam4kube") {
		t.Errorf("a pod on the host's network: %d packets, %+v", leaks, a)
	}
}
