package inpod

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/netns"
	"github.com/iam4kube/iam4kube/test/node"
)

// The first translation is in the pod, to the ClusterIP, the second in the node, to the
// server: the address that the pod is known by survives both.
func TestServerSeesThePodsAddressBehindTwoTranslations(t *testing.T) {
	netns.NewFarSide(t)
	nodeRules(t, services)
	serve(t, ready)
	for _, tc := range []struct {
		name, service, metadata, pod, other string
	}{
		{"IPv4", serviceIPv4, metadataIPv4, podIPv4, metadataIPv6},
		{"IPv6", serviceIPv6, metadataIPv6, podIPv6, metadataIPv4},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pod := netns.AddPod(t, podIPv4, podIPv6)
			start(t, pod, "--to", tc.service).exits(t, 0, "ready")
			reaches(t, pod, tc.metadata, "server", tc.pod)
			rejected(t, pod, "tcp", fmt.Sprintf("[%s]:80", tc.other))
		})
	}
	t.Run("both families", func(t *testing.T) {
		pod := netns.AddPod(t, podIPv4, podIPv6)
		c := start(t, pod, "--to", serviceIPv4, "--to", serviceIPv6, "--pod-ips", podIPv4+","+podIPv6)
		c.exits(t, 0)
		if lines := c.logs.Lines("the pod's credentials are ready"); len(lines) != 2 {
			t.Errorf("the way was tried by %d families: %s", len(lines), c.logs.String())
		}
		reaches(t, pod, metadataIPv4, "server", podIPv4)
		reaches(t, pod, metadataIPv6, "server", podIPv6)
	})
}

// EC2's own addresses stay closed then.
func TestOtherAddressesAreIntercepted(t *testing.T) {
	netns.NewFarSide(t)
	nodeRules(t, services)
	serve(t, ready)
	pod := netns.AddPod(t, podIPv4, podIPv6)
	start(t, pod, "--to", serviceIPv4, "--intercept-ip", "192.0.2.1", "--intercept-ip", "192.0.2.2", "--intercept-port", "8000").exits(t, 0, "192.0.2.1:8000")
	reaches(t, pod, "192.0.2.1:8000", "server", podIPv4)
	reaches(t, pod, "192.0.2.2:8000", "server", podIPv4)
	for _, address := range []string{"192.0.2.1:80", "169.254.169.254:80", "169.254.169.254:8000", "[fd00:ec2::254]:80"} {
		rejected(t, pod, "tcp", address)
	}
}

// As the component token-addresses and the webhook have it: the addresses of container
// credentials beside the metadata service's, and nothing but port 80 of them, whoever else
// answers there.
func TestContainerCredentialsAreIntercepted(t *testing.T) {
	far := netns.NewFarSide(t)
	nodeRules(t, services)
	serve(t, ready)
	addresses := map[string]string{"169.254.170.2": podIPv4, "169.254.170.23": podIPv4, "fd00:ec2::23": podIPv6}
	for address := range addresses {
		bits := "/32"
		if strings.Contains(address, ":") {
			bits = "/128"
		}
		if output, err := far.Run(t.Context(), "ip", "address", "add", address+bits, "dev", "lo", "nodad"); err != nil {
			t.Fatalf("%v: %s", err, output)
		}
		for _, port := range []string{"80", "8080"} {
			listener, err := far.Listen("tcp", net.JoinHostPort(address, port))
			if err != nil {
				t.Fatal(err)
			}
			agent := &http.Server{Handler: http.NotFoundHandler()}
			go func() { _ = agent.Serve(listener) }() // until Close
			t.Cleanup(func() { agent.Close() })
		}
	}
	pod := netns.AddPod(t, podIPv4, podIPv6)
	flags := []string{"--to", serviceIPv4, "--to", serviceIPv6}
	for _, address := range []string{metadataIPv4, metadataIPv6, "169.254.170.2", "169.254.170.23", "fd00:ec2::23"} {
		flags = append(flags, "--intercept-ip", address)
	}
	start(t, pod, flags...).exits(t, 0, isReady)
	reaches(t, pod, metadataIPv4, "server", podIPv4)
	reaches(t, pod, metadataIPv6, "server", podIPv6)
	for address, from := range addresses {
		reaches(t, pod, address, "server", from)
		rejected(t, pod, "tcp", net.JoinHostPort(address, "8080"))
		rejected(t, pod, "udp", net.JoinHostPort(address, "80"))
	}
}

