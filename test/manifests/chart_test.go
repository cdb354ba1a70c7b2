package manifests

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/iam4kube/iam4kube/test/checkout"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/docs"
)

// helms is Helm 3 and Helm 4.
func helms(t *testing.T) []string {
	t.Helper()
	programs, err := controlplane.BuildHelm(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return programs
}

// helm runs Helm with folders of the test's own, and returns its two outputs.
func helm(t *testing.T, program string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, said bytes.Buffer
	cmd := exec.CommandContext(t.Context(), program, args...)
	home := t.TempDir()
	cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home)
	cmd.Stdout, cmd.Stderr = &out, &said
	err = cmd.Run()
	return out.String(), said.String(), err
}

func chart() string { return checkout.Path("charts", "iam4kube") }

// rendered is what the chart makes of values, given as Helm's arguments.
func rendered(t *testing.T, program string, values ...string) []*unstructured.Unstructured {
	t.Helper()
	args := append([]string{"template", "iam4kube", chart(), "--kube-version", "1.37"}, values...)
	stdout, stderr, err := helm(t, program, args...)
	if err != nil {
		t.Fatalf("helm %q: %v: %s", args, err, stderr)
	}
	var objects []*unstructured.Unstructured
	for decoder := yaml.NewYAMLOrJSONDecoder(strings.NewReader(stdout), 4096); ; {
		object := &unstructured.Unstructured{}
		if err := decoder.Decode(&object.Object); errors.Is(err, io.EOF) {
			return objects
		} else if err != nil {
			t.Fatal(err)
		}
		if object.Object != nil {
			objects = append(objects, object)
		}
	}
}

