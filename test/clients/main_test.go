// Package clients runs real, unmodified AWS clients in the network namespaces of pods,
// where 169.254.169.254:80 leads to the server with the pod's own source address. The
// clients have no configuration: what they find, they find at the metadata service, or where the
// variables say that the webhook sets (container_test.go).
//
// In most tests the address is simply the server's own. Where servers are replaced
// (replicas_test.go), they are in pods too and ip2service leads the clients to them; its
// rules as such are package routing's.
package clients

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/netns"
	"github.com/iam4kube/iam4kube/test/node"
)

// env is shared by the tests; each makes namespaces, roles and pods of its own. They do
// not run in parallel: there is one metadata address.
var env *environment.Environment

func TestMain(m *testing.M) {
	if netns.Check() != nil { // still where modules can be fetched
		if err := build(); err != nil {
			fmt.Fprintln(os.Stderr, "clients:", err)
			os.Exit(1)
		}
	}
	netns.Main(m, func() int {
		return environment.Main(m, func(e *environment.Environment) { env = e })
	})
}

func build() error {
	if _, err := controlplane.Build(context.Background()); err != nil {
		return err
	}
	if _, err := environment.Build("cmd/server", "-race"); err != nil {
		return err
	}
	if _, err := node.Program(true); err != nil {
		return err
	}
	for _, c := range allClients {
		if _, err := c.command(); err != nil {
			return err
		}
	}
	return nil
}