func TestNothingElseGetsThrough(t *testing.T) {
	far := netns.NewFarSide(t)
	nodeRules(t, services)
	serve(t, ready)
	pod := netns.AddPod(t, podIPv4, podIPv6)
	for _, address := range []string{metadataIPv4, metadataIPv6} {
		if got, err := node.Ask(t, pod, address); err != nil || got.Name != netns.NodeRole {
			t.Fatalf("before the rules %s leads to %v, %v, want the machine's", address, got, err)
		}
	}
	start(t, pod, "--to", serviceIPv4).exits(t, 0)
	far.TakeLeaks(t) // from here on
	for _, packet := range []struct{ network, address string }{
		{"tcp", "169.254.169.254:443"},
		{"tcp", "169.254.169.254:8080"},
		{"udp", "169.254.169.254:80"},
		{"udp", "169.254.169.254:53"},
		{"ip4:icmp", "169.254.169.254"},
		{"tcp", "[fd00:ec2::254]:80"},
		{"udp", "[fd00:ec2::254]:53"},
		{"ip6:ipv6-icmp", "fd00:ec2::254"},
	} {
		rejected(t, pod, packet.network, packet.address)
	}
	reaches(t, pod, metadataIPv4, "server", podIPv4)
	reaches(t, pod, "10.244.1.2:8080", "server", podIPv4) // what is not ours is let be
}

func TestOpenConnectionToTheMachinesMetadataServiceIsCut(t *testing.T) {
	far := netns.NewFarSide(t)
	nodeRules(t, services)
	serve(t, ready)
	for name, rules := range map[string]string{
		"unknown to connection tracking": "",
		// A known one is not translated any more.
		"known to connection tracking": "table inet foreign {\n chain output {\n type filter hook output priority 0\n ct state established accept\n }\n}\n",
	} {
		t.Run(name, func(t *testing.T) {
			pod := netns.AddPod(t, podIPv4, podIPv6)
			nft(t, pod, rules)
			open := map[string]*node.Connection{}
			for _, address := range []string{metadataIPv4, metadataIPv6} {
				c, err := node.Connect(t, pod, address)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
				if got, err := c.Ask(); err != nil || got.Name != netns.NodeRole {
					t.Fatalf("%s: %v, %v", address, got, err)
				}
				open[address] = c
			}
			start(t, pod, "--to", serviceIPv4, "--to", serviceIPv6).exits(t, 0)
			far.TakeLeaks(t)
			for address, c := range open {
				if got, err := c.Ask(); err == nil {
					t.Errorf("%s: the connection goes on: %v", address, got)
				}
			}
			if leaks := far.TakeLeaks(t); leaks != 0 {
				t.Errorf("%d packets leaked", leaks)
			}
		})
	}
}

// A container in the pod, as Docker in Docker makes it: its packets are forwarded by the
// pod, which leads nothing of it anywhere.
func TestWhatThePodForwardsIsRejected(t *testing.T) {
	const innerIPv4, innerIPv6 = "172.17.0.2", "fd00:172:17::2"
	far := netns.NewFarSide(t)
	nodeRules(t, services)
	serve(t, ready)
	pod, inner := netns.AddPod(t, podIPv4, podIPv6), netns.AddPod(t, innerIPv4, innerIPv6)
	move(t, inner, pod)
	for _, setting := range []string{
		"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding",
		// The pod speaks for the gateways of netns.Pod, which the container asks for.
		"net/ipv4/conf/" + inner.Device + "/proxy_arp", "net/ipv6/conf/all/proxy_ndp",
	} {
		if err := pod.Do(func() error { return os.WriteFile("/proc/sys/"+setting, []byte("1"), 0) }); err != nil {
			t.Fatal(err)
		}
	}
	inPod(t, pod, "ip", "link", "set", inner.Device, "up")
	inPod(t, pod, "ip", "neighbour", "add", "proxy", "fdff::1", "dev", inner.Device)
	for address, via := range map[string]string{innerIPv4: podIPv4, innerIPv6: podIPv6} {
		inPod(t, pod, "ip", "route", "add", address, "dev", inner.Device)
		if output, err := exec.Command("ip", "route", "add", address, "via", via).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, output)
		}
	}
	for _, address := range []string{metadataIPv4, metadataIPv6} {
		if got, err := node.Ask(t, inner, address); err != nil || got.Name != netns.NodeRole {
			t.Fatalf("before the rules %s leads to %v, %v, want the machine's", address, got, err)
		}
	}
	start(t, pod, "--to", serviceIPv4, "--to", serviceIPv6).exits(t, 0)
	far.TakeLeaks(t)
	for _, address := range []string{metadataIPv4, metadataIPv6} {
		rejected(t, inner, "tcp", fmt.Sprintf("[%s]:80", address))
		rejected(t, inner, "udp", fmt.Sprintf("[%s]:53", address))
	}
	reaches(t, inner, "10.244.1.2:8080", "server", innerIPv4)
	reaches(t, inner, "[fd00:10:244:1::2]:8080", "server", innerIPv6)
}

