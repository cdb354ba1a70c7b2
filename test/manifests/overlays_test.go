package manifests

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

func TestOverlaysApplyAndTheSecondTimeNothingChanges(t *testing.T) {
	for _, overlay := range append([]string{"namespace"}, overlays...) {
		t.Run(overlay, func(t *testing.T) {
			objects := mustBuild(t, manifest(overlay))
			again := mustBuild(t, manifest(overlay))
			if err := apply(t.Context(), objects); err != nil {
				t.Fatal(err)
			}
			if err := apply(t.Context(), again); err != nil {
				t.Fatal(err)
			}
			for i, object := range objects {
				if first, second := object.GetResourceVersion(), again[i].GetResourceVersion(); first != second {
					t.Errorf("%s %s: version %s, then %s", object.GetKind(), object.GetName(), first, second)
				}
			}
		})
	}
}

func TestOverlaysHoldWhatTheirNamesSay(t *testing.T) {
	const server, ip2service, webhook, hook, policy = "Deployment/iam4kube-server", "DaemonSet/iam4kube-ip2service", "Deployment/iam4kube-webhook",
		"MutatingWebhookConfiguration/iam4kube-webhook", "ValidatingAdmissionPolicyBinding/iam4kube-server-nodes"
	all := []string{server, ip2service, webhook, hook, policy, "ServiceAccount/iam4kube-webhook", "ServiceAccount/iam4kube-ip2service", "Certificate/iam4kube-webhook"}
	for overlay, without := range map[string][]string{
		"both":               nil,
		"startup-taint":      nil,
		"node-wide":          {webhook, hook, "ServiceAccount/iam4kube-webhook", "Certificate/iam4kube-webhook"},
		"injection":          {ip2service, "ServiceAccount/iam4kube-ip2service"},
		"no-dedicated-nodes": {policy},
		"tokens-alone":       {hook},
		"uninstall":          all,
	} {
		t.Run(overlay, func(t *testing.T) {
			var have []string
			for _, object := range mustBuild(t, manifest(overlay)) {
				have = append(have, object.GetKind()+"/"+object.GetName())
				if object.GetKind() == "Namespace" || object.GetKind() == "Service" && object.GetName() == own {
					t.Errorf("%s has to outlive it", object.GetKind())
				}
			}
			for _, name := range all {
				if slices.Contains(have, name) == slices.Contains(without, name) {
					t.Errorf("%s in it: %v", name, slices.Contains(have, name))
				}
			}
			if overlay == "node-wide" && strings.Contains(strings.Join(have, " "), "webhook") {
				t.Errorf("something of the webhook: %v", have)
			}
		})
	}
}

// TestUsersImages: what a kustomization of a user says about an image holds wherever the image
// is used, and it says it once.
func TestUsersImages(t *testing.T) {
	dir := t.TempDir()
	at, err := filepath.Abs(manifest(""))
	if err == nil {
		at, err = filepath.Rel(dir, at)
	}
	if err != nil {
		t.Fatal(err)
	}
	text := "resources: [" + filepath.Join(at, "both") + "]\ntransformers: [" + filepath.Join(at, "init-image") + "]\nimages:\n"
	const format = "registry.example:5000/our/%s:v1.2.3@sha256:%064d"
	for i, name := range []string{"server", "webhook", "ip2service", "ip2service-init"} {
		text += fmt.Sprintf("- {name: registry.invalid/iam4kube/%s, newName: registry.example:5000/our/%s, newTag: v1.2.3, digest: 'sha256:%064d'}\n", name, name, i)
	}
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	objects := mustBuild(t, dir)
	text += "components: [" + filepath.Join(at, "components", "injection-policy") + "]\n"
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	byPolicy := mustBuild(t, dir)
	image := func(name string, i int) string { return fmt.Sprintf(format, name, i) }
	initImage := image("ip2service-init", 3)
	webhook := find[appsv1.Deployment](t, objects, "Deployment", "iam4kube-webhook").Spec.Template.Spec.Containers[0]
	policy := find[admissionv1.ValidatingAdmissionPolicy](t, objects, "ValidatingAdmissionPolicy", "iam4kube-net-admin")
	for have, want := range map[string]string{
		find[appsv1.Deployment](t, objects, "Deployment", "iam4kube-server").Spec.Template.Spec.Containers[0].Image: image("server", 0),
		webhook.Image: image("webhook", 1),
		find[appsv1.DaemonSet](t, objects, "DaemonSet", "iam4kube-ip2service").Spec.Template.Spec.Containers[0].Image: image("ip2service", 2),
		webhook.Args[1]:                     "--init-image=" + initImage,
		policy.Spec.Variables[0].Expression: "['" + initImage + "']",
		find[admissionv1.MutatingAdmissionPolicy](t, byPolicy, "MutatingAdmissionPolicy", "iam4kube-inject").Spec.Variables[0].Expression: "'" + initImage + "'",
	} {
		if have != want {
			t.Errorf("%s, want %s", have, want)
		}
	}
	for _, object := range append(objects, byPolicy...) {
		if text, err := object.MarshalJSON(); err != nil || strings.Contains(string(text), ":latest") {
			t.Errorf("an image of ours is left in %s %s: %v", object.GetKind(), object.GetName(), err)
		}
	}
}

