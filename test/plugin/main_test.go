// Package plugin tests `kubectl iam4kube` as its users run it: the program, against a real API
// server with the objects of manifests/, with servers that run. Set-ups are broken one
// by one, and the program has to name each. Kubelets, which would run the pods, lead
// port-forwards to the servers and do nothing else; what they and controllers would write is
// written by the tests.
package plugin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/netns"
)

var env *environment.Environment

// TestMain runs the tests in a network namespace: each server has one below it, in which the
// debug listener's port is its own.
func TestMain(m *testing.M) {
	if netns.Check() != nil { // still where modules can be fetched
		if err := build(); err != nil {
			fmt.Fprintln(os.Stderr, "plugin:", err)
			os.Exit(1)
		}
	}
	netns.Main(m, func() int {
		return environment.Main(m, func(e *environment.Environment) { env = e })
	})
}

func build() error {
	_, controlPlane := controlplane.Build(context.Background())
	_, _, certManager := controlplane.BuildCertManager(context.Background())
	_, server := environment.Build("cmd/server", "-race")
	_, plugin := environment.Build(pluginFolder)
	return errors.Join(controlPlane, certManager, server, plugin)
}
