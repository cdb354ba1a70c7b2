package manifests

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sigs.k8s.io/kustomize/api/types"
	"sigs.k8s.io/yaml"

	"github.com/iam4kube/iam4kube/test/docs"
)

// operation is one of a JSON patch.
type operation struct {
	Op, Path string
	Value    any
}

// operations of a patch; a strategic merge patch has none.
func operations(t *testing.T, patch string) (all []operation) {
	t.Helper()
	var parsed any
	if err := yaml.Unmarshal([]byte(patch), &parsed); err != nil {
		t.Fatal(err)
	}
	if _, isList := parsed.([]any); isList {
		if err := yaml.UnmarshalStrict([]byte(patch), &all); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// shippedPatches are those of the guides for users to copy and of manifests/components.
func shippedPatches(t *testing.T) (all []types.Patch) {
	t.Helper()
	var kustomizations []string
	byHand := regexp.MustCompile(`(?s)kubectl -n iam4kube patch (deployment|daemonset) (\S+) --type=json \\\s+-p '(\[.*?\])'`)
	for _, page := range append(slices.Clone(guides), "troubleshooting.md") {
		kustomizations = append(kustomizations, docs.Blocks(t, page, "yaml")...)
		for _, block := range docs.Blocks(t, page, "sh") {
			for _, m := range byHand.FindAllStringSubmatch(block, -1) {
				target := &types.Selector{}
				target.Kind, target.Name = map[string]string{"deployment": "Deployment", "daemonset": "DaemonSet"}[m[1]], m[2]
				all = append(all, types.Patch{Patch: m[3], Target: target})
			}
		}
	}
	components, err := filepath.Glob(filepath.Join(manifest("components"), "*", "kustomization.yaml"))
	if err != nil || len(all) == 0 || len(components) < 3 {
		t.Fatalf("%d patches by kubectl, components %q: %v", len(all), components, err)
	}
	for _, path := range append(components, filepath.Join(manifest("demo"), "aws", "kustomization.yaml"), filepath.Join(manifest("demo"), "web-identity", "kustomization.yaml")) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		kustomizations = append(kustomizations, string(text))
	}
	for _, text := range kustomizations {
		var k types.Kustomization
		if err := yaml.Unmarshal([]byte(text), &k); err != nil || k.Kind != types.KustomizationKind && k.Kind != types.ComponentKind {
			continue
		}
		for _, p := range k.Patches {
			if !slices.ContainsFunc(all, func(other types.Patch) bool { return reflect.DeepEqual(p, other) }) {
				all = append(all, p)
			}
		}
	}
	return all
}

// TestShippedPatchesAddUp: whoever takes two has both. An operation that adds a whole list
// replaces what another has put there, and nothing tells of it.
func TestShippedPatchesAddUp(t *testing.T) {
	var together []types.Patch
	for _, p := range shippedPatches(t) {
		if strings.Contains(p.Patch, "$patch: delete") { // leaves a part out, and the patches for it with it
			continue
		}
		together = append(together, p)
		for _, o := range operations(t, p.Patch) {
			// A rule of a NetworkPolicy that names nobody is for all: its first peers are a list.
			if _, isList := o.Value.([]any); isList && o.Op == "add" && p.Target.Kind != "NetworkPolicy" {
				t.Errorf("%s: a list as a whole, append its elements to %s/-", p.Target.Name, o.Path)
			}
		}
	}
	all, err := json.Marshal(types.Kustomization{Resources: []string{"../manifests/both"}, Patches: together})
	if err != nil {
		t.Fatal(err)
	}
	// Beside manifests/, because kustomize takes no absolute paths.
	dir, err := os.MkdirTemp(manifest(".."), ".patches-") //nolint:usetesting // in the checkout
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), all, 0o600); err != nil {
		t.Fatal(err)
	}
	objects := mustBuild(t, dir)
	appended := 0
	for _, p := range together {
		for _, o := range operations(t, p.Patch) {
			list, appends := strings.CutSuffix(o.Path, "/-")
			if !appends {
				continue
			}
			for _, object := range objects {
				if object.GetKind() != p.Target.Kind || object.GetName() != p.Target.Name {
					continue
				}
				appended++
				if have, _ := at(object.Object, list).([]any); !slices.ContainsFunc(have, func(v any) bool { return reflect.DeepEqual(v, o.Value) }) {
					t.Errorf("%s: %v is lost in %v", p.Target.Name, o.Value, have)
				}
			}
		}
	}
	if appended < 5 {
		t.Errorf("%d values are appended", appended)
	}
}

// at is what a JSON pointer leads to, nil if to nothing.
func at(value any, pointer string) any {
	for key := range strings.SplitSeq(strings.TrimPrefix(pointer, "/"), "/") {
		key = strings.NewReplacer("~1", "/", "~0", "~").Replace(key)
		switch v := value.(type) {
		case map[string]any:
			value = v[key]
		case []any:
			i, err := strconv.Atoi(key)
			if err != nil || i >= len(v) {
				return nil
			}
			value = v[i]
		default:
			return nil
		}
	}
	return value
}
