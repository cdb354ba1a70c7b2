package clients

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/netns"
)

// catchMetadata makes the metadata addresses those of the namespace that stands for the
// nodes, until the test ends.
func catchMetadata(t *testing.T) {
	t.Helper()
	for _, address := range netns.MetadataAddresses {
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

// pod is a pod of the API with its network namespace.
type pod struct {
	*netns.Pod
	namespace, name          string
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
	name := fmt.Sprint(account, "-", n)
	_, err := env.CreatePod(t.Context(), controlplane.Pod{
		Namespace: namespace, Name: name, ServiceAccount: account, Node: node, IPs: addresses,
	})
	if err != nil {
		t.Fatal(err)
	}
	return pod{Pod: netns.AddPod(t, addresses...), namespace: namespace, name: name, arn: arn, sessionName: namespace + "@" + account, region: region}
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