func list(t *testing.T, names []string) string {
	t.Helper()
	text, err := json.Marshal(append([]string{}, names...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

var generated = regexp.MustCompile(`^(iam4kube-server)-[a-z0-9]{10}$`)

// byName has objects by kind and name, without what has to differ: what Helm writes
// on each object, which is asked for, and the hash in the name of a kustomization's ConfigMap.
func byName(t *testing.T, objects []*unstructured.Unstructured, byHelm bool) map[string]any {
	t.Helper()
	all := map[string]any{}
	for _, object := range objects {
		if object.GetKind() == "PodTemplate" { // where a kustomization has the init container's image
			continue
		}
		name := object.GetKind() + " " + generated.ReplaceAllString(object.GetName(), "$1")
		if byHelm {
			withoutHelms(t, name, object)
		}
		text, err := json.Marshal(object.Object)
		if err != nil {
			t.Fatal(err)
		}
		text = regexp.MustCompile(`"name":"iam4kube-server-[a-z0-9]{10}"`).ReplaceAll(text, []byte(`"name":"iam4kube-server"`))
		var plain any
		if err := json.Unmarshal(text, &plain); err != nil {
			t.Fatal(err)
		}
		if all[name] != nil {
			t.Errorf("%s twice", name)
		}
		all[name] = plain
	}
	return all
}

func withoutHelms(t *testing.T, name string, object *unstructured.Unstructured) {
	t.Helper()
	labels, annotations := object.GetLabels(), object.GetAnnotations()
	for _, label := range []string{"app.kubernetes.io/managed-by", "app.kubernetes.io/instance", "helm.sh/chart"} {
		if labels[label] == "" && name != "ConfigMap iam4kube-server" {
			t.Errorf("%s has no label %s", name, label)
		}
		delete(labels, label)
	}
	const policy = "helm.sh/resource-policy"
	stays := slices.Contains([]string{"Namespace iam4kube", "Service iam4kube", "ResourceQuota iam4kube-critical"}, name)
	if (annotations[policy] == "keep") != stays {
		t.Errorf("%s stays after helm uninstall: %t", name, !stays)
	}
	delete(annotations, policy)
	object.SetLabels(none(labels))
	object.SetAnnotations(none(annotations))
	if name == "Deployment iam4kube-server" {
		of := []string{"spec", "template", "metadata", "annotations"}
		pods, _, err := unstructured.NestedStringMap(object.Object, of...)
		if err != nil || len(pods["checksum/config"]) != 64 {
			t.Errorf("%s does not follow its ConfigMap: %v, %v", name, pods, err)
		}
		if unstructured.RemoveNestedField(object.Object, append(of, "checksum/config")...); len(pods) == 1 {
			unstructured.RemoveNestedField(object.Object, of...)
		}
	}
}

// none is nil for an empty map, which removes the field.
func none(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	return m
}

// folders are those of manifests/ or of a folder in it that hold a kustomization.
func folders(t *testing.T, of string, but ...string) (names []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(manifest(of), "*", "kustomization.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if name := filepath.Base(filepath.Dir(file)); !slices.Contains(but, name) {
			names = append(names, name)
		}
	}
	return names
}

// TestChartIsTheKustomization: each overlay and each component of manifests/ is a value of the
// chart, and what Helm makes of it is what kustomize makes of them, object by object.
func TestChartIsTheKustomization(t *testing.T) {
	// Parts of all overlays, a transformer, and what only the demo has.
	all := folders(t, "", "base", "namespace", "init-image", "demo")
	components := folders(t, "components", "images")
	schema, err := os.ReadFile(filepath.Join(chart(), "values.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	type release struct {
		overlay    string
		components []string
	}
	var releases []release
	for _, overlay := range all {
		if !strings.Contains(string(schema), `"`+overlay+`"`) {
			t.Errorf("the chart has no overlay %s of manifests/: add its name to values.schema.json and values.yaml", overlay)
			continue
		}
		releases = append(releases, release{overlay: overlay})
	}
	for _, component := range components {
		for _, overlay := range []string{"both", "node-wide", "injection"} {
			if component != "token" || overlay != "node-wide" {
				releases = append(releases, release{overlay, []string{component}})
			}
		}
		text, err := os.ReadFile(manifest(filepath.Join("components", component, "kustomization.yaml")))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "iam4kube-cleanup") {
			releases = append(releases, release{"uninstall", []string{component}})
		}
	}
	// The first is patched by others. The second is in another that is there.
	others := slices.DeleteFunc(slices.Clone(components), func(name string) bool { return name == "injection-policy" || name == "token-addresses" })
	releases = append(releases, release{"both", append([]string{"injection-policy"}, others...)})
	uninstall := byName(t, append(mustBuild(t, manifest("namespace")), mustBuild(t, manifest("uninstall"))...), false)
	for _, program := range helms(t) {
		for _, r := range releases {
			t.Run(fmt.Sprintf("%s/%s%v", filepath.Base(program), r.overlay, r.components), func(t *testing.T) {
				values := []string{"--set", "overlay=" + r.overlay, "--set-json", "components=" + list(t, r.components)}
				want := byName(t, append(mustBuild(t, manifest("namespace")), mustBuild(t, withComponents(t, r.overlay, r.components...))...), false)
				if r.overlay == "uninstall" { // no more than the clean-up, as components patch it
					maps.DeleteFunc(want, func(name string, _ any) bool { return uninstall[name] == nil })
				}
				have := byName(t, rendered(t, program, values...), true)
				for _, name := range slices.Sorted(maps.Keys(want)) {
					if have[name] == nil {
						t.Errorf("the chart has no %s", name)
					} else if diff := cmp.Diff(want[name], have[name]); diff != "" {
						t.Errorf("%s: the chart's templates read kustomizations, but not what is different here: - kustomize, + Helm\n%s", name, diff)
					}
					delete(have, name)
				}
				for name := range have {
					t.Errorf("the kustomization has no %s", name)
				}
			})
		}
	}
}

// TestChartInjectsByPolicy: one value is the components that stand for the webhook's parts.
func TestChartInjectsByPolicy(t *testing.T) {
	for _, program := range helms(t) {
		for _, tc := range []struct {
			overlay       string
			values, means []string
		}{
			{"both", nil, []string{"injection-policy"}},
			{"injection", []string{"token", "allow-dns"}, []string{"injection-policy", "token", "token-policy", "allow-dns"}},
			{"tokens-alone", nil, []string{"token-policy"}},
			{"node-wide", nil, nil},
		} {
			t.Run(filepath.Base(program)+"/"+tc.overlay, func(t *testing.T) {
				have := byName(t, rendered(t, program, "--set", "overlay="+tc.overlay, "--set-json", "components="+list(t, tc.values), "--set", "injection.policy=true"), true)
				want := byName(t, append(mustBuild(t, manifest("namespace")), mustBuild(t, withComponents(t, tc.overlay, tc.means...))...), false)
				if diff := cmp.Diff(want, have); diff != "" {
					t.Errorf("- kustomize, + Helm\n%s", diff)
				}
				for name := range have {
					if strings.Contains(name, "Certificate") || strings.Contains(name, "Issuer") || strings.HasPrefix(name, "MutatingWebhook") || name == "Deployment iam4kube-webhook" {
						t.Errorf("there is %s", name)
					}
				}
			})
		}
		// Named as components, the first takes the webhook away that tokens would come from.
		have := byName(t, rendered(t, program, "--set-json", `components=["token", "injection-policy"]`), true)
		want := byName(t, append(mustBuild(t, manifest("namespace")), mustBuild(t, withComponents(t, "both", "injection-policy", "token", "token-policy"))...), false)
		if diff := cmp.Diff(want, have); diff != "" {
			t.Errorf("%s: - kustomize, + Helm\n%s", filepath.Base(program), diff)
		}
		if _, stderr, err := helm(t, program, "template", "iam4kube", chart(), "--kube-version", "1.35", "--set", "injection.policy=true"); err == nil || !strings.Contains(stderr, "need Kubernetes 1.36 or later, this is v1.35") {
			t.Errorf("%s: on Kubernetes 1.35: %v: %s", filepath.Base(program), err, stderr)
		}
	}
}

// TestDocumentedValuesAreTheDocumentedKustomization: the two ways of install.md come to the same.
func TestDocumentedValuesAreTheDocumentedKustomization(t *testing.T) {
	var values string
	for _, block := range docs.Blocks(t, "install.md", "yaml") {
		if strings.HasPrefix(block, "# values.yaml\n") {
			values = block
		}
	}
	path := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(path, []byte(values), 0o600); err != nil || values == "" {
		t.Fatalf("%q: %v", values, err)
	}
	want := byName(t, append(mustBuild(t, manifest("namespace")), documented(t, "install.md")[0]...), false)
	for _, program := range helms(t) {
		have := byName(t, rendered(t, program, "-f", path), true)
		if diff := cmp.Diff(want, have); diff != "" {
			t.Errorf("%s: - kustomize, + Helm\n%s", filepath.Base(program), diff)
		}
	}
}

// TestChartCarriesWhatAnIdentityNeeds: the three kustomizations of install.md for other
// identities of the server, in the chart's values.
func TestChartCarriesWhatAnIdentityNeeds(t *testing.T) {
	kustomizations := documented(t, "install.md")
	for name, has := range map[string]string{"IAM Roles Anywhere": "aws_signing_helper", "web identity": "AWS_WEB_IDENTITY_TOKEN_FILE", "keys": "secretRef"} {
		t.Run(name, func(t *testing.T) {
			i := slices.IndexFunc(kustomizations, func(objects []*unstructured.Unstructured) bool {
				return slices.ContainsFunc(objects, func(o *unstructured.Unstructured) bool { return strings.Contains(fmt.Sprint(o.Object), has) })
			})
			if i < 0 {
				t.Fatalf("no kustomization with %s", has)
			}
			want := byName(t, append(mustBuild(t, manifest("namespace")), kustomizations[i]...), false)
			pod, _, _ := unstructured.NestedMap(want["Deployment iam4kube-server"].(map[string]any), "spec", "template", "spec")
			container := pod["containers"].([]any)[0].(map[string]any)
			server := map[string]any{
				"env": want["ConfigMap iam4kube-server"].(map[string]any)["data"], "envFrom": container["envFrom"].([]any)[1:],
			}
			for field, value := range map[string]any{"volumeMounts": container["volumeMounts"], "volumes": pod["volumes"], "initContainers": pod["initContainers"]} {
				if value != nil {
					server[field] = value
				}
			}
			values, err := json.Marshal(map[string]any{"overlay": "no-dedicated-nodes", "server": server})
			path := filepath.Join(t.TempDir(), "values.json")
			if err := errors.Join(err, os.WriteFile(path, values, 0o600)); err != nil {
				t.Fatal(err)
			}
			for _, program := range helms(t) {
				if diff := cmp.Diff(want, byName(t, rendered(t, program, "-f", path), true)); diff != "" {
					t.Errorf("%s: - kustomize, + Helm\n%s", filepath.Base(program), diff)
				}
			}
		})
	}
}

// TestChartByDigest: an image by its digest wherever it is used, and both init images of an upgrade.
func TestChartByDigest(t *testing.T) {
	digest := func(i int) string { return fmt.Sprintf("sha256:%064d", i) }
	values := []string{"--set", "image.registry=registry.example:5000/our", "--set", "image.tag=v1.2.3", "--set", "admittedInitImages={registry.example/old:v1}"}
	for i, name := range []string{"server", "webhook", "ip2service", "ip2service-init"} {
		values = append(values, "--set", "image.digests."+name+"="+digest(i))
	}
	for _, program := range helms(t) {
		objects := rendered(t, program, values...)
		byPolicy := rendered(t, program, append(slices.Clone(values), "--set", "injection.policy=true")...)
		image := func(name string, i int) string { return "registry.example:5000/our/" + name + ":v1.2.3@" + digest(i) }
		webhook := find[appsv1.Deployment](t, objects, "Deployment", "iam4kube-webhook").Spec.Template.Spec.Containers[0]
		for have, want := range map[string]string{
			find[appsv1.Deployment](t, objects, "Deployment", "iam4kube-server").Spec.Template.Spec.Containers[0].Image: image("server", 0),
			webhook.Image: image("webhook", 1),
			find[appsv1.DaemonSet](t, objects, "DaemonSet", "iam4kube-ip2service").Spec.Template.Spec.Containers[0].Image: image("ip2service", 2),
			webhook.Args[1]: "--init-image=" + image("ip2service-init", 3),
			find[admissionv1.ValidatingAdmissionPolicy](t, objects, "ValidatingAdmissionPolicy", "iam4kube-net-admin").Spec.Variables[0].Expression: "['" +
				image("ip2service-init", 3) + "', 'registry.example/old:v1']",
			find[admissionv1.MutatingAdmissionPolicy](t, byPolicy, "MutatingAdmissionPolicy", "iam4kube-inject").Spec.Variables[0].Expression: "'" + image("ip2service-init", 3) + "'",
		} {
			if have != want {
				t.Errorf("%s, want %s", have, want)
			}
		}
	}
}

func TestChartRefusesWrongValues(t *testing.T) {
	for _, program := range helms(t) {
		if stdout, stderr, err := helm(t, program, "lint", "--strict", chart()); err != nil {
			t.Errorf("%v: %s%s", err, stdout, stderr)
		}
		for set, says := range map[string]string{
			"overlay=node":                            "/overlay': value must be one of 'both', 'node-wide'",
			"components={service-adresses}":           `no "service-adresses", there are allow-dns, `,
			"components={images}":                     `no "images"`,
			"overlays=both":                           "'overlays' not allowed",
			"server.environment.AWS_REGION=eu-west-1": "'environment' not allowed",
			"server.args={session-duration=1h}":       "/server/args/0'",
			"server.replicas=0":                       "/server/replicas'",
			"server.serviceAccountAnnotations.a=1":    "/server/serviceAccountAnnotations/a': got number, want string",
			"injection.policy=yes":                    "/injection/policy': got string, want boolean",
			"image.registry=registry.example/":        "/image/registry'",
			"image.digests.server=latest":             "/image/digests/server'",
			"image.digests.client=":                   "'client' not allowed",
			"exemptNamespaces.serverNodes={A b}":      "/exemptNamespaces/serverNodes/0'",
			"admittedInitImages={a'b}":                "/admittedInitImages/0'",
			"overlay=node-wide,components={token}":    "token needs the webhook",
		} {
			if _, stderr, err := helm(t, program, "template", "iam4kube", chart(), "--set", set); err == nil || !strings.Contains(stderr, says) {
				t.Errorf("%s --set %s: %v, want to hear of %s: %s", filepath.Base(program), set, err, says, stderr)
			}
		}
		if _, stderr, err := helm(t, program, "template", "iam4kube", chart(), "--namespace", own); err == nil || !strings.Contains(stderr, "namespace.create=false") {
			t.Errorf("%s: a release in the namespace that it creates: %v: %s", filepath.Base(program), err, stderr)
		}
	}
}
