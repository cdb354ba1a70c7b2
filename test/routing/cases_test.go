package routing

import (
	"testing"

	"github.com/iam4kube/iam4kube/test/netns"
	"github.com/iam4kube/iam4kube/test/node"
)

const (
	metadataIPv4 = "169.254.169.254"
	metadataIPv6 = "fd00:ec2::254"
)

// A pod's request gets to a ready endpoint with the pod's own address, by both families.
func TestPodReachesAReadyEndpoint(t *testing.T) {
	netns.NewFarSide(t)
	pod := netns.AddPod(t, "10.244.0.2", "fd00:10:244::2")
	a := node.AddEndpoint(t, "a", "10.244.1.2", "fd00:10:244:1::2")
	service := cluster.NewService()
	service.Set(t, "v4", node.Ready(a.Addresses[0]))
	service.Set(t, "v6", node.Ready(a.Addresses[1]))
	i := service.Start(t)
	i.WaitReady(t)
	for address, source := range map[string]string{metadataIPv4: "10.244.0.2", metadataIPv6: "fd00:10:244::2"} {
		answer, err := node.Ask(t, pod, address)
		if err != nil || answer != (node.Answer{Name: "a", Source: source}) {
			t.Errorf("%s: %+v, %v", address, answer, err)
		}
	}
	i.WaitMetric(t, `iam4kube_translated_connections_total{family="ip"}`, "1")
}
