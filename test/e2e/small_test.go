//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A small cluster off AWS has neither nodes of the server's own nor an AWS key.
func TestSmallCluster(t *testing.T) {
	t.Cleanup(func() { reinstall(t) })
	if err := install(t.Context(), overlays+"/small"); err != nil {
		t.Fatal(err)
	}
	t.Run("NoDedicatedNodes", noDedicatedNodes)
	t.Run("NoAWSKey", noAWSKey)
}

// Where nodes are few, servers are beside pods, and ip2service beside servers: pods get their
// own roles from the server on their node and from the other, and servers nothing.
func noDedicatedNodes(t *testing.T) {
	servers, err := client.CoreV1().Pods(own).List(t.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=iam4kube-server", FieldSelector: "status.phase=Running"})
	if err != nil {
		t.Fatal(err)
	}
	on := map[string]bool{}
	for _, server := range servers.Items {
		if server.DeletionTimestamp == nil {
			on[server.Spec.NodeName] = true
		}
	}
	if !on["worker-1"] || !on["worker-2"] {
		t.Fatalf("servers on %v", on)
	}
	pods := knockers(t, nodeWide, inPod)
	wantServed(t, pods)
	start := time.Now()
	for _, pod := range newPods(t, pods, "once") {
		pod = waitPod(t, pod.Namespace, pod.Name, ended)
		wantOwn(t, pod, pod.Spec.ServiceAccountName, decode(t, logs(t, pod.Namespace, pod.Name, "client")))
	}
	// Each takes one of the two servers at random.
	untilKnocks(t, pods, func() func(knocks) bool {
		connections := 0
		return func(k knocks) bool { connections += k.HTTP["iam4kube"]; return connections > 20 }
	})
	wantOnlyServed(t, pods, start)
	for _, server := range servers.Items {
		if server.DeletionTimestamp == nil {
			wantRefused(t, &server)
		}
	}
	wantNoLeaks(t)
}

// Without an AWS key pods get the roles that trust their ServiceAccount as roles for IRSA do, by
// both protocols, and are told why where the trust policy is for another's token.
func noAWSKey(t *testing.T) {
	t.Cleanup(func() { wantNoLeaks(t) })
	for i, way := range []path{nodeWide, inPod, withToken} {
		ns, name := namespace(t, way), fmt.Sprintf("role-%02d", 1+i)
		role(t, ns, name)
		create(t, clientPod(ns, name, "sdk"))
		pod := waitPod(t, ns, name, ended)
		a := decode(t, logs(t, ns, name, "client"))
		granted := grantOf(t, a.AccessKeyID)
		if a.Error != "" || !strings.Contains(granted, " AssumeRoleWithWebIdentity role="+account+name+" session="+ns+"@"+name+" ") {
			t.Errorf("%s/%s has %+v of %q", pod.Namespace, pod.Name, a, granted)
		}
		if byToken := a.Provider == "CredentialsEndpointProvider"; byToken != (way == withToken) {
			t.Errorf("%s: the SDK found them by %s", way, a.Provider)
		}
	}

	ns := namespace(t, nodeWide)
	role(t, ns, "role-04")
	create(t, clientPod(ns, "role-04", "once"))
	waitPod(t, ns, "role-04", ended)
	const refused = "STS refuses the role … to ServiceAccount …: AccessDenied: Not authorized to perform sts:AssumeRoleWithWebIdentity " +
		"(the trust policy has to allow sts:AssumeRoleWithWebIdentity to the identity provider … in the role's account, with …:sub system:serviceaccount:…:role-04 and …:aud sts.amazonaws.com). Check"
	wantMessage(t, decode(t, logs(t, ns, "role-04", "client")).Error, refused)
	eventually(t, "the event IAMRoleDenied", func() bool {
		events := mustKubectl(t, "--namespace="+ns, "get", "events", "--field-selector=involvedObject.name=role-04,reason=IAMRoleDenied", "--output=jsonpath={.items[*].message}")
		if events != "" {
			wantMessage(t, events, refused)
		}
		return events != ""
	})
}

// wantRefused asks from a server's own network namespace.
func wantRefused(t *testing.T, server *corev1.Pod) {
	t.Helper()
	const find = `for n in $(ls /run/netns); do if ip netns exec $n ip -4 addr | grep -qw %s; then echo $n; fi; done`
	netns := strings.TrimSpace(onNode(t, server.Spec.NodeName, "sh", "-c", fmt.Sprintf(find, server.Status.PodIP)))
	if netns == "" {
		t.Fatalf("no network namespace of %s", server.Name)
	}
	output := onNode(t, server.Spec.NodeName, "ip", "netns", "exec", netns, "bash", "-c",
		"LC_ALL=C; exec 2>&1; time (exec 3<>/dev/tcp/169.254.169.254/80); true")
	if !strings.Contains(output, "Connection refused") || !strings.Contains(output, "real\t0m0.") {
		t.Errorf("%s on %s asks itself: %s", server.Name, server.Spec.NodeName, output)
	}
}
