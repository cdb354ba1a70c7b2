package rules

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
	"github.com/iam4kube/iam4kube/internal/ip2service/ruleset"
	"github.com/iam4kube/iam4kube/test/node"
)

// Case 10: what `nft list table` prints can be loaded again, and is then the very same.
func TestKernelHasTheRulesOfTheGoldenFiles(t *testing.T) {
	for _, g := range goldens(t) {
		t.Run(g.name, func(t *testing.T) {
			noTables(t)
			wantSync(t, g.routes, true)
			saved := filepath.Join(t.TempDir(), "saved.nft")
			var plain strings.Builder
			for _, family := range routes.Families {
				if have := node.NFT(t, "--numeric-priority", "list", "table", string(family), ruleset.TableName); have != g.texts[family] {
					t.Errorf("the kernel's table is not the golden file's:\n%s", have)
				}
				plain.WriteString(node.NFT(t, "list", "table", string(family), ruleset.TableName))
			}
			wantSync(t, g.routes, false)
			if err := os.WriteFile(saved, []byte(plain.String()), 0o600); err != nil {
				t.Fatal(err)
			}
			node.NFT(t, "-c", "-f", saved)
			node.NFT(t, "flush", "ruleset")
			node.NFT(t, "-f", saved)
			wantSync(t, g.routes, false)
		})
	}
}

// From each golden file to each other one: what was there before leaves no trace.
func TestRulesDoNotDependOnThoseBefore(t *testing.T) {
	noTables(t)
	all := goldens(t)
	for i, one := range all {
		for _, other := range all[i+1:] {
			for _, g := range []golden{one, other} {
				if _, err := kernel.Sync(g.routes); err != nil {
					t.Fatal(err)
				}
				if g.name != "node-unknown" { // its endpoints are those before, as TestEndpointsOfAnEarlierRunStay shows
					wantText(t, g)
				}
			}
		}
	}
}

// Counters go on when rules change, and begin anew with their table.
func TestPacketsAreCountedByFamily(t *testing.T) {
	check := func(want map[routes.Family]routes.Counters) {
		t.Helper()
		if have, err := kernel.Counters(); err != nil || !reflect.DeepEqual(have, want) {
			t.Errorf("%v, %v, want %v", have, err, want)
		}
	}
	noTables(t)
	check(map[routes.Family]routes.Counters{})
	const saved = `table ip6 iam4kube
add counter ip6 iam4kube translated { packets 3 bytes 180 ; }
add counter ip6 iam4kube rejected { packets 5 bytes 300 ; }
table ip iam4kube
add quota ip iam4kube translated { over 7 bytes ; }`
	node.NFT(t, saved)
	check(map[routes.Family]routes.Counters{routes.IPv6: {Translated: 3, Rejected: 5}})
	wantSync(t, goldenOf(t, "node-dual-1").routes, true)
	check(map[routes.Family]routes.Counters{routes.IPv4: {}, routes.IPv6: {}})
}
