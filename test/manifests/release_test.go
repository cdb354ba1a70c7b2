package manifests

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"

	"github.com/iam4kube/iam4kube/test/controlplane"
)

// releases are sets of values that users change between.
var releases = []string{
	"overlay=both",
	"overlay=node-wide",
	"overlay=injection",
	"overlay=startup-taint",
	"overlay=tokens-alone",
	"overlay=no-dedicated-nodes",
	`overlay=both,components={token,service-addresses,drop-net-raw,allow-dns,always-pull,startup-taint}`,
	"overlay=node-wide,components={token-addresses},server.replicas=3,image.tag=v2",
	"overlay=uninstall",
}

// TestReleases is what users do with the chart, from each Helm on an API server of its own: Namespace,
// Service and quota stay as they were all the time.
func TestReleases(t *testing.T) {
	t.Parallel()
	for i, program := range helms(t) {
		t.Run(filepath.Base(program), func(t *testing.T) {
			t.Parallel()
			cluster, left := newCluster(t)
			r := release{cluster, program, cluster.Kubeconfig(t, cluster.Config())}
			r.change(t, left)
			r.takeOver(t, i == 1)
		})
	}
}

// release is one of Helm's, in a cluster.
type release struct {
	cluster             *controlplane.ControlPlane
	program, kubeconfig string
}

func (r release) helm(t *testing.T, args ...string) {
	t.Helper()
	start := time.Now()
	defer func() {
		t.Logf("helm %s %s: %s", args[0], args[len(args)-1], time.Since(start).Round(time.Millisecond))
	}()
	if stdout, stderr, err := helm(t, r.program, append(args, "--kubeconfig", r.kubeconfig)...); err != nil {
		t.Fatalf("helm %q: %v: %s%s", args, err, stdout, stderr)
	}
}

// change goes from each set of values to the next, and from the last to the first, and uninstalls.
// (What a chart makes of values does not depend on those before.)
func (r release) change(t *testing.T, left func() []string) {
	t.Helper()
	r.helm(t, "install", "iam4kube", chart(), "--set", releases[0])
	before := kept(t, r.cluster)
	for _, next := range slices.Concat(releases[1:], releases[:1]) {
		r.helm(t, "upgrade", "iam4kube", chart(), "--reset-values", "--set", next)
		if after := kept(t, r.cluster); after != before {
			t.Fatalf("%s: %s, before %s", next, after, before)
		}
	}
	r.helm(t, "uninstall", "iam4kube")
	if after := kept(t, r.cluster); after != before {
		t.Errorf("uninstalled: %s, before %s", after, before)
	}
	if left := left(); len(left) != 3 {
		t.Errorf("uninstalled, and there is still %q", left)
	}
	// As for the clean-up, with what has stayed.
	r.helm(t, "install", "iam4kube", chart(), "--set", "overlay=uninstall")
	if after := kept(t, r.cluster); after != before {
		t.Errorf("installed again: %s, before %s", after, before)
	}
	r.helm(t, "uninstall", "iam4kube")
}

// takeOver goes from `kubectl apply -k` to the chart, as install.md says.
func (r release) takeOver(t *testing.T, force bool) {
	t.Helper()
	bin, err := controlplane.Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, overlay := range []string{"namespace", "both"} {
		if output, err := exec.CommandContext(t.Context(), filepath.Join(bin, "kubectl"), "--kubeconfig", r.kubeconfig, "apply", "-k", manifest(overlay)).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", overlay, err, output)
		}
	}
	before := kept(t, r.cluster)
	args := []string{"install", "iam4kube", chart(), "--set", "image.tag=v2"}
	if _, stderr, err := helm(t, r.program, append(args, "--kubeconfig", r.kubeconfig)...); err == nil || !strings.Contains(stderr, "cannot be imported into the current release") {
		t.Errorf("beside what is there: %v: %s", err, stderr)
	}
	args = append(args, "--take-ownership")
	if force {
		args = append(args, "--force-conflicts")
	}
	r.helm(t, args...)
	server, err := r.cluster.Client.AppsV1().Deployments(own).Get(t.Context(), "iam4kube-server", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if have := server.Spec.Template.Spec.Containers[0]; have.Image != images+"server:v2" || len(have.EnvFrom) != 1 || have.EnvFrom[0].ConfigMapRef.Name != "iam4kube-server" {
		t.Errorf("the server has %s, %+v", have.Image, have.EnvFrom)
	}
	if after := kept(t, r.cluster); after != before {
		t.Errorf("%s, before %s", after, before)
	}
}

// kept is what has to outlive every release: the Service's address, the Namespace and the quota.
func kept(t *testing.T, cluster *controlplane.ControlPlane) string {
	t.Helper()
	core := cluster.Client.CoreV1()
	namespace, err := core.Namespaces().Get(t.Context(), own, metav1.GetOptions{})
	service, serviceErr := core.Services(own).Get(t.Context(), own, metav1.GetOptions{})
	quota, quotaErr := core.ResourceQuotas(own).Get(t.Context(), "iam4kube-critical", metav1.GetOptions{})
	if err := errors.Join(err, serviceErr, quotaErr); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(namespace.UID, service.UID, service.Spec.ClusterIPs, quota.UID)
}

// newCluster is an API server with cert-manager's definitions. left has what is there of the release.
func newCluster(t *testing.T) (cluster *controlplane.ControlPlane, left func() []string) {
	t.Helper()
	cluster, err := controlplane.Start(t.Context(), controlplane.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Stop(); err != nil {
			t.Error(err)
		}
	})
	_, crds, err := controlplane.BuildCertManager(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(crds, "*cert-manager.io_*.yaml"))
	if err := errors.Join(err, cluster.ApplyFiles(t.Context(), files...)); err != nil {
		t.Fatal(err)
	}
	kinds := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(cluster.Client.Discovery()))
	eventually(t, func() error {
		kinds.Reset()
		_, certificate := kinds.RESTMapping(schema.GroupKind{Group: "cert-manager.io", Kind: "Certificate"}, "v1")
		_, issuer := kinds.RESTMapping(schema.GroupKind{Group: "cert-manager.io", Kind: "Issuer"}, "v1")
		return errors.Join(certificate, issuer)
	})
	return cluster, func() []string { return ofRelease(t, cluster, kinds) }
}

// ofRelease lists the objects that Helm has labelled, of the kinds that the chart has.
func ofRelease(t *testing.T, cluster *controlplane.ControlPlane, kinds meta.RESTMapper) (found []string) {
	t.Helper()
	client := dynamic.NewForConfigOrDie(cluster.Config())
	var seen []string
	for _, object := range append(rendered(t, helms(t)[0], "--set", "overlay=startup-taint"), rendered(t, helms(t)[0], "--set", "overlay=uninstall")...) {
		kind := object.GroupVersionKind()
		if slices.Contains(seen, kind.String()) {
			continue
		}
		seen = append(seen, kind.String())
		mapping, err := kinds.RESTMapping(kind.GroupKind(), kind.Version)
		if err != nil {
			t.Fatal(err)
		}
		list, err := client.Resource(mapping.Resource).List(t.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/managed-by=Helm"})
		if err != nil {
			t.Fatal(err)
		}
		for _, item := range list.Items {
			found = append(found, strings.TrimSpace(item.GetKind()+" "+item.GetName()))
		}
	}
	return found
}
