//go:build e2e

// Package e2e runs what users apply, on a real cluster, with real pods: `make e2e`.
//
// One run is one column: kube-proxy's mode by IAM4KUBE_E2E_PROXY (nftables, iptables), the CNI
// plug-in by IAM4KUBE_E2E_CNI (ptp, bridge), what leads pods by IAM4KUBE_E2E_DATA_PATH (nftables,
// ebpf). With IAM4KUBE_E2E_KEEP the cluster stays, for `cluster shell`. With IAM4KUBE_E2E_FROM, a
// commit, the cluster has its images, too, and nothing installed: for TestUpgrade alone. Throughout
// the run no packet may reach the metadata service of the machine.
//
// Tests that disturb the cluster, or measure, come first, one after the other; those that call
// t.Parallel are beside each other after them.
package e2e

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/iam4kube/iam4kube/internal/server/issuer"
	"github.com/iam4kube/iam4kube/test/cluster"
	"github.com/iam4kube/iam4kube/test/images"
)

const (
	// own is the namespace of iam4kube.
	own = "iam4kube"
	// tag is that of the demo overlay's images.
	tag = "demo"
	// within bounds what takes seconds, on a machine that is busy.
	within = 2 * time.Minute
)

var (
	machine  cluster.Cluster
	config   *rest.Config
	client   kubernetes.Interface
	proxy    = cmp.Or(os.Getenv("IAM4KUBE_E2E_PROXY"), "nftables")
	cni      = cmp.Or(os.Getenv("IAM4KUBE_E2E_CNI"), "ptp")
	dataPath = cmp.Or(os.Getenv("IAM4KUBE_E2E_DATA_PATH"), "nftables")
	injector = cmp.Or(os.Getenv("IAM4KUBE_E2E_INJECTION"), "webhook")
	from     = os.Getenv("IAM4KUBE_E2E_FROM")
)

func TestMain(m *testing.M) {
	cluster.Init()
	status := 1
	err := start()
	if err == nil {
		status = m.Run()
		err = noLeaks()
	}
	if os.Getenv("IAM4KUBE_E2E_KEEP") == "" {
		err = errors.Join(err, machine.Stop())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		status = 1
	}
	os.Exit(status)
}

func start() error {
	ctx, stop := context.WithTimeout(context.Background(), time.Hour)
	defer stop()
	if overlays == "" {
		return fmt.Errorf("there is no overlay for IAM4KUBE_E2E_INJECTION=%s with IAM4KUBE_E2E_DATA_PATH=%s: injection by policy is tested with nftables", injector, dataPath)
	}
	var err error
	if machine, err = cluster.Default(); err != nil {
		return err
	}
	archives, err := images.Build(ctx, tag, os.Stdout)
	if err != nil {
		return err
	}
	if from != "" {
		_, earlier, err := images.Earlier(ctx, from, lastTag, os.Stdout)
		if err != nil {
			return err
		}
		archives = append(archives, earlier...)
	}
	if err := machine.Start(ctx, cluster.Options{ProxyMode: proxy, CNI: cni, Nodes: cluster.FourNodes(), Images: archives}, os.Stdout); err != nil {
		return err
	}
	if config, err = clientcmd.BuildConfigFromFlags("", machine.Kubeconfig()); err != nil {
		return err
	}
	config.QPS = -1
	if client, err = kubernetes.NewForConfig(config); err != nil {
		return err
	}
	if from != "" {
		return nil
	}
	return errors.Join(install(ctx, "../../manifests/namespace"), publish(ctx), install(ctx, both), injects(ctx))
}

// publish makes the documents of the issuer of manifests/demo, of which a server without an AWS key
// has its tokens.
func publish(ctx context.Context) error {
	folder, err := os.MkdirTemp("", "issuer-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	if err := issuer.NewOperator("https://issuer.invalid/demo", client.CoreV1().Secrets(own), os.Stdout, nil).Print(ctx, folder); err != nil {
		return err
	}
	_, err = kubectl(ctx, "", "--namespace="+own, "create", "configmap", "iam4kube-demo-issuer",
		"--from-file="+filepath.Join(folder, ".well-known", "openid-configuration"), "--from-file="+filepath.Join(folder, "keys.json"))
	return err
}

// injects waits until the API server reaches the webhook: kube-proxy writes its rules once a
// second at most, so they can be later than the rollout.
func injects(ctx context.Context) error {
	object := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "first", Labels: map[string]string{"iam4kube.io/inject": "enabled"}}}
	if _, err := client.CoreV1().Namespaces().Create(ctx, object, metav1.CreateOptions{}); err != nil {
		return err
	}
	var last error
	if err := wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, within, true, func(ctx context.Context) (bool, error) {
		_, last = client.CoreV1().Pods(object.Name).Create(ctx, clientPod(object.Name, "default", "once"), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return last == nil, nil
	}); err != nil {
		return fmt.Errorf("no pod can be made: %w", last)
	}
	return client.CoreV1().Namespaces().Delete(ctx, object.Name, metav1.DeleteOptions{})
}

// leaksAllowed are those of pods that nothing covers.
var leaksAllowed int

// noLeaks is asked at the end of each test that could leak, too, to say which did.
func noLeaks() error {
	status, err := machine.Status(context.Background())
	if err == nil && status.Leaks != leaksAllowed {
		err = fmt.Errorf("%d packets reached the metadata service of the machine", status.Leaks-leaksAllowed)
	}
	return err
}

// leaking returns how many packets get there while f runs, and lets them pass. Nothing that is
// covered may run beside it.
func leaking(t *testing.T, f func()) int {
	t.Helper()
	wantNoLeaks(t)
	f()
	status, err := machine.Status(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	leaks := status.Leaks - leaksAllowed
	leaksAllowed = status.Leaks
	return leaks
}
