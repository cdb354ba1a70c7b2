//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/test/docs"
)

// rebooted is the node that is powered off.
const rebooted = "worker-2"

// After a boot a node has no rules until ip2service has put them in. Its pods start again at
// the same time as that, and no taint keeps them off a node that they are on already. So this
// measures how much gets out, and shows what keeps it in: the pod's own rules, and rules that
// are there from the node's boot on.
func TestReboot(t *testing.T) {
	t.Cleanup(func() { startAgain(t) })
	var pods []*corev1.Pod
	for i, way := range []path{nodeWide, inPod} {
		pod := knocker(namespace(t, way), fmt.Sprintf("role-%02d", 1+i), rebooted)
		role(t, pod.Namespace, pod.Name)
		create(t, pod)
		waitPod(t, pod.Namespace, pod.Name, running)
		pods = append(pods, pod)
	}
	wantServed(t, pods)
	start := time.Now()
	packets := leaking(t, func() {
		reboot(t, func() {})
		wantServed(t, pods)
	})
	t.Logf("node-wide alone: %d packets got out between boot and ip2service", packets)
	if err := eachKnocks(t.Context(), pods[1], start, false, func(k knocks) bool {
		if !k.only("iam4kube", "refused", "timeout") {
			t.Errorf("the injected pod: %+v", k)
		}
		return true
	}); err != nil {
		t.Error(err)
	}

	if !strings.Contains(docs.Text(t, "routing.md"), bootGuard) {
		t.Error("docs/routing.md has other rules")
	}
	reboot(t, func() { onNode(t, rebooted, "nft", bootGuard) })
	wantServed(t, pods)
	wantNoLeaks(t)
}

// bootGuard is what an image of a node can load before its kubelet starts (docs/routing.md).
// ip2service takes the table over.
const bootGuard = `table ip iam4kube { chain guard { type filter hook forward priority -50; ip daddr 169.254.169.254 drop; }; }
table ip6 iam4kube { chain guard { type filter hook forward priority -50; ip6 daddr fd00:ec2::254 drop; }; }
`

// reboot powers a node off and on, and does something before its kubelet runs.
func reboot(t *testing.T, early func()) {
	t.Helper()
	if err := machine.PowerOff(t.Context(), rebooted); err != nil {
		t.Fatal(err)
	}
	lease := renewed(t.Context(), t)
	if err := machine.PowerOn(t.Context(), rebooted); err != nil {
		t.Fatal(err)
	}
	early()
	eventually(t, "its kubelet is back", func() bool { return renewed(t.Context(), t).After(lease) })
	if err := rolledOut(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// renewed is when a node's kubelet was last heard of.
func renewed(ctx context.Context, t *testing.T) time.Time {
	t.Helper()
	lease, err := client.CoordinationV1().Leases("kube-node-lease").Get(ctx, rebooted, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return lease.Spec.RenewTime.Time
}

// A new node that comes with the start-up taint takes no pods before its rules are in.
func TestStartupTaint(t *testing.T) {
	t.Cleanup(func() { startAgain(t) })
	if err := install(t.Context(), overlays+"/startup-taint"); err != nil {
		t.Fatal(err)
	}
	if err := machine.PowerOff(t.Context(), rebooted); err != nil {
		t.Fatal(err)
	}
	mustKubectl(t, "delete", "node", rebooted, "--wait=false")
	// As its kubelet would with --register-with-taints.
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: rebooted, Labels: map[string]string{"kubernetes.io/hostname": rebooted, "kubernetes.io/os": "linux"}}}
	node.Spec.Taints = []corev1.Taint{{Key: "iam4kube.io/not-ready", Effect: corev1.TaintEffectNoSchedule}}
	eventually(t, "the new node is there", func() bool {
		_, err := client.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{})
		return err == nil
	})
	ns := namespace(t, nodeWide)
	role(t, ns, "role-01")
	pod := knocker(ns, "role-01", rebooted)
	create(t, pod)
	if err := machine.PowerOn(t.Context(), rebooted); err != nil {
		t.Fatal(err)
	}
	pod = waitPod(t, ns, pod.Name, running)
	wantOnlyServed(t, []*corev1.Pod{pod}, pod.CreationTimestamp.Time)
	wantNoLeaks(t)
	back, err := client.CoreV1().Nodes().Get(t.Context(), rebooted, metav1.GetOptions{})
	if err != nil || len(back.Spec.Taints) != 0 {
		t.Errorf("taints: %v, %v", back.Spec.Taints, err)
	}
}

// TestNodeStartsKubeProxyAgain: it ends by itself when its node's addresses change.
func TestNodeStartsKubeProxyAgain(t *testing.T) {
	const node = "worker-1"
	before := strings.TrimSpace(onNode(t, node, "pidof", "kube-proxy"))
	onNode(t, node, "sh", "-c", "kill "+before) // a minimal Debian has no kill
	eventually(t, "another kube-proxy", func() bool {
		now := onNode(t, node, "sh", "-c", "pidof kube-proxy; true")
		return len(strings.Fields(now)) == 1 && strings.TrimSpace(now) != before
	})
}

// startAgain brings the node back, and iam4kube on it.
func startAgain(t *testing.T) {
	t.Helper()
	status, err := machine.Status(context.Background())
	if err == nil && status.Nodes[rebooted] == 0 {
		err = machine.PowerOn(context.Background(), rebooted)
	}
	if err != nil {
		t.Error(err)
	}
	_, _ = kubectl(context.Background(), "", "delete", "clusterrole,clusterrolebinding", "iam4kube-ip2service-startup-taint", "--ignore-not-found")
	reinstall(t)
}
