package clients

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/netns"
)

// metadataAddresses are those of EC2's instance metadata service.
var metadataAddresses = []string{"169.254.169.254", "fd00:ec2::254"}

// catchMetadata makes the metadata addresses those of the namespace that stands for the
// nodes, until the test ends.
func catchMetadata(t *testing.T) {
	t.Helper()
	for _, address := range metadataAddresses {
		netns.AddLocal(t, address+hostBits(address))
	}
}

func hostBits(address string) string {
	if strings.Contains(address, ":") {
		return "/128"
	}
	return "/32"
}

// serve runs the server on the metadata addresses.
func serve(t *testing.T, flags ...string) *environment.Server {
	t.Helper()
	s, _ := env.StartProcess(t, append([]string{"--listen-on", ":80", "--drain", "0s"}, flags...)...)
	s.WaitReady(t)
	return s
}

// farSide is the metadata service of the cloud's machine that the nodes run on. A packet
// for the metadata addresses that nothing catches ends there.
type farSide struct {
	// leaks counts the connections.
	leaks atomic.Int64
}

// nodeRole is the far side's one answer.
const nodeRole = "role-of-the-machine"

// newFarSide puts the far side behind the default route. The test fails if there are
// leaks at its end.
func newFarSide(t *testing.T) *farSide {
	t.Helper()
	far, routers := &farSide{}, []string{"198.51.100.1", "2001:db8::1"}
	namespace := netns.AddPod(t, routers...)
	for i, address := range metadataAddresses {
		ip(t, "route", "add", "default", "via", routers[i], "dev", namespace.Device)
		err := namespace.Do(func() error {
			// Without nodad an IPv6 address cannot be used yet.
			return exec.Command("ip", "address", "add", address+hostBits(address), "dev", "lo", "nodad").Run()
		})
		if err != nil {
			t.Fatal(err)
		}
		listener, err := namespace.Listen("tcp", net.JoinHostPort(address, "80"))
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{
			Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, nodeRole) }),
			ConnState: func(_ net.Conn, state http.ConnState) {
				if state == http.StateNew {
					far.leaks.Add(1)
				}
			},
		}
		go func() { _ = server.Serve(listener) }() // until Close
		t.Cleanup(func() { server.Close() })
	}
	t.Cleanup(func() {
		if leaks := far.leaks.Load(); leaks != 0 {
			t.Errorf("%d connections reached the metadata service of the machine, want none", leaks)
		}
	})
	return far
}

func ip(t *testing.T, args ...string) {
	t.Helper()
	if output, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %v: %v: %s", args, err, output)
	}
}

// pod is a pod of the API with its network namespace.
type pod struct {
	*netns.Pod
	arn, sessionName, region string
}

var pods atomic.Int32

// addNode registers a node in a zone whose name ends with a letter after its region's.
func addNode(t *testing.T, name, zone string) (region string) {
	t.Helper()
	region = zone[:len(zone)-1]
	if err := env.CreateNode(t.Context(), controlplane.Node{Name: name, Zone: zone, Region: region}); err != nil {
		t.Fatal(err)
	}
	return region
}

// addAccount creates a namespace, if need be, and in it a ServiceAccount with a role.
func addAccount(t *testing.T, namespace, name string) (arn string) {
	t.Helper()
	if err := env.CreateNamespace(t.Context(), namespace); err != nil {
		t.Fatal(err)
	}
	arn = env.NewRole()
	err := env.CreateServiceAccount(t.Context(), controlplane.ServiceAccount{
		Namespace: namespace, Name: name, Annotations: map[string]string{role.AnnotationARN: arn},
	})
	if err != nil {
		t.Fatal(err)
	}
	return arn
}

// addPod makes a dual-stack pod on a node.
func addPod(t *testing.T, namespace, account, arn, node, region string) pod {
	t.Helper()
	n := pods.Add(1)
	addresses := []string{fmt.Sprintf("10.244.0.%d", n), fmt.Sprintf("fd00:10:244::%d", n)}
	_, err := env.CreatePod(t.Context(), controlplane.Pod{
		Namespace: namespace, Name: fmt.Sprint(account, "-", n), ServiceAccount: account, Node: node, IPs: addresses,
	})
	if err != nil {
		t.Fatal(err)
	}
	return pod{Pod: netns.AddPod(t, addresses...), arn: arn, sessionName: namespace + "@" + account, region: region}
}

// twoPods makes two pods that differ in everything: node, region, ServiceAccount, role.
func twoPods(t *testing.T, namespace string) []pod {
	t.Helper()
	var two []pod
	for _, of := range []struct{ account, zone string }{{"orders", "eu-west-1a"}, {"billing", "us-east-2b"}} {
		node := namespace + "-" + of.zone
		arn, region := addAccount(t, namespace, of.account), addNode(t, node, of.zone)
		two = append(two, addPod(t, namespace, of.account, arn, node, region))
	}
	return two
}
