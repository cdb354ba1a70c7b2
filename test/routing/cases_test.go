package routing

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/netns"
	"github.com/iam4kube/iam4kube/test/node"
)

const (
	metadataIPv4 = "169.254.169.254"
	metadataIPv6 = "fd00:ec2::254"

	podIPv4 = "10.244.0.2"
	podIPv6 = "fd00:10:244::2"
)

// onEachDataPath runs a test for both: what is promised is the same.
func onEachDataPath(t *testing.T, test func(*testing.T)) {
	t.Helper()
	t.Cleanup(func() { node.DataPath = "" })
	for _, path := range []string{"nftables", "ebpf"} {
		t.Run(path, func(t *testing.T) {
			node.DataPath = path
			test(t)
		})
	}
}

// ebpf says that the test runs for that data path now.
func ebpf() bool { return node.DataPath == "ebpf" }

func addPod(t *testing.T) *netns.Pod {
	t.Helper()
	return netns.AddPod(t, podIPv4, podIPv6)
}

// wantAnswer asks until the endpoint of this name answers: the API server, and through it
// ip2service, learn of a change a moment after the test.
func wantAnswer(t *testing.T, pod *netns.Pod, address, name, source string) {
	t.Helper()
	environment.Eventually(t, 10*time.Second, func() error {
		answer, err := node.Ask(t, pod, address)
		if err == nil && answer != (node.Answer{Name: name, Source: source}) {
			err = errors.New("answered by " + answer.Name + " for " + answer.Source)
		}
		return err
	})
}

// wantItselfRefused is wantRefused for an endpoint. In connect() nobody knows yet which
// address the connection is going to have, so that there it is an error of a moment later.
func wantItselfRefused(t *testing.T, endpoint *netns.Pod, address string) {
	t.Helper()
	if ebpf() {
		wantError(t, endpoint, address, syscall.ETIMEDOUT, 500*time.Millisecond)
		return
	}
	wantRefused(t, endpoint, address)
}

// wantRefused is for what must hold at once.
func wantRefused(t *testing.T, pod *netns.Pod, address string) {
	t.Helper()
	wantError(t, pod, address, syscall.ECONNREFUSED, 100*time.Millisecond)
}

func wantError(t *testing.T, pod *netns.Pod, address string, want error, within time.Duration) {
	t.Helper()
	start := time.Now()
	c, err := node.Connect(t, pod, address)
	if err == nil {
		c.Close()
	}
	if took := time.Since(start); !errors.Is(err, want) || took > within {
		t.Errorf("%s: %v after %v, want %v in under %v", address, err, took, want, within)
	}
}

// waitRefused is for what has to come true.
func waitRefused(t *testing.T, pod *netns.Pod, address string) {
	t.Helper()
	environment.Eventually(t, 10*time.Second, func() error {
		c, err := node.Connect(t, pod, address)
		if err == nil {
			c.Close()
			return errors.New("connected")
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return err
		}
		return nil
	})
}

// A pod's request gets to a ready endpoint with the pod's own address, by both families.
func TestPodReachesAReadyEndpointWithItsOwnAddress(t *testing.T) {
	onEachDataPath(t, podReachesAReadyEndpointWithItsOwnAddress)
}

func podReachesAReadyEndpointWithItsOwnAddress(t *testing.T) {
	t.Helper()
	netns.NewFarSide(t)
	pod := addPod(t)
	a := node.AddEndpoint(t, "a", "10.244.1.2", "fd00:10:244:1::2")
	service := cluster.NewService()
	service.Set(t, "v4", node.Ready(a.Addresses[0]))
	service.Set(t, "v6", node.Ready(a.Addresses[1]))
	i := service.Start(t)
	i.WaitReady(t)
	wantAnswer(t, pod, metadataIPv4, "a", podIPv4)
	wantAnswer(t, pod, metadataIPv6, "a", podIPv6)
	i.WaitMetric(t, `iam4kube_translated_connections_total{family="ip"}`, "1")
	i.WaitMetric(t, `iam4kube_translated_connections_total{family="ip6"}`, "1")
}

// unreachableAPI is the flags of an ip2service whose API server refuses connections.
func unreachableAPI(t *testing.T) []string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	config := cluster.Config()
	config.Host = "https://" + listener.Addr().String()
	return []string{"--kubeconfig", cluster.Kubeconfig(t, config)}
}

