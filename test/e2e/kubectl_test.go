//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
)

// overlays is the folder of the overlays by what injects and by the data path.
var overlays = map[string]string{
	"webhook, nftables": "manifests", "webhook, ebpf": "manifests/ebpf", "policy, nftables": "manifests/policy",
}[injector+", "+dataPath]

// both is the overlay that is applied at the start and that every test leaves in place.
var both = overlays + "/both"

// kubectl runs it with all rights, with input on its standard input.
func kubectl(ctx context.Context, input string, args ...string) (string, error) {
	cmd, err := machine.Kubectl(ctx, args...)
	if err != nil {
		return "", err
	}
	var output, failure bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &output, &failure
	if err := cmd.Run(); err != nil {
		return output.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, failure.String())
	}
	return output.String(), nil
}

func mustKubectl(t *testing.T, args ...string) string {
	t.Helper()
	output, err := kubectl(t.Context(), "", args...)
	if err != nil {
		t.Fatal(err)
	}
	return output
}

// install applies a kustomization as users do, and waits until all of iam4kube runs.
func install(ctx context.Context, kustomization string) error {
	start := time.Now()
	if _, err := kubectl(ctx, "", "apply", "-k", kustomization); err != nil {
		return err
	}
	if err := rolledOut(ctx); err != nil {
		return err
	}
	if err := injecting(ctx); err != nil {
		return err
	}
	fmt.Printf("%s applied and running after %s\n", kustomization, time.Since(start).Round(100*time.Millisecond))
	return nil
}

// rolledOut waits for everything in the namespace.
func rolledOut(ctx context.Context) error {
	names, err := kubectl(ctx, "", "--namespace="+own, "get", "deployments,daemonsets", "--output=name")
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(names) {
		if _, err := kubectl(ctx, "", "--namespace="+own, "rollout", "status", name, "--timeout="+within.String()); err != nil {
			state, _ := kubectl(ctx, "", "--namespace="+own, "describe", "pods")
			return fmt.Errorf("%w\n%s", err, state)
		}
	}
	return nil
}

// injecting waits until the API server reaches the webhook, if there is one, for both that it
// does. Its pods are Ready up to a second before kube-proxy leads to them, and until then pods
// are refused.
func injecting(ctx context.Context) error {
	const try = `{apiVersion: v1, kind: Namespace, metadata: {name: injecting, labels: {iam4kube.io/inject: enabled, iam4kube.io/token: enabled}}}`
	if _, err := kubectl(ctx, try, "apply", "-f", "-"); err != nil {
		return err
	}
	var last error
	err := wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, within, true, func(ctx context.Context) (bool, error) {
		_, last = client.CoreV1().Pods("injecting").Create(ctx, clientPod("injecting", "default", "once"), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return last == nil, nil
	})
	if err != nil {
		return fmt.Errorf("no pod can be made in a namespace that opted in: %w", last)
	}
	return nil
}

// onNode runs a command on a node, as its root.
func onNode(t *testing.T, node string, args ...string) string {
	t.Helper()
	cmd, err := machine.Command(t.Context(), node, args...)
	if err != nil {
		t.Fatal(err)
	}
	output, err := cmd.Output()
	if err != nil {
		var failure []byte
		if exit, ok := err.(*exec.ExitError); ok { //nolint:errorlint // of Output itself
			failure = exit.Stderr
		}
		t.Fatalf("%s on %s: %v: %s", strings.Join(args, " "), node, err, failure)
	}
	return string(output)
}

// eventually polls, because neither nodes' kernels nor the API server's callers tell.
func eventually(t *testing.T, what string, there func() bool) {
	t.Helper()
	tick, end := time.NewTicker(250*time.Millisecond), time.After(within)
	defer tick.Stop()
	for !there() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("not within %s: %s", within, what)
		}
	}
}
