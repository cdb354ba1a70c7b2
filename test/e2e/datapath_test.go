//go:build e2e

package e2e

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// classes are the requests and limits that make a pod one of each QoS class: kubelet has a cgroup
// of pods for each but the last one's, which are directly below the cgroup of all.
var classes = []struct {
	class            corev1.PodQOSClass
	requests, limits corev1.ResourceList
}{
	{corev1.PodQOSBestEffort, nil, nil},
	{corev1.PodQOSBurstable, some, nil},
	{corev1.PodQOSGuaranteed, some, some},
}

var some = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("64Mi")}

// Pods of every QoS class are led by the column's data path: their init containers, what they run,
// and what is executed in them. Those on the host's network reach what the host reaches, here a
// metadata service of the test's own, which knows no PUT.
func TestEveryQoSClassIsLed(t *testing.T) {
	const node = "worker-1"
	serveMetadata(t, node)
	ns := namespace(t, nodeWide)
	role(t, ns, "role-16")
	for _, c := range classes {
		before := ledBy(t, node)
		pod := ofClass(ns, node, string(c.class), c.requests, c.limits)
		create(t, pod)
		pod = waitPod(t, ns, pod.Name, asked)
		if pod.Status.QOSClass != c.class {
			t.Errorf("%s is %s", pod.Name, pod.Status.QOSClass)
		}
		executed, err := once(t, ns, pod.Name)
		if err != nil {
			t.Error(err)
		}
		for _, a := range []answer{decode(t, logs(t, ns, pod.Name, "first")), decode(t, logs(t, ns, pod.Name, "beside")), executed} {
			wantOwn(t, pod, "role-16", a)
		}
		for path, connections := range ledBy(t, node) {
			if more := connections - before[path]; (more >= 3) != (path == dataPath) || path != dataPath && more > 0 {
				t.Errorf("%s: %d connections by %s", c.class, more, path)
			}
		}

		host := ofClass(ns, node, string(c.class)+"-host", c.requests, c.limits)
		host.Spec.HostNetwork, host.Spec.InitContainers = true, nil
		create(t, host)
		waitPod(t, ns, host.Name, asked)
		if a := decode(t, logs(t, ns, host.Name, "beside")); a.AccessKeyID != "" || !strings.Contains(a.Error, "501") {
			t.Errorf("%s got %+v, want the node's own metadata service", host.Name, a)
		}
	}
	wantNoLeaks(t)
}

// ofClass is a pod with an init container and two others, of which one stays.
func ofClass(ns, node, name string, requests, limits corev1.ResourceList) *corev1.Pod {
	pod := onWorker(clientPod(ns, "role-16", "wait"), node)
	pod.Name = strings.ToLower(name)
	client := pod.Spec.Containers[0]
	client.Resources = corev1.ResourceRequirements{Requests: requests, Limits: limits}
	first, beside := client, client
	first.Name, first.Args = "first", []string{"once"}
	beside.Name, beside.Args = "beside", []string{"once"}
	pod.Spec.InitContainers, pod.Spec.Containers = []corev1.Container{first}, []corev1.Container{client, beside}
	return pod
}

// asked: what asks once has done so, beside what stays.
func asked(pod *corev1.Pod) bool {
	done := func(s corev1.ContainerStatus) bool { return s.Name == "beside" && s.State.Terminated != nil }
	return slices.ContainsFunc(pod.Status.ContainerStatuses, done)
}

var ledConnections = regexp.MustCompile(`(?m)^iam4kube_data_path_connections_total\{data_path="(\w+)",family="ip"\} (\d+)$`)

// ledBy is how many connections each data path of a node has led.
func ledBy(t *testing.T, node string) map[string]int {
	t.Helper()
	led := map[string]int{}
	for _, found := range ledConnections.FindAllStringSubmatch(aux(t, node, "/metrics"), -1) {
		count, err := strconv.Atoi(found[2])
		if err != nil {
			t.Fatal(err)
		}
		led[found[1]] = count
	}
	if _, ok := led[dataPath]; !ok {
		t.Fatalf("%s does not count connections by %s: %v", node, dataPath, led)
	}
	return led
}
