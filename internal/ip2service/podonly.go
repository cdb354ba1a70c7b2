//go:build podonly

package ip2service

import (
	"context"
	"errors"

	"go.uber.org/zap"

	"github.com/iam4kube/iam4kube/internal/ip2service/nftables"
)

// Modes are what --mode accepts. Mode node is left out of the build for init containers:
// what is put into every pod has no client for the API server, and is a third of the size.
var Modes = []string{ModePod}

// DataPaths are what --data-path accepts.
var DataPaths = []string{"nftables"}

// nodePath is what a pod's rules are in.
func nodePath(Config, *zap.Logger) dataPath { return nftables.Kernel{} }

func runNode(context.Context, Config, *zap.Logger) error {
	return errors.New("this build has no mode node")
}
