// Package manifests applies what users apply, the kustomizations of manifests/, to a real API
// server with cert-manager's definitions, and looks whether their parts fit each other and the
// programs. There are no nodes: pods are created as the API server admits them, and run nowhere.
package manifests

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"

	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
)

const (
	own        = "iam4kube"
	serverNode = "node-restriction.kubernetes.io/iam4kube-server"
	// images is how the names of ours begin: under a domain that nobody can ever have (RFC 6761),
	// so that who forgets to say where they come from gets none, and none of a stranger's.
	images = "registry.invalid/iam4kube/"
	// within bounds what comes in a moment, on a machine that is busy.
	within = time.Minute
)

// overlays are all that can be applied beside the namespace, which is there from the start.
var overlays = []string{"both", "node-wide", "injection", "startup-taint", "no-dedicated-nodes", "tokens-alone", "uninstall"}

var (
	cp     *controlplane.ControlPlane
	client dynamic.Interface
	mapper meta.ResettableRESTMapper
)

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) (status int) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	admission, err := limitedPriorities()
	if err != nil {
		fmt.Fprintln(os.Stderr, "manifests:", err)
		return 1
	}
	defer func() { _ = os.Remove(admission) }()
	if cp, err = controlplane.Start(ctx, controlplane.Options{
		ServiceAccountAdmission: true,
		APIServerArgs:           []string{"--admission-control-config-file=" + admission},
	}); err == nil {
		defer func() {
			if err := cp.Stop(); err != nil {
				fmt.Fprintln(os.Stderr, "manifests:", err)
				status = 1
			}
		}()
		err = prepare(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "manifests:", err)
		return 1
	}
	return m.Run()
}

func prepare(ctx context.Context) error {
	_, crds, err := controlplane.BuildCertManager(ctx)
	if err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(crds, "*cert-manager.io_*.yaml"))
	if err != nil || len(files) < 4 {
		return fmt.Errorf("CRDs in %s: %v, %w", crds, files, err)
	}
	if client, err = dynamic.NewForConfig(cp.Config()); err != nil {
		return err
	}
	mapper = restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(cp.Client.Discovery()))
	namespace, err := build(manifest("namespace"))
	if err != nil {
		return err
	}
	if err := errors.Join(cp.ApplyFiles(ctx, files...), apply(ctx, namespace)); err != nil {
		return err
	}
	// As controllers do; the clean-up names no other.
	if err := cp.CreateServiceAccount(ctx, controlplane.ServiceAccount{Namespace: own, Name: "default"}); err != nil {
		return err
	}
	// Until definitions are served.
	return wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, within, true, func(context.Context) (bool, error) {
		mapper.Reset()
		_, issuer := mapper.RESTMapping(schema.GroupKind{Group: "cert-manager.io", Kind: "Issuer"}, "v1")
		_, certificate := mapper.RESTMapping(schema.GroupKind{Group: "cert-manager.io", Kind: "Certificate"}, "v1")
		return issuer == nil && certificate == nil, nil
	})
}

func manifest(name string) string { return filepath.Join("..", "..", "manifests", name) }

// build is `kubectl kustomize`.
func build(dir string) ([]*unstructured.Unstructured, error) {
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		return nil, err
	}
	var objects []*unstructured.Unstructured
	for _, resource := range built.Resources() {
		content, err := resource.Map()
		if err != nil {
			return nil, err
		}
		objects = append(objects, &unstructured.Unstructured{Object: content})
	}
	return objects, nil
}

// withComponents makes a kustomization of an overlay and components, as users do.
func withComponents(t testing.TB, overlay string, components ...string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	at, err := filepath.Abs(manifest(""))
	if err == nil {
		at, err = filepath.Rel(dir, at)
	}
	text := "resources: [" + filepath.Join(at, overlay) + "]\ncomponents:\n"
	for _, c := range components {
		text += "- " + filepath.Join(at, "components", c) + "\n"
	}
	if err := errors.Join(err, os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
	return dir
}

func mustBuild(t testing.TB, dir string) []*unstructured.Unstructured {
	t.Helper()
	objects, err := build(dir)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

// apply is `kubectl apply --server-side --validate=strict`, and puts into the objects what the
// API server made of them.
func apply(ctx context.Context, objects []*unstructured.Unstructured, dryRun ...string) error {
	for _, object := range objects {
		text, err := object.MarshalJSON()
		if err != nil {
			return err
		}
		kind := object.GroupVersionKind()
		mapping, err := mapper.RESTMapping(kind.GroupKind(), kind.Version)
		if err != nil {
			return err
		}
		applied, err := client.Resource(mapping.Resource).Namespace(object.GetNamespace()).Patch(ctx, object.GetName(), types.ApplyPatchType, text,
			metav1.PatchOptions{FieldManager: "kubectl", FieldValidation: metav1.FieldValidationStrict, DryRun: dryRun})
		if err != nil {
			return fmt.Errorf("%s %s: %w", object.GetKind(), object.GetName(), err)
		}
		object.Object = applied.Object
		if object.GetKind() == "ResourceQuota" && len(dryRun) == 0 {
			if err := countQuota(ctx, object); err != nil {
				return err
			}
		}
	}
	return nil
}

// newNamespace makes a namespace with the ServiceAccount that controllers would make.
func newNamespace(t testing.TB, labels map[string]string) (name string) {
	t.Helper()
	n, err := cp.Client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "test-", Labels: labels},
	}, metav1.CreateOptions{})
	if err == nil {
		err = cp.CreateServiceAccount(t.Context(), controlplane.ServiceAccount{Namespace: n.Name, Name: "default"})
	}
	if err != nil {
		t.Fatal(err)
	}
	return n.Name
}

// create creates a pod as a dry run: admission is all that matters here.
func create(t testing.TB, namespace string, spec corev1.PodSpec, annotations map[string]string) error {
	t.Helper()
	spec.DeprecatedServiceAccount = ""
	if namespace != own {
		spec.ServiceAccountName = ""
	}
	_, err := cp.Client.CoreV1().Pods(namespace).Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "app", Annotations: annotations}, Spec: spec,
	}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	return err
}

func eventually(t testing.TB, check func() error) {
	t.Helper()
	environment.Eventually(t, within, check)
}
