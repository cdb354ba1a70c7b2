//go:build e2e

package e2e

import (
	"context"
	"maps"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// confined is what the kernel says of ip2service as this user with these capabilities, which are
// all that it can get.
func confined(user, capabilities string) map[string]string {
	ids := strings.TrimSpace(strings.Repeat(user+" ", 4)) // real, effective, saved, of the file system
	return map[string]string{
		"Uid": ids, "Gid": ids,
		"CapInh": "0000000000000000", "CapPrm": capabilities, "CapEff": capabilities, "CapBnd": capabilities, "CapAmb": "0000000000000000",
		"NoNewPrivs": "1", "Seccomp": "2",
	}
}

// netAdmin is 1<<CAP_NET_ADMIN, and bpfToo has 1<<CAP_BPF besides.
const netAdmin, bpfToo = "0000000000001000", "0000008000001000"

func wantConfined(t *testing.T, pod *corev1.Pod, container string, want map[string]string) {
	t.Helper()
	got := status(t, pod, container)
	maps.DeleteFunc(got, func(name, _ string) bool { return want[name] == "" })
	if !maps.Equal(got, want) {
		t.Errorf("%s of %s/%s: %v, want %v", container, pod.Namespace, pod.Name, got, want)
	}
}

// It has the one capability from its file and is not root, but for eBPF.
func TestIP2ServiceHasNothingButItsCapabilities(t *testing.T) {
	t.Parallel()
	want := confined("65532", netAdmin)
	if dataPath == "ebpf" {
		want = confined("0", bpfToo)
	}
	pods, err := client.CoreV1().Pods(own).List(t.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=iam4kube-ip2service"})
	if err != nil {
		t.Fatal(err)
	}
	for _, pod := range pods.Items {
		wantConfined(t, &pod, "ip2service", want)
	}
	if len(pods.Items) != 2 {
		t.Errorf("%d pods of ip2service, want one on each worker", len(pods.Items))
	}
}

// Whatever a pod asks for all its containers, the injected one is confined, and does its work.
func TestInitContainerHasNothingButNetAdmin(t *testing.T) {
	root, user, group, yes := int64(0), int64(1000), int64(2000), true
	ns := namespace(t, inPod)
	release := hold(t, "worker-2")
	pods := map[string]*corev1.PodSecurityContext{
		"role-06": nil,
		"role-07": {RunAsUser: &root, RunAsGroup: &root},
		"role-08": {RunAsUser: &user, RunAsGroup: &group, RunAsNonRoot: &yes, FSGroup: &group, SupplementalGroups: []int64{0, 27}},
		"role-09": {SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeUnconfined}, RunAsUser: &root, FSGroup: &root},
	}
	for name, context := range pods {
		role(t, ns, name)
		pod := onWorker(clientPod(ns, name, "wait"), "worker-2")
		pod.Spec.SecurityContext = context
		create(t, pod)
	}
	for name := range pods {
		pod := waitPod(t, ns, name, initialising)
		wantConfined(t, pod, "iam4kube-ip2service", confined("65532", netAdmin))
	}
	release()
	for name := range pods {
		pod := waitPod(t, ns, name, running)
		a, err := once(t, ns, name)
		if err != nil {
			t.Error(err)
		}
		wantOwn(t, pod, name, a)
	}
	if uid := status(t, waitPod(t, ns, "role-07", running), "client")["Uid"]; !strings.HasPrefix(uid, "0 ") {
		t.Errorf("the pod's own container runs as %s: what the pod asks for was changed", uid)
	}
}

// hold keeps the pods of a node from the servers, so that init containers wait, until release.
func hold(t *testing.T, node string) (release func()) {
	t.Helper()
	const table = "inet e2e-hold"
	onNode(t, node, "nft", "add table "+table+"; add chain "+table+" c { type filter hook forward priority 0; }; add rule "+table+" c tcp dport 8080 drop")
	held := true
	release = func() {
		if !held {
			return
		}
		held = false
		cmd, err := machine.Command(context.Background(), node, "nft", "delete table "+table)
		if err == nil {
			err = cmd.Run()
		}
		if err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(release)
	return release
}

// Without NET_ADMIN the kernel does not even start the program, whoever runs it: that is what
// a user sees where admission takes the capability away instead of refusing the pod.
func TestWithoutNetAdminTheInitContainerCannotStart(t *testing.T) {
	t.Parallel()
	root, user, no := int64(0), int64(65532), false
	ns := namespace(t, nodeWide)
	for name, uid := range map[string]*int64{"as-root": &root, "as-65532": &user} {
		pod := onWorker(clientPod(ns, "default", ""), "worker-1")
		pod.Name = name
		pod.Spec.Containers[0] = corev1.Container{
			Name: "ip2service", Image: "registry.invalid/iam4kube/ip2service-init:" + tag, Args: []string{"--mode=pod", "--to=" + service(t) + ":80"},
			SecurityContext: &corev1.SecurityContext{
				RunAsUser: uid, AllowPrivilegeEscalation: &no, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			},
		}
		create(t, pod)
		pod = waitPod(t, ns, name, ended)
		// Newer runtimes tell it in the container's state, with the reason StartError.
		said := string(logs(t, ns, name, "ip2service")) + pod.Status.ContainerStatuses[0].State.Terminated.Message
		if pod.Status.Phase != corev1.PodFailed || !strings.Contains(said, "operation not permitted") {
			t.Errorf("%s: %s, %q", name, pod.Status.Phase, said)
		}
		t.Logf("%s: %s", name, said)
	}
}
