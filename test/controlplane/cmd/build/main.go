// Command build builds the control plane that the tests run on, so that a test run
// need not start with it. It prints the folder that holds the programs. With the argument
// certmanager it builds cert-manager's controllers instead, with networkpolicy what enforces
// NetworkPolicies on a node, with helm Helm 3 and 4, with apiserver the API server alone.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/iam4kube/iam4kube/test/controlplane"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	build := controlplane.Build
	switch strings.Join(os.Args[1:], " ") {
	case "certmanager":
		build = func(ctx context.Context) (string, error) {
			program, _, err := controlplane.BuildCertManager(ctx)
			return program, err
		}
	case "networkpolicy":
		build = controlplane.BuildNetworkPolicy
	case "apiserver":
		build = controlplane.BuildAPIServer
	case "helm":
		build = func(ctx context.Context) (string, error) {
			programs, err := controlplane.BuildHelm(ctx)
			return strings.Join(programs, "\n"), err
		}
	}
	dir, err := build(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "build:", err)
		os.Exit(1)
	}
	fmt.Println(dir)
}