// TestComponents: those that give a flag give it to whoever has it, in each overlay.
func TestComponents(t *testing.T) {
	at, err := filepath.Abs(manifest(""))
	if err != nil {
		t.Fatal(err)
	}
	for _, overlay := range []string{"both", "node-wide", "injection"} {
		dir := t.TempDir()
		up, err := filepath.Rel(dir, at)
		if err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprintf("resources: [%[1]s/%[2]s]\ncomponents: [%[1]s/components/allow-dns, %[1]s/components/always-pull]\n", up, overlay)
		if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		objects := mustBuild(t, dir)
		seen := 0
		for _, w := range []struct {
			kind, name string
			flags      map[string]string
		}{
			{"DaemonSet", "iam4kube-ip2service", map[string]string{"--allow-dns": "allow-dns"}},
			{"Deployment", "iam4kube-webhook", map[string]string{"--allow-dns": "allow-dns", "--init-image-pull-policy=Always": "init-image-pull-policy"}},
		} {
			if !slices.ContainsFunc(objects, func(o *unstructured.Unstructured) bool { return o.GetKind() == w.kind && o.GetName() == w.name }) {
				continue
			}
			seen++
			template := appsv1.Deployment{}
			if w.kind == "DaemonSet" {
				template.Spec.Template = find[appsv1.DaemonSet](t, objects, w.kind, w.name).Spec.Template
			} else {
				template = *find[appsv1.Deployment](t, objects, w.kind, w.name)
			}
			container := template.Spec.Template.Spec.Containers[0]
			for flag, name := range w.flags {
				if !slices.Contains(container.Args, flag) {
					t.Errorf("%s: %s has no %s: %q", overlay, w.name, flag, container.Args)
				}
				bare := withImage(container, strings.TrimPrefix(w.name, "iam4kube-"))
				bare.Args = nil
				value(t, bare, name) // the program has it
			}
		}
		if want := map[string]int{"both": 2}[overlay]; seen != max(want, 1) {
			t.Errorf("%s: %d of them", overlay, seen)
		}
	}
}

// TestTokenAddresses: the component, or token, which has it and the webhook's part, leads the same addresses on nodes and in pods, the metadata
// service's among them, and on nodes what the host sends.
func TestTokenAddresses(t *testing.T) {
	addresses := "169.254.169.254 fd00:ec2::254 169.254.170.2 169.254.170.23 fd00:ec2::23"
	for overlay, want := range map[string]int{"both": 2, "node-wide": 1, "injection": 1} {
		seen, component := 0, "token"
		if overlay == "node-wide" {
			component = "token-addresses"
		}
		objects := mustBuild(t, withComponents(t, overlay, component, "allow-dns"))
		asked := slices.ContainsFunc(objects, func(o *unstructured.Unstructured) bool {
			return o.GetKind() == "MutatingWebhookConfiguration" && o.GetName() == "iam4kube-webhook-token"
		})
		if asked != (component == "token") {
			t.Errorf("%s: the webhook is asked for tokens: %t", overlay, asked)
		}
		if err := apply(t.Context(), objects, metav1.DryRunAll); err != nil {
			t.Fatalf("%s: %v", overlay, err)
		}
		for _, w := range workloads(t, objects) {
			if w.name != "iam4kube-ip2service" && w.name != "iam4kube-webhook" {
				continue
			}
			seen++
			container := w.template.Spec.Containers[0]
			var led []string
			for _, arg := range container.Args {
				if a, is := strings.CutPrefix(arg, "--intercept-ip="); is {
					led = append(led, a)
				}
			}
			if have := strings.Join(led, " "); have != addresses {
				t.Errorf("%s: %s leads %s", overlay, w.name, have)
			}
			if onNode := w.name == "iam4kube-ip2service"; slices.Contains(container.Args, "--intercept-host") != onNode {
				t.Errorf("%s: %s has %q", overlay, w.name, container.Args)
			}
			bare := withImage(container, strings.TrimPrefix(w.name, "iam4kube-"))
			bare.Args = nil
			value(t, bare, "intercept-ip") // the program has it
		}
		if seen != want {
			t.Errorf("%s: %d of them", overlay, seen)
		}
	}
}

