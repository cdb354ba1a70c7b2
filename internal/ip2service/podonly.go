//go:build podonly

package ip2service

import (
	"context"
	"errors"

	"go.uber.org/zap"
)

// Modes are what --mode accepts. Mode node is left out of the build for init containers:
// what is put into every pod has no client for the API server, and is a third of the size.
var Modes = []string{ModePod}

func runNode(context.Context, Config, dataPath, *zap.Logger) error {
	return errors.New("this build has no mode node")
}