func TestCase01FirstStartBeforeTheAPIHasSyncedRefuses(t *testing.T) {
	onEachDataPath(t, case01FirstStartBeforeTheAPIHasSyncedRefuses)
}

func case01FirstStartBeforeTheAPIHasSyncedRefuses(t *testing.T) {
	t.Helper()
	far := netns.NewFarSide(t)
	pod := addPod(t)
	if answer, err := node.Ask(t, pod, metadataIPv4); err != nil || answer.Name != netns.NodeRole || far.TakeLeaks(t) == 0 {
		t.Fatalf("the far side does not count what nothing catches: %+v, %v", answer, err)
	}
	for far.TakeLeaks(t) > 0 { // to the end of that connection
	}
	i := node.StartProgram(t, unreachableAPI(t)...)
	wantRefused(t, pod, metadataIPv4)
	wantRefused(t, pod, metadataIPv6)
	if status, body := i.Get(t, "/readyz"); status != http.StatusServiceUnavailable || !strings.Contains(body, "EndpointSlices") {
		t.Errorf("/readyz: %d %s", status, body)
	}
	i.WaitMetric(t, `iam4kube_guard_rejected_packets_total{family="ip"}`, "1")
	i.WaitMetric(t, `iam4kube_guard_rejected_packets_total{family="ip6"}`, "1")
}

func TestCase02RulesStayThroughExitRestartAndOutageOfTheAPI(t *testing.T) {
	onEachDataPath(t, case02RulesStayThroughExitRestartAndOutageOfTheAPI)
}

func case02RulesStayThroughExitRestartAndOutageOfTheAPI(t *testing.T) {
	t.Helper()
	netns.NewFarSide(t)
	pod := addPod(t)
	a := node.AddEndpoint(t, "a", "10.244.1.2")
	service := cluster.NewService()
	service.Set(t, "1", node.Ready(a.Addresses[0]))
	first := service.Start(t)
	first.WaitReady(t)
	open, err := node.Connect(t, pod, metadataIPv4)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	still := func(when string) {
		t.Helper()
		if answer, err := open.Ask(); err != nil || answer.Name != "a" {
			t.Errorf("%s: the open connection: %+v, %v", when, answer, err)
		}
		if answer, err := node.Ask(t, pod, metadataIPv4); err != nil || answer.Name != "a" {
			t.Errorf("%s: a new connection: %+v, %v", when, answer, err)
		}
	}
	still("at first")
	rules := node.NFT(t, "list", "ruleset")
	if err := first.Stop(); err != nil {
		t.Fatal(err)
	}
	still("after the exit")
	second := node.StartProgram(t, unreachableAPI(t)...)
	still("after a start without the API server")
	if status, _ := second.Get(t, "/readyz"); status == http.StatusOK {
		t.Error("ready without having seen an endpoint")
	}
	second.Kill()
	still("after SIGKILL")
	if now := node.NFT(t, "list", "ruleset"); withoutCounts(now) != withoutCounts(rules) {
		t.Errorf("the rules changed from\n%s\nto\n%s", rules, now)
	}
	third := service.Start(t)
	third.WaitReady(t)
	still("after a restart")
	if err := third.Stop(); err != nil {
		t.Fatal(err)
	}
	open.Close() // no NAT leads what it still sends once the last NAT chain is gone
	node.Cleanup(t)
	if left := node.NFT(t, "list", "ruleset"); left != "" {
		t.Errorf("--cleanup left\n%s", left)
	}
	if pins, err := os.ReadDir("/sys/fs/bpf/iam4kube"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("--cleanup left %v, %v", pins, err)
	}
}

