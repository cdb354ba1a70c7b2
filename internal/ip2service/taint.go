//go:build !podonly

package ip2service

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"

	"github.com/iam4kube/iam4kube/internal/logging"
)

// taint keeps pods off a new node until its rules are in. The node comes with it
// (kubelet --register-with-taints), and it is removed once.
type taint struct {
	client    rest.Interface
	node, key string
	inSync    <-chan struct{}
	log       *zap.Logger
}

// Run waits for the rules and removes the taint, as often as it takes.
func (t *taint) Run(ctx context.Context) error {
	select {
	case <-t.inSync:
	case <-ctx.Done():
		return nil
	}
	backoff := wait.Backoff{Duration: 100 * time.Millisecond, Factor: 2, Jitter: 0.2, Cap: 30 * time.Second, Steps: 20}
	for {
		err := t.remove(ctx)
		if err == nil {
			return nil
		}
		pause := backoff.Step()
		t.log.Warn("could not remove the start-up taint", zap.String(logging.Node, t.node), zap.String(logging.Taint, t.key),
			zap.Error(err), zap.Duration(logging.Retry, pause))
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
	}
}

func (t *taint) remove(ctx context.Context) error {
	node := &corev1.Node{}
	if err := t.client.Get().Resource("nodes").Name(t.node).Do(ctx).Into(node); err != nil {
		return err
	}
	left := slices.DeleteFunc(slices.Clone(node.Spec.Taints), func(have corev1.Taint) bool { return have.Key == t.key })
	if len(left) == len(node.Spec.Taints) {
		return nil
	}
	// The version makes the patch fail if somebody else changed the taints meanwhile.
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": node.ResourceVersion},
		"spec":     map[string]any{"taints": left},
	})
	if err != nil {
		return err
	}
	if err := t.client.Patch(types.MergePatchType).Resource("nodes").Name(t.node).Body(patch).Do(ctx).Error(); err != nil {
		return err
	}
	t.log.Info("removed the start-up taint", zap.String(logging.Node, t.node), zap.String(logging.Taint, t.key))
	return nil
}
