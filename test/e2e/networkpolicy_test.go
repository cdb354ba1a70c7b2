//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/iam4kube/iam4kube/test/cluster"
	"github.com/iam4kube/iam4kube/test/controlplane"
)

const (
	// example is what the documentation shows.
	example = "../../docs/examples/networkpolicy.yaml"
	vip     = "169.254.169.254"
)

// enforce makes all nodes enforce NetworkPolicies for the rest of the test.
func enforce(t *testing.T) {
	t.Helper()
	program, err := controlplane.BuildNetworkPolicy(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range cluster.FourNodes() {
		enforceOn(t, node.Name, program)
	}
}

func enforceOn(t *testing.T, node, program string) {
	t.Helper()
	// Not the test's context: that ends before the clean-up.
	cmd, err := machine.Command(context.Background(), node, program, "--kubeconfig="+machine.InnerKubeconfig(), "--node="+node, "--pods="+cluster.PodNetwork)
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(machine.Dir, "log", node+"-networkpolicy.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stderr = log
	input, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	output, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		input.Close() // which ends it
		if err := cmd.Wait(); err != nil {
			t.Errorf("networkpolicy on %s: %v, see %s", node, err, log.Name())
		}
	})
	if line, err := bufio.NewReader(output).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("networkpolicy on %s: %q, %v, see %s", node, line, err, log.Name())
	}
}

// A namespace in which nothing is allowed gets no credentials, by either path and on either
// node, and does with the example of the documentation.
func TestDefaultDenyWithTheDocumentedException(t *testing.T) { //nolint:tparallel // the other tests' pods would be concerned
	enforce(t)
	t.Cleanup(func() { wantNoLeaks(t) })
	for _, way := range []path{nodeWide, inPod} {
		t.Run(string(way), func(t *testing.T) {
			t.Parallel()
			ns := namespace(t, way)
			mustKubectl(t, "--namespace="+ns, "apply", "-f", example)
			mustKubectl(t, "--namespace="+ns, "delete", "networkpolicy", "allow-iam4kube")
			denied := []*corev1.Pod{
				onWorker(clientPod(ns, "role-01", "wait"), "worker-1"), onWorker(clientPod(ns, "role-02", "wait"), "worker-2"),
			}
			for _, pod := range denied {
				role(t, ns, pod.Name)
				create(t, pod)
			}
			if way == nodeWide {
				nobodyAnswers(t, denied)
			} else {
				doesNotStart(t, denied)
			}
			mustKubectl(t, "--namespace="+ns, "apply", "-f", example)
			admitted := []*corev1.Pod{
				onWorker(clientPod(ns, "role-03", "wait"), "worker-1"), onWorker(clientPod(ns, "role-04", "wait"), "worker-2"),
			}
			for _, pod := range admitted {
				role(t, ns, pod.Name)
				create(t, pod)
			}
			for i, pod := range admitted {
				admitted[i] = waitPod(t, ns, pod.Name, running)
				a, err := once(t, ns, pod.Name)
				if err != nil {
					t.Error(err)
				}
				wantOwn(t, admitted[i], pod.Name, a)
			}
			wantOnlyTheServer(t, admitted)
		})
	}
}

// wantOnlyTheServer checks that the exception is no wider than it has to be.
func wantOnlyTheServer(t *testing.T, pods []*corev1.Pod) {
	t.Helper()
	server := aPod(t, "iam4kube-server").Status.PodIP
	wantDials(t, pods,
		connection{vip, 80, open},
		connection{server, 8080, open},
		connection{server, 9090, timeout}, // its metrics
		connection{aPod(t, "iam4kube-webhook").Status.PodIP, 9443, timeout},
		connection{"10.96.0.1", 443, timeout}, // the API server
		// What the node itself rejects is refused as ever: the policy does not swallow the reset.
		connection{vip, 81, refused},
	)
}

