package docs

import (
	"slices"
	"strings"
	"testing"

	"github.com/iam4kube/iam4kube/test/checkout"
)

// TestUninstallingIsInOneOrder: the commands of manifests/uninstall, which the end-to-end test
// runs, are those of the guide, where overlays have the user's names.
func TestUninstallingIsInOneOrder(t *testing.T) {
	_, section, _ := strings.Cut(Text(t, "operations.md"), "\n## Uninstalling\n")
	var lines []string
	for line := range strings.Lines(section) {
		lines = append(lines, strings.TrimSpace(line))
	}
	names := strings.NewReplacer("manifests/both", "deploy", "manifests/uninstall", "cleanup")
	commands := 0
	for line := range strings.Lines(read(t, checkout.Path("manifests", "uninstall", "kustomization.yaml"))) {
		command, ok := strings.CutPrefix(line, "#   ")
		if !ok {
			continue
		}
		commands++
		command = names.Replace(strings.TrimSpace(command))
		i := slices.Index(lines, command)
		if i < 0 {
			t.Fatalf("not in the guide, or not behind those before it: %s", command)
		}
		lines = lines[i+1:]
	}
	if commands < 7 {
		t.Errorf("%d commands", commands)
	}
}
