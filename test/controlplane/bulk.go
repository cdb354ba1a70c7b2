package controlplane

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
)

// CreatePods creates pods by CreatePod, many at a time and as fast as the API server
// takes them, and stops at the first failure. The order is not kept.
func (cp *ControlPlane) CreatePods(ctx context.Context, pods iter.Seq[Pod]) error {
	return inParallel(ctx, pods, func(ctx context.Context, pod Pod) error {
		if _, err := cp.CreatePod(ctx, pod); err != nil {
			return fmt.Errorf("creating pod %s/%s: %w", pod.Namespace, pod.Name, err)
		}
		return nil
	})
}

// CreateServiceAccounts creates ServiceAccounts as CreatePods does pods.
func (cp *ControlPlane) CreateServiceAccounts(ctx context.Context, accounts iter.Seq[ServiceAccount]) error {
	return inParallel(ctx, accounts, func(ctx context.Context, account ServiceAccount) error {
		if err := cp.CreateServiceAccount(ctx, account); err != nil {
			return fmt.Errorf("creating ServiceAccount %s/%s: %w", account.Namespace, account.Name, err)
		}
		return nil
	})
}

// inParallel calls do for every item and returns the first error, after all have ended.
func inParallel[T any](ctx context.Context, items iter.Seq[T], do func(context.Context, T) error) error {
	const workers = 64
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	queue := make(chan T)
	var running sync.WaitGroup
	for range workers {
		running.Go(func() {
			for item := range queue {
				if err := do(ctx, item); err != nil {
					fail(err)
					return
				}
			}
		})
	}
	for item := range items {
		select {
		case queue <- item:
			continue
		case <-ctx.Done():
		}
		break
	}
	close(queue)
	running.Wait()
	return context.Cause(ctx)
}

// pad fills a pod up so that the API server returns about size bytes of JSON for it once
// it runs: half of what is missing by environment variables, which count twice, because
// managedFields names each of them, the rest by an annotation.
func pad(pod *corev1.Pod, size int) {
	const (
		runningPod  = 3400 // JSON of CreatePod's pod with a status, without padding
		perVariable = 212  // 65 of them in managedFields
	)
	missing := max(0, size-runningPod)
	for i := range missing / 2 / perVariable {
		pod.Spec.Containers[0].Env = append(pod.Spec.Containers[0].Env, corev1.EnvVar{
			Name:  fmt.Sprintf("PADDING_%03d", i),
			Value: strings.Repeat("v", 104),
		})
	}
	annotations := map[string]string{"example.com/padding": strings.Repeat("a", missing/2)}
	maps.Copy(annotations, pod.Annotations)
	pod.Annotations = annotations
}