// nobodyAnswers checks what node-wide routing makes of it: the pods run, and wait in vain.
func nobodyAnswers(t *testing.T, pods []*corev1.Pod) {
	t.Helper()
	for i, pod := range pods {
		pods[i] = waitPod(t, pod.Namespace, pod.Name, running)
	}
	wantDials(t, pods, connection{vip, 80, timeout})
	a, err := once(t, pods[0].Namespace, pods[0].Name)
	// By eBPF the kernel gives a connection up before the client does: ETIMEDOUT.
	if err == nil || a.Role != "" || !strings.Contains(a.Error, "imeout") && !strings.Contains(a.Error, "timed out") {
		t.Errorf("%+v, %v; want a time-out", a, err)
	}
	t.Logf("what a client says: %s", a.Error)
	allow(t, pods[0].Namespace, vip+"/32", 80)
	wantDials(t, pods, connection{vip, 80, timeout})
	// With the exception they need not be started again.
	mustKubectl(t, "--namespace="+pods[0].Namespace, "apply", "-f", example)
	a, err = once(t, pods[0].Namespace, pods[0].Name)
	if err != nil {
		t.Error(err)
	}
	wantOwn(t, waitPod(t, pods[0].Namespace, pods[0].Name, running), pods[0].Name, a)
}

// doesNotStart checks what injection makes of it: the pods do not start, and say why.
func doesNotStart(t *testing.T, pods []*corev1.Pod) {
	t.Helper()
	allow(t, pods[0].Namespace, service(t)+"/32", 80)
	for _, pod := range pods {
		pod := waitPod(t, pod.Namespace, pod.Name, ended)
		text := string(logs(t, pod.Namespace, pod.Name, "iam4kube-ip2service"))
		if pod.Status.Phase != corev1.PodFailed || !strings.Contains(text, "a NetworkPolicy drops the traffic from this pod") {
			t.Errorf("%s/%s: %s, its init container says %s", pod.Namespace, pod.Name, pod.Status.Phase, text)
		}
		t.Logf("what the init container says: %s", text)
	}
}

// service is the address that injected pods' requests go to.
func service(t *testing.T) string {
	t.Helper()
	object, err := client.CoreV1().Services(own).Get(t.Context(), "iam4kube", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return object.Spec.ClusterIP
}

// allow is an exception that has no effect, because it names an address before translation.
func allow(t *testing.T, namespace, prefix string, port int32) {
	t.Helper()
	number := intstr.FromInt32(port)
	policy := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "before-translation"},
		Spec: networkingv1.NetworkPolicySpec{
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress},
			Egress: []networkingv1.NetworkPolicyEgressRule{{
				To:    []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: prefix}}},
				Ports: []networkingv1.NetworkPolicyPort{{Port: &number}},
			}},
		},
	}
	if _, err := client.NetworkingV1().NetworkPolicies(namespace).Create(t.Context(), policy, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// The policies of server and webhook let every pod ask the server, and namespaces with the label
// read metrics; other ports are out of reach. Without them they are, too, as long as nothing
// listens, but for the answer: refused, not dropped.
func TestTheServersOwnNetworkPolicy(t *testing.T) {
	ns := namespace(t, nodeWide)
	role(t, ns, "role-05")
	create(t, onWorker(clientPod(ns, "role-05", "wait"), "worker-1"))
	pod := waitPod(t, ns, "role-05", running)
	these, server := []*corev1.Pod{pod}, aPod(t, "iam4kube-server").Status.PodIP
	wantDials(t, these, connection{server, 6060, refused}) // nobody enforces policies yet
	enforce(t)
	webhook := aPod(t, "iam4kube-webhook").Status.PodIP
	wantDials(t, these, connection{server, 6060, timeout}, connection{server, 8080, open}, connection{server, 9090, timeout}, connection{webhook, 9090, timeout})
	mustKubectl(t, "label", "namespace", ns, "iam4kube.io/metrics=enabled")
	process := pid(t, pod, "client")
	for _, address := range []string{server, webhook} {
		eventually(t, "metrics of "+address+" are open", func() bool {
			got, err := connection{address, 9090, open}.dial(t.Context(), pod.Spec.NodeName, process)
			return err == nil && got == open
		})
	}
	wantDials(t, these, connection{server, 6060, timeout})
	a, err := once(t, ns, pod.Name)
	if err != nil {
		t.Error(err)
	}
	wantOwn(t, pod, pod.Name, a)
	// The API server still reaches the webhook, or this pod would be refused.
	injected := namespace(t, inPod)
	role(t, injected, "role-05")
	create(t, onWorker(clientPod(injected, "role-05", "once"), "worker-2"))
	pod = waitPod(t, injected, "role-05", ended)
	wantOwn(t, pod, pod.Name, decode(t, logs(t, injected, pod.Name, "client")))
}