// move moves the outer end of a pod's link into another pod, until the test ends: netns
// removes it from where it has made it.
func move(t *testing.T, inner, pod *netns.Pod) {
	t.Helper()
	var namespaces []*os.File // of the node and of the pod
	open := func() error {
		file, err := os.Open("/proc/thread-self/ns/net")
		namespaces = append(namespaces, file)
		return err
	}
	if err := errors.Join(open(), pod.Do(open)); err != nil {
		t.Fatal(err)
	}
	set := func(namespace *os.File) error {
		return exec.Command("ip", "link", "set", inner.Device, "netns", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), namespace.Fd())).Run()
	}
	if err := set(namespaces[1]); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pod.Do(func() error { return set(namespaces[0]) }); err != nil {
			t.Error(err)
		}
		for _, namespace := range namespaces {
			namespace.Close()
		}
	})
}

// A proxy of a service mesh lives by redirecting whatever the pod sends. Ours is decided
// first, whoever came first, and the mesh keeps the rest.
func TestRedirectsOfAServiceMeshLoseToOurs(t *testing.T) {
	redirects := map[string]func(*testing.T, *netns.Pod){
		"iptables-nft":    iptables("iptables-nft", "ip6tables-nft"),
		"iptables-legacy": iptables("iptables-legacy", "ip6tables-legacy"),
		"nft": func(t *testing.T, pod *netns.Pod) {
			t.Helper()
			for _, family := range []string{"ip", "ip6"} {
				nft(t, pod, redirect(family, -100))
			}
		},
	}
	netns.NewFarSide(t)
	nodeRules(t, services)
	serve(t, ready)
	for name, install := range redirects {
		for _, before := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s before ours %t", name, before), func(t *testing.T) {
				pod := netns.AddPod(t, podIPv4, podIPv6)
				mesh := addProxy(t, pod)
				if before {
					install(t, pod)
				}
				start(t, pod, "--to", serviceIPv4, "--to", serviceIPv6).exits(t, 0)
				if !before {
					install(t, pod)
				}
				reaches(t, pod, metadataIPv4, "server", podIPv4)
				reaches(t, pod, metadataIPv6, "server", podIPv6)
				if caught := mesh.Connections.Load(); caught != 0 {
					t.Errorf("the mesh caught %d connections of ours", caught)
				}
				reaches(t, pod, "10.244.1.2:8080", "mesh", podIPv4)
				reaches(t, pod, "[fd00:10:244:1::2]:8080", "mesh", podIPv6)
			})
		}
	}
}

// iptables redirects as istio-iptables and linkerd's proxy-init do.
func iptables(programs ...string) func(*testing.T, *netns.Pod) {
	return func(t *testing.T, pod *netns.Pod) {
		t.Helper()
		for _, program := range programs {
			inPod(t, pod, program, "-w", "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-j", "REDIRECT", "--to-ports", "15001")
		}
	}
}

func redirect(family string, priority int) string {
	return fmt.Sprintf("table %s mesh {\n chain output {\n type nat hook output priority %d\n meta l4proto tcp redirect to :15001\n }\n}\n", family, priority)
}

