//go:build podonly

package ip2service

import (
	"context"
	"errors"

	"go.uber.org/zap"
)

// runNode is left out of the build for init containers: what is put into every pod has no
// client for the API server, and is a third of the size.
func runNode(context.Context, Config, *zap.Logger) error {
	return errors.New("this is the build for init containers, it has no --mode node")
}
