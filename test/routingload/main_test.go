// Package routingload tests that ip2service --mode node holds while pods connect all the
// time: thousands of changes of the endpoints, its death at any moment, changes of its
// rules by others, and upgrades. Each test knows from the kernel which rules were in force
// when, and compares what happened to each request with that.
package routingload

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
			fmt.Fprintln(os.Stderr, "routingload:", err)
			os.Exit(1)
		}
	}
	netns.Main(m, func() int {
		cp, err := controlplane.Start(context.Background(), controlplane.Options{})
		if err != nil {
			fmt.Fprintln(os.Stderr, "routingload:", err)
			return 1
		}
		if cluster, err = node.NewCluster(context.Background(), cp); err != nil {
			fmt.Fprintln(os.Stderr, "routingload:", err)
			return 1
		}
		status := m.Run()
		if err := cp.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, "routingload:", err)
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
	if err != nil {
		return err
	}
	_, err = node.Program(false)
	return err
}
