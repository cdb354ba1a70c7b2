//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/test/docs"
	"github.com/iam4kube/iam4kube/test/registry"
)

// released is the version of the release that the test makes.
const released = "v0.2.0"

// TestReleaseFromRegistry brings a release into a registry, by the commands of docs/release.md, and
// installs its chart from there with Helm, over what kubectl has installed, as docs/install.md says. The
// nodes pull the images by the digests that the chart has.
func TestReleaseFromRegistry(t *testing.T) {
	dir := makeRelease(t)
	node, err := client.CoreV1().Nodes().Get(t.Context(), "server-1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r := registry.Start(t, net.ParseIP(node.Status.Addresses[0].Address), func(args ...string) (*exec.Cmd, error) {
		return machine.Command(context.Background(), "server-1", args...) // at the end of the test, too
	})
	r.Push(t, dir, released)
	// The name that the chart has leads there. Debian's containerd ignores a file without a table `host`.
	hosts := filepath.Join(machine.RegistryHosts(), "registry.example")
	if err := errors.Join(os.MkdirAll(hosts, 0o755),
		os.WriteFile(filepath.Join(hosts, "hosts.toml"), fmt.Appendf(nil, "[host.\"https://%s\"]\nca = %q\n", r.Address, r.Certificate), 0o644),
	); err != nil {
		t.Fatal(err)
	}
	chart := "oci://" + r.Address + "/iam4kube/charts/iam4kube --version " + strings.TrimPrefix(released, "v") + " --kubeconfig " + machine.InnerKubeconfig()
	components := "token,service-addresses"
	if dataPath == "ebpf" {
		components += ",ebpf"
	}
	values := "--set components='{" + components + "}'" +
		" --set server.env.AWS_ACCESS_KEY_ID=AKIAIOSFODNN7EXAMPLE,server.env.AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
	r.Run(t, dir, "helm install iam4kube "+chart+" --take-ownership --force-conflicts "+values)
	t.Cleanup(func() {
		r.Run(t, dir, "helm uninstall iam4kube --ignore-not-found --wait --kubeconfig "+machine.InnerKubeconfig())
		reinstall(t)
	})
	settled(t)
	if err := injecting(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, way := range []path{nodeWide, inPod, withToken} {
		ns := namespace(t, way)
		role(t, ns, "role-06")
		create(t, clientPod(ns, "role-06", "wait"))
		pod := waitPod(t, ns, "role-06", running)
		if way == withToken {
			wantByToken(t, pod)
			continue
		}
		wantServedBy(t, pod)
		if way == inPod {
			wantPulled(t, pod.Status.InitContainerStatuses[0])
		}
	}
	pods, err := client.CoreV1().Pods(own).List(t.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/name in (iam4kube-server, iam4kube-webhook, iam4kube-ip2service)"})
	if err != nil || len(pods.Items) < 6 {
		t.Fatalf("%d pods, %v", len(pods.Items), err)
	}
	for i := range pods.Items {
		wantPulled(t, pods.Items[i].Status.ContainerStatuses[0])
	}
	uninstallByHelm(t, func(command string) { r.Run(t, dir, command) }, chart, values)
}

// uninstallByHelm follows docs/operations.md with Helm in the place of kubectl's deletes, while pods of each
// way try all ways to the node's metadata service: it opens to those that only the node covers, when the last
// step says so, and to nobody else and not before.
func uninstallByHelm(t *testing.T, run func(command string), chart, values string) {
	t.Helper()
	covered, injected := knockers(t, nodeWide), knockers(t, inPod)
	all := append(slices.Clone(covered), injected...)
	wantServed(t, all)
	refused := always(func(k knocks) bool { return k.only("refused", "timeout") })

	shell(t, ".", docs.Block(t, "operations.md", "sh", "iam4kube.io/inject-"))
	before, last, found := strings.Cut(docs.Block(t, "operations.md", "sh", "delete deployment iam4kube-server"), "kubectl delete -k deploy")
	if !found || strings.Count(last, "\n") != 1 {
		t.Fatalf("the step that deletes ends with %q", last)
	}
	const uninstall = "helm uninstall iam4kube"
	if !strings.Contains(docs.Text(t, "operations.md"), "`"+uninstall+"` stands for the last command of step 3") {
		t.Fatal("docs/operations.md says something else of Helm")
	}
	shell(t, ".", before)
	run(uninstall + " --kubeconfig " + machine.InnerKubeconfig())
	eventually(t, "ip2service is gone", func() bool {
		return mustKubectl(t, "--namespace="+own, "get", "pods", "--selector=app.kubernetes.io/name in (iam4kube-server, iam4kube-ip2service, iam4kube-webhook)", "--output=name") == ""
	})
	wantLeadNowhere(t)
	untilKnocks(t, all, refused)
	wantNoLeaks(t)

	cleanup := strings.NewReplacer("iam4kube/charts/iam4kube", chart, "--values values.yaml", values).Replace(docs.Block(t, "operations.md", "sh", "helm install"))
	waits, _, _ := strings.Cut(docs.Block(t, "operations.md", "sh", "apply -k cleanup"), "kubectl delete -k cleanup")
	_, waits, _ = strings.Cut(waits, "kubectl apply -k cleanup\n")
	if strings.Count(waits, "kubectl -n iam4kube wait") != 2 {
		t.Fatalf("waits: %q", waits)
	}
	if leaks := leaking(t, func() {
		run(cleanup)
		shell(t, ".", waits)
		run(uninstall + " --kubeconfig " + machine.InnerKubeconfig())
		wantNothingOnNodes(t)
		untilKnocks(t, covered, always(func(k knocks) bool { return !k.only("refused", "timeout") }))
		// Not forced: what asks has ended when they are gone.
		mustKubectl(t, "--namespace="+covered[0].Namespace, "delete", "pods", "--all", "--grace-period=1")
	}); leaks == 0 {
		t.Error("nodes' own metadata service was not opened, although it says so")
	}
	untilKnocks(t, injected, refused)
	wantNoLeaks(t)
}

// wantPulled: the runtime has the image by its digest in the registry.
func wantPulled(t *testing.T, c corev1.ContainerStatus) {
	t.Helper()
	_, digest, found := strings.Cut(c.ImageID, "@sha256:")
	if !found || !strings.HasPrefix(c.ImageID, "registry.example/iam4kube/") || len(digest) != 64 {
		t.Errorf("%s has the image %s, %s", c.Name, c.Image, c.ImageID)
	}
}

// makeRelease makes one for this machine's platform, without a signature.
func makeRelease(t *testing.T) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), released)
	cmd := exec.CommandContext(t.Context(), "go", "run", "-trimpath", "./release/cmd/release", "-version", released, "-revision", strings.Repeat("0", 40),
		"-created", "0", "-registry", "registry.example/iam4kube", "-platforms", "linux/amd64", "-dir", dir)
	cmd.Dir, cmd.Env = "..", append(os.Environ(), "CGO_ENABLED=0")
	if output, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	return dir
}