// TestTokensAlone: nothing but the addresses of container credentials is led or guarded on nodes,
// also for the host, and the webhook is asked for tokens and nothing else.
func TestTokensAlone(t *testing.T) {
	objects := mustBuild(t, manifest("tokens-alone"))
	container := find[appsv1.DaemonSet](t, objects, "DaemonSet", "iam4kube-ip2service").Spec.Template.Spec.Containers[0]
	want := []string{
		"--mode=node", "--aux-listen-on=:9090", "--keep-metadata-service",
		"--intercept-ip=169.254.170.2", "--intercept-ip=169.254.170.23", "--intercept-ip=fd00:ec2::23", "--intercept-host",
	}
	if !slices.Equal(container.Args, want) {
		t.Errorf("%q, want %q", container.Args, want)
	}
	bare := withImage(container, "ip2service")
	bare.Args = nil
	value(t, bare, "keep-metadata-service") // the program has it
	var asked []string
	for _, object := range objects {
		if object.GetKind() == "MutatingWebhookConfiguration" {
			asked = append(asked, object.GetName())
		}
	}
	if !slices.Equal(asked, []string{"iam4kube-webhook-token"}) {
		t.Errorf("asked: %q", asked)
	}
}

func TestOnlyTheStartupTaintNeedsRightsOnNodes(t *testing.T) {
	for overlay, want := range map[string]bool{"both": false, "startup-taint": true} {
		objects := mustBuild(t, manifest(overlay))
		if overlay == "both" {
			// Of the other tests.
			_ = cp.Client.RbacV1().ClusterRoleBindings().Delete(t.Context(), "iam4kube-ip2service-startup-taint", metav1.DeleteOptions{})
		}
		if err := apply(t.Context(), objects); err != nil {
			t.Fatal(err)
		}
		args := find[appsv1.DaemonSet](t, objects, "DaemonSet", "iam4kube-ip2service").Spec.Template.Spec.Containers[0].Args
		// As in the policies.
		const flag = "--startup-taint=" + startupTaint
		if slices.Contains(args, flag) != want {
			t.Errorf("%s: %q, want %s: %v", overlay, args, flag, want)
		}
		for _, verb := range []string{"get", "patch"} {
			eventually(t, func() error {
				review, err := cp.Client.AuthorizationV1().SubjectAccessReviews().Create(t.Context(), &authorizationv1.SubjectAccessReview{
					Spec: authorizationv1.SubjectAccessReviewSpec{
						User:               "system:serviceaccount:iam4kube:iam4kube-ip2service",
						ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: verb, Resource: "nodes"},
					},
				}, metav1.CreateOptions{})
				if err == nil && review.Status.Allowed != want {
					err = fmt.Errorf("%s: %s nodes: %v", overlay, verb, review.Status.Allowed)
				}
				return err
			})
		}
	}
}

// find is the object of this kind and name.
func find[T any](t testing.TB, objects []*unstructured.Unstructured, kind, name string) *T {
	t.Helper()
	for _, object := range objects {
		if object.GetKind() == kind && object.GetName() == name {
			typed := new(T)
			if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(object.Object, typed, true); err != nil {
				t.Fatal(err)
			}
			return typed
		}
	}
	t.Fatalf("no %s %s", kind, name)
	return nil
}

// workload is a Deployment or a DaemonSet.
type workload struct {
	name     string
	template corev1.PodTemplateSpec
}

func workloads(t testing.TB, objects []*unstructured.Unstructured) (all []workload) {
	t.Helper()
	for _, object := range objects {
		switch name := object.GetName(); object.GetKind() {
		case "Deployment":
			all = append(all, workload{name, find[appsv1.Deployment](t, objects, "Deployment", name).Spec.Template})
		case "DaemonSet":
			all = append(all, workload{name, find[appsv1.DaemonSet](t, objects, "DaemonSet", name).Spec.Template})
		}
	}
	return all
}