// addProxy listens where redirects lead to.
func addProxy(t *testing.T, pod *netns.Pod) *node.Endpoint {
	t.Helper()
	mesh := &node.Endpoint{Pod: pod, Name: "mesh"}
	listener, err := pod.Listen("tcp", "[::]:15001")
	if err != nil {
		t.Fatal(err)
	}
	mesh.Serve(t, listener)
	return mesh
}

// Whoever translates even before us gets no packet of ours.
func TestTranslationBeforeOursIsRejected(t *testing.T) {
	netns.NewFarSide(t)
	nodeRules(t, services)
	serve(t, ready)
	pod := netns.AddPod(t, podIPv4, podIPv6)
	mesh := addProxy(t, pod)
	nft(t, pod, redirect("ip", -150))
	start(t, pod, "--to", serviceIPv4, "--probe-timeout", "0s").exits(t, 0)
	rejected(t, pod, "tcp", "169.254.169.254:80")
	if caught := mesh.Connections.Load(); caught != 0 {
		t.Errorf("the mesh caught %d connections", caught)
	}
	start(t, pod, "--to", serviceIPv4, "--probe-timeout", "1ms").exits(t, failed, "refused")
}

// The kubelet runs an init container again that has failed, in the same network namespace,
// and may do so with one that has not.
func TestSecondRunChangesNothing(t *testing.T) {
	netns.NewFarSide(t)
	nodeRules(t, services)
	serve(t, ready)
	pod := netns.AddPod(t, podIPv4, podIPv6)
	iptables("iptables-nft")(t, pod)
	addProxy(t, pod)
	nft(t, pod, `table inet foreign {
		set numbers {
			type inet_service
			elements = { 1, 2, 3 }
		}
		chain output {
			type filter hook output priority 0
			counter
			tcp dport @numbers reject
		}
	}`)
	// Without the values of counters, which go on.
	list := func() string { return inPod(t, pod, "nft", "--stateless", "list", "ruleset") }
	foreign := list()
	start(t, pod, "--to", serviceIPv4, "--to", serviceIPv6).exits(t, 0)
	first := list()
	if !strings.Contains(first, foreign) {
		t.Errorf("foreign tables were\n%s\nand are now\n%s", foreign, first)
	}
	start(t, pod, "--to", serviceIPv4, "--to", serviceIPv6).exits(t, 0)
	if second := list(); second != first {
		t.Errorf("after one run\n%s\nafter the second\n%s", first, second)
	}
	reaches(t, pod, metadataIPv4, "server", podIPv4)
}

// A server's node loses its power. The pod's own node remembers by the source port where it
// led an unanswered connection, whatever the Service's rules say by then.
func TestHalfOpenConnectionLeavesADeadServer(t *testing.T) {
	netns.NewFarSide(t)
	serve(t, ready)
	dead := netns.AddPod(t, "10.244.1.3", "fd00:10:244:1::3")
	nft(t, dead, "table inet dead {\n counter dropped {}\n chain input {\n type filter hook input priority 0\n meta l4proto tcp counter name dropped drop\n }\n}\n")
	arrived := func() string { return inPod(t, dead, "nft", "list", "counters") }
	gone := strings.NewReplacer("10.244.1.2", "10.244.1.3", "fd00:10:244:1::2", "fd00:10:244:1::3").Replace(services)
	for _, tc := range []struct{ name, service, metadata, pod string }{
		{"IPv4", serviceIPv4, metadataIPv4, podIPv4},
		{"IPv6", serviceIPv6, metadataIPv6, podIPv6},
	} {
		t.Run(tc.name, func(t *testing.T) {
			nodeRules(t, gone)
			pod := netns.AddPod(t, podIPv4, podIPv6)
			start(t, pod, "--to", tc.service, "--probe-timeout", "0").exits(t, 0)
			before := arrived()
			reached := make(chan time.Duration, 1)
			go func() {
				start := time.Now()
				reaches(t, pod, tc.metadata, "server", tc.pod)
				reached <- time.Since(start)
			}()
			environment.Eventually(t, environment.AtMost(5*time.Second), func() error {
				if arrived() == before {
					return errors.New("the dead server got no packet")
				}
				return nil
			})
			nodeRules(t, services)
			// The first repetition of its SYN is after a second, RFC 6298.
			if took := <-reached; took > environment.AtMost(2*time.Second) {
				t.Errorf("connected after %s, want it at the first repetition", took)
			}
		})
	}
}
