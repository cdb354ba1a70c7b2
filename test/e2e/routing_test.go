//go:build e2e

package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The cases of routing that need a cluster, by the numbers of package routing's list.

// endpoint adds one to the Service of iam4kube until the end of the test.
func endpoint(t *testing.T, name, address string) {
	t.Helper()
	port, number, yes := "http", int32(8080), true
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: "iam4kube"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{address}, Conditions: discoveryv1.EndpointConditions{Ready: &yes}}},
		Ports:       []discoveryv1.EndpointPort{{Name: &port, Port: &number}},
	}
	slices := client.DiscoveryV1().EndpointSlices(own)
	if _, err := slices.Create(t.Context(), slice, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := slices.Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
		for _, node := range []string{"worker-1", "worker-2"} {
			eventually(t, "on "+node+": the rules no longer know "+address, func() bool {
				return !strings.Contains(ruleset(t, node), address)
			})
		}
	})
}

func ruleset(t *testing.T, node string) string {
	t.Helper()
	cmd, err := machine.Command(context.Background(), node, "nft", "list", "table", "ip", "iam4kube")
	if err != nil {
		t.Fatal(err)
	}
	output, err := cmd.Output()
	if err != nil {
		t.Fatalf("nft on %s: %v", node, err)
	}
	return string(output)
}

// ip2serviceOn is ip2service's pod on a node.
func ip2serviceOn(t *testing.T, node string) string {
	t.Helper()
	pods, err := client.CoreV1().Pods(own).List(t.Context(), metav1.ListOptions{
		LabelSelector: "app.kubernetes.io/name=iam4kube-ip2service", FieldSelector: "spec.nodeName=" + node,
	})
	if err != nil || len(pods.Items) != 1 {
		t.Fatalf("ip2service on %s: %v, %v", node, pods, err)
	}
	return pods.Items[0].Name
}

// aux is what ip2service of a node answers on its aux port, with whatever status.
func aux(t *testing.T, node, path string) string {
	t.Helper()
	text, err := client.CoreV1().Pods(own).ProxyGet("http", ip2serviceOn(t, node), "9090", path, nil).DoRaw(t.Context())
	if len(text) == 0 {
		t.Fatalf("%s of ip2service on %s: %v", path, node, err)
	}
	return string(text)
}

// Case 12: an endpoint with the address of the node is refused by ip2service there, which says
// so, and pods of the node go on to get theirs from the other ones.
func TestEndpointOnTheHostsNetworkIsRefused(t *testing.T) {
	ns := namespace(t, nodeWide)
	role(t, ns, "role-12")
	create(t, onWorker(clientPod(ns, "role-12", "wait"), "worker-1"))
	pod := waitPod(t, ns, "role-12", running)
	address := pod.Status.HostIP
	endpoint(t, "on-the-host", address)
	eventually(t, "on worker-1: the endpoint is refused", func() bool {
		return strings.Contains(aux(t, "worker-1", "/metrics"), `iam4kube_endpoints{state="refused"} 1`)
	})
	// On another node it is an endpoint like others, by which the test knows that it is seen.
	eventually(t, "on worker-2: the endpoint is used", func() bool { return strings.Contains(ruleset(t, "worker-2"), address) })
	if rules := ruleset(t, "worker-1"); strings.Contains(rules, address) {
		t.Errorf("worker-1 leads to %s: %s", address, rules)
	}
	if text := string(logs(t, own, ip2serviceOn(t, "worker-1"), "ip2service")); !strings.Contains(text, "endpoint refused: it is an address of this node") || !strings.Contains(text, address) {
		t.Errorf("ip2service on worker-1 does not say so: %s", text)
	}
	for range 10 {
		a, err := once(t, ns, pod.Name)
		if err != nil {
			t.Error(err)
		}
		wantOwn(t, pod, pod.Name, a)
	}
}

