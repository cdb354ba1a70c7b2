// Package routing tests how ip2service --mode node leads the packets of pods: the
// numbered cases of the required behaviour, each by its number, on real nftables and real
// eBPF programs, in network namespaces and cgroups. Each case is run for both data paths.
// Those that are not here:
//
//	 6  changes of the rules under load    routingload, TestChangesOfEndpointsUnderLoad
//	 7  foreign flush and other changes    routingload, TestForeign…, TestFlush…
//	 8  other hooks and priorities         here, and routingload, TestUpgradeUnderLoad
//	10  what nft lists, nft reads          rules, with the golden files
//	16  NetworkPolicy on both sides        e2e, TestDefaultDenyWithTheDocumentedException
//	18  table of another owner             routingload, TestTableOfAnotherOwner
//	19  what EndpointSlices mean           internal/ip2service/backends
//
// 12 to 15 are here and, with real pods, in e2e.
package routing

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/netns"
	"github.com/iam4kube/iam4kube/test/node"
)

// cluster is shared by the tests; each has a Service of its own. They do not run in
// parallel: there is one node.
var cluster *node.Cluster

func TestMain(m *testing.M) {
	if netns.Check() != nil { // still where modules can be fetched
		if err := build(); err != nil {
			fmt.Fprintln(os.Stderr, "routing:", err)
			os.Exit(1)
		}
	}
	netns.MainInPods(m, func() int {
		cp, err := controlplane.Start(context.Background(), controlplane.Options{})
		if err != nil {
			fmt.Fprintln(os.Stderr, "routing:", err)
			return 1
		}
		if cluster, err = node.NewCluster(context.Background(), cp); err != nil {
			fmt.Fprintln(os.Stderr, "routing:", err)
			return 1
		}
		status := m.Run()
		if err := cp.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, "routing:", err)
			return 1
		}
		return status
	})
}

func build() error {
	if _, err := controlplane.Build(context.Background()); err != nil {
		return err
	}
	_, err := node.Program(true)
	return err
}