// withoutCounts is a ruleset without the values of its counters.
func withoutCounts(rules string) string {
	var kept []string
	for line := range strings.Lines(rules) {
		if !strings.HasPrefix(strings.TrimSpace(line), "packets ") {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}

func TestCase03WithoutAReadyEndpointDrainingOnesServeAndThenNone(t *testing.T) {
	onEachDataPath(t, case03WithoutAReadyEndpointDrainingOnesServeAndThenNone)
}

func case03WithoutAReadyEndpointDrainingOnesServeAndThenNone(t *testing.T) {
	t.Helper()
	netns.NewFarSide(t)
	pod := addPod(t)
	a := node.AddEndpoint(t, "a", "10.244.1.2", "fd00:10:244:1::2")
	b := node.AddEndpoint(t, "b", "10.244.1.3")
	service := cluster.NewService()
	service.Set(t, "v4", node.Draining(a.Addresses[0]), node.Ready(b.Addresses[0]))
	service.Set(t, "v6", node.Draining(a.Addresses[1]))
	i := service.Start(t)
	i.WaitReady(t)
	wantAnswer(t, pod, metadataIPv4, "b", podIPv4)
	// The families are apart: by IPv6 nobody else is there.
	wantAnswer(t, pod, metadataIPv6, "a", podIPv6)
	starting := node.State{Address: b.Addresses[0], Ready: new(false)}
	service.Set(t, "v4", node.Draining(a.Addresses[0]), starting)
	wantAnswer(t, pod, metadataIPv4, "a", podIPv4)
	service.Set(t, "v4", starting)
	service.Delete(t, "v6")
	i.WaitMetric(t, `iam4kube_endpoints{state="terminating"}`, "0")
	waitRefused(t, pod, metadataIPv4)
	waitRefused(t, pod, metadataIPv6)
	wantRefused(t, pod, metadataIPv4)
	wantRefused(t, pod, metadataIPv6)
}

func TestCase04ConnectionsToTheRealMetadataServiceThatWereOpenAreCut(t *testing.T) {
	onEachDataPath(t, case04ConnectionsToTheRealMetadataServiceThatWereOpenAreCut)
}

func case04ConnectionsToTheRealMetadataServiceThatWereOpenAreCut(t *testing.T) {
	t.Helper()
	far := netns.NewFarSide(t)
	pod := addPod(t)
	var before []*node.Connection
	for _, address := range netns.MetadataAddresses {
		c, err := node.Connect(t, pod, address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if answer, err := c.Ask(); err != nil || answer.Name != netns.NodeRole {
			t.Fatalf("%+v, %v", answer, err)
		}
		before = append(before, c)
	}
	far.TakeLeaks(t)
	a := node.AddEndpoint(t, "a", "10.244.1.2")
	service := cluster.NewService()
	service.Set(t, "1", node.Ready(a.Addresses[0]))
	service.Start(t).WaitReady(t)
	for _, c := range before {
		if answer, err := c.Ask(); err == nil {
			t.Errorf("still answered by %s", answer.Name)
		}
	}
}

func TestCase05ConnectionsToARemovedEndpointAreResetAndToADrainingOneKept(t *testing.T) {
	onEachDataPath(t, case05ConnectionsToARemovedEndpointAreResetAndToADrainingOneKept)
}

func case05ConnectionsToARemovedEndpointAreResetAndToADrainingOneKept(t *testing.T) {
	t.Helper()
	netns.NewFarSide(t)
	pod := addPod(t)
	a := node.AddEndpoint(t, "a", "10.244.1.2")
	b := node.AddEndpoint(t, "b", "10.244.1.3")
	service := cluster.NewService()
	service.Set(t, "1", node.Ready(a.Addresses[0]))
	i := service.Start(t)
	i.WaitReady(t)
	c, err := node.Connect(t, pod, metadataIPv4)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if answer, err := c.Ask(); err != nil || answer.Name != "a" {
		t.Fatalf("%+v, %v", answer, err)
	}
	service.Set(t, "1", node.Draining(a.Addresses[0]), node.Ready(b.Addresses[0]))
	wantAnswer(t, pod, metadataIPv4, "b", podIPv4)
	if answer, err := c.Ask(); err != nil || answer.Name != "a" {
		t.Errorf("while it drains: %+v, %v", answer, err)
	}
	service.Set(t, "1", node.Ready(b.Addresses[0]))
	environment.Eventually(t, 10*time.Second, func() error {
		start := time.Now()
		_, err := c.Ask()
		if took := time.Since(start); err != nil && took > time.Second {
			t.Errorf("noticed after %v, want a reset", took)
		}
		if err == nil {
			return errors.New("the removed endpoint still answers")
		}
		return nil
	})
}

func TestCase08ChangedPrioritiesAreReplaced(t *testing.T) {
	onEachDataPath(t, case08ChangedPrioritiesAreReplaced)
}

func case08ChangedPrioritiesAreReplaced(t *testing.T) {
	t.Helper()
	netns.NewFarSide(t)
	pod := addPod(t)
	a := node.AddEndpoint(t, "a", "10.244.1.2")
	node.NFT(t, "add table ip iam4kube; add chain ip iam4kube nat-prerouting { type nat hook prerouting priority -90; }; "+
		"add chain ip iam4kube guard-forward { type filter hook forward priority 10; policy drop; }; add chain ip iam4kube old")
	service := cluster.NewService()
	service.Set(t, "1", node.Ready(a.Addresses[0]))
	service.Start(t).WaitReady(t)
	wantAnswer(t, pod, metadataIPv4, "a", podIPv4)
	if rules := node.NFT(t, "--numeric-priority", "list", "table", "ip", "iam4kube"); strings.Contains(rules, "old") ||
		!strings.Contains(rules, "priority -110") || !strings.Contains(rules, "priority -50") || strings.Contains(rules, "drop") {
		t.Errorf("the rules are\n%s", rules)
	}
}

func TestCase09ForeignTablesStayAsTheyAre(t *testing.T) {
	onEachDataPath(t, case09ForeignTablesStayAsTheyAre)
}

func case09ForeignTablesStayAsTheyAre(t *testing.T) {
	t.Helper()
	netns.NewFarSide(t)
	a := node.AddEndpoint(t, "a", "10.244.1.2")
	foreign := "table inet other {\n\tchain c {\n\t\ttype filter hook forward priority filter; policy accept;\n\t\tct state established accept\n\t}\n}\n" +
		"table ip iam4kube-other {\n\tchain prerouting {\n\t\ttype nat hook prerouting priority dstnat; policy accept;\n\t}\n}\n"
	if err := os.WriteFile(t.TempDir()+"/foreign", []byte(foreign), 0o600); err != nil {
		t.Fatal(err)
	}
	load := exec.Command("nft", "-f", "-")
	load.Stdin = strings.NewReader(foreign)
	if output, err := load.CombinedOutput(); err != nil {
		t.Fatal(err, string(output))
	}
	t.Cleanup(func() { node.NFT(t, "delete table inet other; delete table ip iam4kube-other") })
	service := cluster.NewService()
	service.Set(t, "1", node.Ready(a.Addresses[0]))
	i := service.Start(t)
	i.WaitReady(t)
	service.Set(t, "1")
	i.WaitMetric(t, `iam4kube_endpoints{state="ready"}`, "0")
	if err := i.Stop(); err != nil {
		t.Fatal(err)
	}
	node.Cleanup(t)
	if now := node.NFT(t, "list", "ruleset"); now != foreign {
		t.Errorf("the foreign tables are\n%s\nwant\n%s", now, foreign)
	}
}

func TestCase11IPv6MetadataAddressIsRejectedWithoutIPv6Endpoints(t *testing.T) {
	onEachDataPath(t, case11IPv6MetadataAddressIsRejectedWithoutIPv6Endpoints)
}

func case11IPv6MetadataAddressIsRejectedWithoutIPv6Endpoints(t *testing.T) {
	t.Helper()
	netns.NewFarSide(t)
	pod := addPod(t)
	a := node.AddEndpoint(t, "a", "10.244.1.2")
	service := cluster.NewService()
	service.Set(t, "1", node.Ready(a.Addresses[0]))
	for _, flags := range [][]string{nil, {"--intercept-ip", metadataIPv4}, {"--intercept-ip=192.0.2.1"}} {
		t.Run(strings.Join(flags, " "), func(t *testing.T) {
			service.Start(t, flags...).WaitReady(t)
			wantRefused(t, pod, metadataIPv6)
			if len(flags) == 1 {
				// Another address is led to the endpoints, and this one closed all the same.
				wantAnswer(t, pod, "192.0.2.1", "a", podIPv4)
				wantRefused(t, pod, metadataIPv4)
			}
		})
	}
}

func TestCase12EndpointThatIsAnAddressOfTheNodeIsRefused(t *testing.T) {
	onEachDataPath(t, case12EndpointThatIsAnAddressOfTheNodeIsRefused)
}

func case12EndpointThatIsAnAddressOfTheNodeIsRefused(t *testing.T) {
	t.Helper()
	netns.NewFarSide(t)
	pod := addPod(t)
	a := node.AddEndpoint(t, "a", "10.244.1.2")
	service := cluster.NewService()
	const gateway = "10.255.255.1"
	service.Set(t, "1", node.Ready(gateway))
	i := service.Start(t)
	i.WaitReady(t)
	i.WaitMetric(t, `iam4kube_endpoints{state="refused"}`, "1")
	if line, err := i.Logs.Wait(t.Context(), endpointRefused); err != nil || line["address"] != gateway+":8080" || line["level"] != "warn" {
		t.Errorf("%v, %v", line, err)
	}
	wantRefused(t, pod, metadataIPv4)
	service.Set(t, "1", node.Ready(gateway), node.Ready(a.Addresses[0]))
	for range 20 {
		wantAnswer(t, pod, metadataIPv4, "a", podIPv4)
	}
}

const endpointRefused = "endpoint refused: it is an address of this node, so the server there is on the host's network and would see the node's address instead of the pod's; run the server without hostNetwork"

// On a bridge an endpoint answers its neighbour directly, so the pod gets an answer from
// an address that it has not asked, unless the bridge shows netfilter what it forwards.
func TestCase13BridgeThatPassesNetfilterByIsReported(t *testing.T) {
	onEachDataPath(t, case13BridgeThatPassesNetfilterByIsReported)
}

func case13BridgeThatPassesNetfilterByIsReported(t *testing.T) {
	t.Helper()
	netns.NewFarSide(t)
	const gateway, setting = "10.245.0.1", "/proc/sys/net/bridge/bridge-nf-call-iptables"
	ip(t, "link", "add", "podbridge", "type", "bridge")
	t.Cleanup(func() { ip(t, "link", "del", "podbridge") })
	ip(t, "address", "add", gateway+"/24", "dev", "podbridge")
	ip(t, "link", "set", "podbridge", "up")
	attach := func(pod *netns.Pod, address string) {
		t.Helper()
		ip(t, "link", "set", pod.Device, "master", "podbridge")
		err := pod.Do(func() error {
			ip(t, "address", "add", address+"/24", "dev", "eth0")
			ip(t, "route", "add", "default", "via", gateway)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	pod, a := netns.AddPod(t), node.AddEndpoint(t, "a")
	attach(pod, "10.245.0.2")
	attach(a.Pod, "10.245.0.3")
	listener, err := a.Listen("tcp", "10.245.0.3:8080")
	if err != nil {
		t.Fatal(err)
	}
	a.Serve(t, listener)
	service := cluster.NewService()
	service.Set(t, "1", node.Ready("10.245.0.3"))

	if err := os.WriteFile(setting, []byte("0"), 0); err != nil {
		t.Fatal(err, "; is the module br_netfilter loaded?")
	}
	i := service.Start(t)
	i.WaitMetric(t, `iam4kube_endpoints{state="ready"}`, "1")
	if ebpf() { // what is led in connect() has no translation that would have to be undone
		i.WaitReady(t)
		wantAnswer(t, pod, metadataIPv4, "a", "10.245.0.2")
		return
	}
	environment.Eventually(t, 10*time.Second, func() error {
		if status, body := i.Get(t, "/readyz"); status == http.StatusOK || !strings.Contains(body, "bridge podbridge") || !strings.Contains(body, "bridge-nf-call-iptables") {
			return errors.New(body)
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if c, err := pod.DialContext(ctx, "tcp", net.JoinHostPort(metadataIPv4, "80")); err == nil {
		c.Close()
		t.Error("connected, so this bridge needs no setting")
	}
	if err := os.WriteFile(setting, []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	service.Set(t, "2") // so that it looks again at once
	i.WaitReady(t)
	wantAnswer(t, pod, metadataIPv4, "a", "10.245.0.2")
}

func ip(t *testing.T, arguments ...string) {
	t.Helper()
	if output, err := exec.Command("ip", arguments...).CombinedOutput(); err != nil {
		t.Fatalf("ip %v: %v: %s", arguments, err, output)
	}
}

func TestCase14EndpointThatAsksForItselfIsRefused(t *testing.T) {
	onEachDataPath(t, case14EndpointThatAsksForItselfIsRefused)
}

func case14EndpointThatAsksForItselfIsRefused(t *testing.T) {
	t.Helper()
	netns.NewFarSide(t)
	a := node.AddEndpoint(t, "a", "10.244.1.2", "fd00:10:244:1::2")
	b := node.AddEndpoint(t, "b", "10.244.1.3")
	service := cluster.NewService()
	service.Set(t, "v4", node.Ready(a.Addresses[0]), node.Draining(b.Addresses[0]))
	service.Set(t, "v6", node.Ready(a.Addresses[1]))
	service.Start(t).WaitReady(t)
	wantAnswer(t, addPod(t), metadataIPv4, "a", podIPv4)
	for range 10 {
		wantItselfRefused(t, a.Pod, metadataIPv4)
		wantItselfRefused(t, b.Pod, metadataIPv4)
		wantItselfRefused(t, a.Pod, metadataIPv6)
	}
}

// The node's own processes, and pods on its network, are where they were: at the machine's
// metadata service.
func TestCase15TrafficOfTheHostIsNotIntercepted(t *testing.T) {
	onEachDataPath(t, case15TrafficOfTheHostIsNotIntercepted)
}

func case15TrafficOfTheHostIsNotIntercepted(t *testing.T) {
	t.Helper()
	far := netns.NewFarSide(t)
	a := node.AddEndpoint(t, "a", "10.244.1.2", "fd00:10:244:1::2")
	service := cluster.NewService()
	service.Set(t, "v4", node.Ready(a.Addresses[0]))
	service.Set(t, "v6", node.Ready(a.Addresses[1]))
	// This connection is tracked from before the rules, as a kubelet's may be.
	before, err := net.Dial("tcp", net.JoinHostPort(metadataIPv4, "80"))
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	i := service.Start(t)
	i.WaitReady(t)
	netns.Require(t)
	for _, address := range netns.MetadataAddresses {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		response, err := client.Get("http://" + net.JoinHostPort(address, "80"))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || string(body) != netns.NodeRole {
			t.Errorf("%s answered %q, %v", address, body, err)
		}
	}
	if _, err := io.WriteString(before, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if content, err := io.ReadAll(before); err != nil || !strings.HasSuffix(string(content), netns.NodeRole) {
		t.Errorf("the open connection of the host: %q, %v", content, err)
	}
	i.WaitMetric(t, `iam4kube_guard_rejected_packets_total{family="ip"}`, "0")
	before.Close()
	far.TakeLeaks(t)
}

func TestCase20BPFHostRoutingIsAWarning(t *testing.T) {
	onEachDataPath(t, case20BPFHostRoutingIsAWarning)
}

func case20BPFHostRoutingIsAWarning(t *testing.T) {
	t.Helper()
	netns.NewFarSide(t)
	pod := addPod(t)
	a := node.AddEndpoint(t, "a", "10.244.1.2")
	service := cluster.NewService()
	service.Set(t, "1", node.Ready(a.Addresses[0]))
	i := service.Start(t)
	i.WaitReady(t)
	i.WaitMetric(t, "iam4kube_bpf_host_routing_suspected", "0")
	ip(t, "link", "add", "cilium_host", "type", "veth", "peer", "name", "cilium_net")
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", "cilium_host").Run() })
	// A new run sees it at once; this one at its next resync.
	if err := i.Stop(); err != nil {
		t.Fatal(err)
	}
	i = service.Start(t)
	i.WaitReady(t)
	if ebpf() { // which does not need to know
		i.WaitMetric(t, "iam4kube_bpf_host_routing_suspected", "0")
		i.WaitMetric(t, `iam4kube_bpf_programs{state="effective"}`, strconv.Itoa(i.Metric(t, `iam4kube_bpf_programs{state="attached"}`)))
		if strings.Contains(i.Logs.String(), bpfSuspected) {
			t.Error("warned of what the programs see")
		}
		ip(t, "link", "del", "cilium_host")
		wantAnswer(t, pod, metadataIPv4, "a", podIPv4)
		return
	}
	i.WaitMetric(t, "iam4kube_bpf_host_routing_suspected", "1")
	if line, err := i.Logs.Wait(t.Context(), bpfSuspected); err != nil || line["level"] != "warn" {
		t.Errorf("%v, %v", line, err)
	}
	ip(t, "link", "del", "cilium_host") // netns.Check knows only its own devices
	wantAnswer(t, pod, metadataIPv4, "a", podIPv4)
}

const bpfSuspected = "packets of pods may go past netfilter, and so past our rules, to the metadata service of the node, by BPF programs or Open vSwitch: use legacy host routing (Cilium: bpf.hostLegacyRouting=true) or inject ip2service into the pods"
