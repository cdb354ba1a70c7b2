package ruleset

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
)

var update = flag.Bool("update", false, "write testdata/*.nft anew")

// A testdata/*.json is routes, whose rules are in the .nft beside it. The tests of
// test/rules bring the same files into a kernel.
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
			var r routes.Routes
			if err := json.Unmarshal(content, &r); err != nil {
				t.Fatal(err)
			}
			var text strings.Builder
			for _, table := range Build(r) {
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
