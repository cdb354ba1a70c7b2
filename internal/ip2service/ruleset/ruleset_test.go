package ruleset

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write testdata/*.nft anew")

// golden is a testdata/*.json: the routes in, whose rules are in the .nft beside it. The
// tests of test/rules bring the same files into a kernel.
type golden struct {
	Hooks string
	Routes
}

func (g golden) routes(t *testing.T) Routes {
	t.Helper()
	hooks, ok := map[string]Hooks{"node": Node, "pod": Pod}[g.Hooks]
	if !ok {
		t.Fatalf("hooks %q", g.Hooks)
	}
	g.Routes.Hooks = hooks
	return g.Routes
}

func TestRulesAreTheGoldenFiles(t *testing.T) {
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) < 20 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) {
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var g golden
			if err := json.Unmarshal(content, &g); err != nil {
				t.Fatal(err)
			}
			var text strings.Builder
			for _, table := range Build(g.routes(t)) {
				text.WriteString(table.String())
			}
			nft := strings.TrimSuffix(file, ".json") + ".nft"
			if *update {
				if err := os.WriteFile(nft, []byte(text.String()), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(nft)
			if err != nil {
				t.Fatal(err)
			}
			if text.String() != string(want) {
				t.Errorf("the rules are not those of %s (go test -update writes it):\n%s", nft, text.String())
			}
		})
	}
}
