package manifests

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/iam4kube/iam4kube/internal/server/issuer"
	"github.com/iam4kube/iam4kube/test/docs"
)

// guides are the pages with kustomizations and policies for users to copy.
var guides = []string{"install.md", "operations.md", "migrate.md", "security.md", "demo.md", "server.md"}

// documented builds the kustomizations of a page, in the place that the page names: beside a
// clone of the repository.
func documented(t *testing.T, page string) (all [][]*unstructured.Unstructured) {
	t.Helper()
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range docs.Blocks(t, page, "yaml") {
		if !strings.Contains(block, "kind: Kustomization\n") {
			continue
		}
		dir := t.TempDir()
		deploy := filepath.Join(dir, "deploy")
		if err := os.Symlink(root, filepath.Join(dir, "iam4kube")); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(deploy, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(deploy, "kustomization.yaml"), []byte(block), 0o600); err != nil {
			t.Fatal(err)
		}
		all = append(all, mustBuild(t, deploy))
	}
	return all
}

// TestDocumentedKustomizationsApply: as dry runs, because the objects are those of other tests.
func TestDocumentedKustomizationsApply(t *testing.T) {
	for _, page := range guides {
		built := documented(t, page)
		if len(built) == 0 {
			t.Errorf("%s: no kustomization", page)
		}
		for i, objects := range built {
			t.Run(fmt.Sprint(page, i), func(t *testing.T) {
				for _, o := range objects {
					// One that gets back the address that it had is not there any more.
					if address, _, _ := unstructured.NestedString(o.Object, "spec", "clusterIP"); address != "" && address != "None" {
						o.SetName(o.GetName() + "-restored")
					}
				}
				if err := apply(t.Context(), objects, metav1.DryRunAll); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestTheDocumentedOverlay: the first one has everything in it.
func TestTheDocumentedOverlay(t *testing.T) {
	objects := documented(t, "install.md")[0]
	container := find[appsv1.Deployment](t, objects, "Deployment", "iam4kube-server").Spec.Template.Spec.Containers[0]
	if environment := find[corev1.ConfigMap](t, objects, "ConfigMap", container.EnvFrom[0].ConfigMapRef.Name).Data; environment["AWS_REGION"] != "eu-central-1" {
		t.Errorf("environment %v", environment)
	}
	if region, zone := value(t, withImage(container, "server"), "region"), value(t, withImage(container, "server"), "availability-zone"); region != "eu-central-1" || zone != "eu-central-1a" {
		t.Errorf("--region %s, --availability-zone %s", region, zone)
	}
	binding := find[admissionv1.ValidatingAdmissionPolicyBinding](t, objects, "ValidatingAdmissionPolicyBinding", "iam4kube-server-nodes")
	if namespaces := binding.Spec.MatchResources.NamespaceSelector.MatchExpressions[0].Values; !slices.Equal(namespaces, []string{"kube-system", "iam4kube", "calico-system"}) {
		t.Errorf("exempt are %q", namespaces)
	}
	for _, object := range objects {
		if text, err := object.MarshalJSON(); err != nil || strings.Contains(string(text), ":latest") {
			t.Errorf("an image of ours is left in %s %s: %v", object.GetKind(), object.GetName(), err)
		}
	}
}

// TestTheDocumentedServerWithoutAnAWSKey: the component and the issuer's URL add up, the program
// knows both flags, and it may read the key.
func TestTheDocumentedServerWithoutAnAWSKey(t *testing.T) {
	for _, objects := range documented(t, "install.md") {
		container := withImage(find[appsv1.Deployment](t, objects, "Deployment", "iam4kube-server").Spec.Template.Spec.Containers[0], "server")
		if value(t, container, "sts-operation") == "AssumeRole" {
			continue
		}
		if url := value(t, container, "issuer"); issuer.ValidateURL(url) != nil {
			t.Errorf("--issuer %q", url)
		}
		rights := find[rbacv1.Role](t, objects, "Role", "iam4kube-server-issuer").Rules
		if len(rights) != 1 || !slices.Equal(rights[0].ResourceNames, []string{issuer.SecretName}) || slices.Contains(rights[0].Verbs, "update") {
			t.Errorf("rights %+v", rights)
		}
		bare := container
		bare.Args = nil
		value(t, bare, "sts-operation") // the program has them
		value(t, bare, "issuer")
		return
	}
	t.Error("install.md has none")
}

// withImage is the container with the image that `program` knows.
func withImage(c corev1.Container, name string) corev1.Container {
	c.Image = images + name
	return c
}

// TestTheDocumentedUpgrade admits the init image of both versions.
func TestTheDocumentedUpgrade(t *testing.T) {
	for _, objects := range documented(t, "operations.md") {
		for _, object := range objects {
			if object.GetName() != "iam4kube-webhook-init-image" || !strings.Contains(fmt.Sprint(object), "v0.2.0") {
				continue
			}
			policy := find[admissionv1.ValidatingAdmissionPolicy](t, objects, "ValidatingAdmissionPolicy", "iam4kube-net-admin")
			const image = "registry.example/iam4kube/ip2service-init"
			if have, want := policy.Spec.Variables[0].Expression, "['"+image+":v0.2.0', '"+image+":v0.1.0']"; have != want {
				t.Errorf("%s, want %s", have, want)
			}
			webhook := find[appsv1.Deployment](t, objects, "Deployment", "iam4kube-webhook").Spec.Template.Spec.Containers[0]
			if have, want := webhook.Args[1], "--init-image="+image+":v0.2.0"; have != want {
				t.Errorf("%s, want %s", have, want)
			}
			return
		}
	}
	t.Error("no upgrade to v0.2.0")
}

type policy struct {
	Version   string
	Statement []struct {
		Sid       string
		Effect    string
		Principal map[string]string
		Action    any
		Resource  any
		Condition map[string]map[string]any
	}
}

// TestDocumentedPolicies: IAM's grammar in small, and what every trust policy must have that
// admits the server.
func TestDocumentedPolicies(t *testing.T) {
	const server = ":role/iam4kube-server"
	trusts := 0
	for _, page := range append(guides, "roles.md", "../README.md") {
		texts := docs.Blocks(t, page, "json")
		for _, block := range docs.Blocks(t, page, "sh") {
			for _, m := range regexp.MustCompile(`(?ms)^cat > \S+\.json <<EOF\n(.*?)^EOF$`).FindAllStringSubmatch(block, -1) {
				texts = append(texts, m[1])
			}
		}
		for _, text := range texts {
			var p policy
			decoder := json.NewDecoder(strings.NewReader(text))
			if !strings.Contains(text, `"Effect"`) {
				continue
			}
			if !strings.Contains(text, `"Version"`) { // a statement by itself
				decoder = json.NewDecoder(strings.NewReader(`{"Version": "2012-10-17", "Statement": [` + text + `]}`))
			}
			decoder.DisallowUnknownFields()
			if err := decoder.Decode(&p); err != nil {
				t.Errorf("%s: %v:\n%s", page, err, text)
			}
			for _, s := range p.Statement {
				isTrust := s.Principal != nil
				if strings.Contains(fmt.Sprint(s.Resource), ":s3:::") {
					isTrust = false // that of a bucket names both
				}
				if p.Version != "2012-10-17" || s.Effect != "Allow" && s.Effect != "Deny" || s.Action == nil || isTrust == (s.Resource != nil) {
					t.Errorf("%s: not a policy:\n%s", page, text)
				}
				if !strings.HasSuffix(s.Principal["AWS"], server) {
					continue
				}
				trusts++
				if s.Condition["StringEquals"]["sts:RoleSessionName"] == nil && s.Condition["StringLike"]["sts:RoleSessionName"] == nil {
					t.Errorf("%s: trusts the server for every session name:\n%s", page, text)
				}
			}
		}
	}
	if trusts < 4 {
		t.Errorf("%d statements that trust the server", trusts)
	}
}