// Case 13: pods on a bridge whose packets netfilter does not see. ip2service is not ready, says
// why and what to do, and is ready again after that. Without a bridge the setting is of no
// account.
func TestBridgeThatHidesPackets(t *testing.T) {
	const setting = "net.bridge.bridge-nf-call-iptables"
	ns := namespace(t, nodeWide)
	role(t, ns, "role-13")
	create(t, onWorker(clientPod(ns, "role-13", "wait"), "worker-1")) // one on the bridge
	waitPod(t, ns, "role-13", running)
	set := func(value string) []string { // as sysctl does, which a minimal Debian has not
		return []string{"sh", "-c", "echo " + value + " >/proc/sys/" + strings.ReplaceAll(setting, ".", "/")}
	}
	back := func() {
		cmd, err := machine.Command(context.Background(), "worker-1", set("1")...)
		if err == nil {
			err = cmd.Run()
		}
		if err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(back)
	onNode(t, "worker-1", set("0")...)
	// A change makes it look; else it would only after half a minute.
	endpoint(t, "first-change", "203.0.113.1")
	if cni == "bridge" {
		eventually(t, "on worker-1: ip2service is not ready", func() bool {
			return strings.Contains(aux(t, "worker-1", "/readyz"), "pods are attached to the bridge cni0 and "+setting+" is 0")
		})
		t.Logf("%s", aux(t, "worker-1", "/readyz"))
		mustKubectl(t, "--namespace="+own, "wait", "pod", ip2serviceOn(t, "worker-1"), "--for=condition=Ready=false", "--timeout="+within.String())
	} else {
		eventually(t, "on worker-1: the change is seen", func() bool { return strings.Contains(ruleset(t, "worker-1"), "203.0.113.1") })
		if text := aux(t, "worker-1", "/readyz"); text != "ok\n" {
			t.Errorf("without a bridge: %q", text)
		}
	}
	back()
	endpoint(t, "second-change", "203.0.113.2")
	eventually(t, "on worker-1: ip2service is ready", func() bool { return aux(t, "worker-1", "/readyz") == "ok\n" })
	if err := rolledOut(t.Context()); err != nil {
		t.Error(err)
	}
}

// Case 14: an endpoint that asks on a node with ip2service, as a server does on a node that it
// shares, is refused at once: it must not get credentials from itself. The pod here stands for
// one.
func TestEndpointThatAsksIsRefused(t *testing.T) {
	ns := namespace(t, nodeWide)
	role(t, ns, "role-14")
	create(t, onWorker(clientPod(ns, "role-14", "wait"), "worker-1"))
	pod := waitPod(t, ns, "role-14", running)
	wantDials(t, []*corev1.Pod{pod}, connection{vip, 80, open})
	endpoint(t, "asks", pod.Status.PodIP)
	eventually(t, "on worker-1: the pod is an endpoint", func() bool { return strings.Contains(ruleset(t, "worker-1"), pod.Status.PodIP) })
	wantDials(t, []*corev1.Pod{pod}, connection{vip, 80, refused})
	refusal := map[string]string{"nftables": "connection refused", "ebpf": "connection timed out"}[dataPath]
	a, err := once(t, ns, pod.Name)
	if err == nil || a.AccessKeyID != "" || !strings.Contains(a.Error, refusal) {
		t.Errorf("%+v, %v; want %s", a, err, refusal)
	}
	wantNoLeaks(t)
}

// Case 15: pods on the host's network are not intercepted: they reach what the host reaches.
// Here the metadata service of the node is one of the test's own, behind a link of the node,
// because the cluster's counts who comes as a leak. It knows no PUT.
func TestHostNetworkPodsAreNotIntercepted(t *testing.T) {
	serveMetadata(t, "worker-1")
	ns := namespace(t, nodeWide)
	role(t, ns, "role-15")
	pod := onWorker(clientPod(ns, "role-15", "wait"), "worker-1")
	create(t, pod)
	host := onWorker(clientPod(ns, "role-15", "once"), "worker-1")
	host.Name, host.Spec.HostNetwork = "on-the-host", true
	create(t, host)
	host = waitPod(t, ns, host.Name, ended)
	a := decode(t, logs(t, ns, host.Name, "client"))
	if a.AccessKeyID != "" || !strings.Contains(a.Error, "501") {
		t.Errorf("a pod on the host's network got %+v, want the node's own metadata service", a)
	}
	pod = waitPod(t, ns, pod.Name, running)
	a, err := once(t, ns, pod.Name)
	if err != nil {
		t.Error(err)
	}
	wantOwn(t, pod, pod.Name, a)
}

// serveMetadata puts a web server at the metadata address, one hop from the node and reached by
// a route of its own, as some clouds do it.
func serveMetadata(t *testing.T, node string) {
	t.Helper()
	onNode(t, node, "sh", "-ec", `
		ip netns add metadata
		ip link add metadata type veth peer name eth0 netns metadata
		ip link set metadata up
		ip -n metadata link set lo up
		ip -n metadata address add `+vip+`/32 dev eth0
		ip -n metadata link set eth0 up
		ip -n metadata route add default dev eth0
		ip route add `+vip+` dev metadata`)
	t.Cleanup(func() {
		cmd, err := machine.Command(context.Background(), node, "sh", "-ec", `
			for pid in $(ip netns pids metadata); do kill "$pid"; done
			ip link delete metadata
			ip netns delete metadata`)
		if err != nil {
			t.Error(err)
			return
		}
		if output, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, output)
		}
	})
	const program = "import http.server, sys\n" +
		"http.server.ThreadingHTTPServer(('" + vip + "', 80), http.server.SimpleHTTPRequestHandler).serve_forever()\n"
	log, err := os.Create(filepath.Join(machine.Dir, "log", node+"-metadata.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd, err := machine.Command(context.Background(), node, "ip", "netns", "exec", "metadata", "python3", "-c", program)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Dir, cmd.Stdout, cmd.Stderr = t.TempDir(), log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = cmd.Wait() }()
	eventually(t, "on "+node+": the metadata service answers", func() bool {
		cmd, err := machine.Command(t.Context(), node, "timeout", "1", "bash", "-c", "exec 3<>/dev/tcp/"+vip+"/80")
		return err == nil && cmd.Run() == nil
	})
}
