// Package ip2service does for any IP address what a Service does for its own: it puts
// the parts together and runs them, on a node for as long as it lives, or once in the
// network namespace of a pod. It owns the loop that keeps the kernel's rules what they
// should be. What an endpoint is worth is in package backends, and how routes get into the
// kernel in nftables and bpf, behind the interface dataPath; routes has the words that all
// sides share. host looks at the machine, and probe asks a server whether the way is open.
package ip2service

import (
	"context"

	"go.uber.org/zap"

	"github.com/iam4kube/iam4kube/internal/ip2service/nftables"
	"github.com/iam4kube/iam4kube/internal/logging"
	"github.com/iam4kube/iam4kube/internal/program"
)

// PodFailure is the exit status of mode pod. A Job's podFailurePolicy may look at the exit
// codes of all containers of a pod, and this is none of a shell's, of sysexits.h or of
// container runtimes, so that it is not taken for the application's.
const PodFailure = 113

// Run does what the configuration says. On a node it ends with ctx, and the rules stay.
func Run(ctx context.Context, cfg Config, log *zap.Logger) error {
	switch {
	case cfg.Cleanup:
		return cleanup(nodePath(cfg, log), log)
	case cfg.Mode == ModePod:
		if err := runPod(ctx, cfg, nftables.Kernel{}, log); err != nil {
			return &program.StatusError{Status: PodFailure, Err: err}
		}
		return nil
	}
	return runNode(ctx, cfg, log)
}

func cleanup(kernel dataPath, log *zap.Logger) error {
	removed, err := kernel.Remove()
	if err != nil {
		return err
	}
	log.Info("removed the rules", zap.Bool(logging.Removed, removed))
	return nil
}
