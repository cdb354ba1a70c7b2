// Package rules tests that the kernel does what the packages ruleset and nftables mean:
// text for text, whatever was there before, and packet for packet. There is no API
// server here: the ways from an EndpointSlice to a rule are tested in test/routing.
package rules

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iam4kube/iam4kube/internal/ip2service/nftables"
	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
	"github.com/iam4kube/iam4kube/test/netns"
	"github.com/iam4kube/iam4kube/test/node"
)

func TestMain(m *testing.M) { netns.Main(m, nil) }

var kernel nftables.Kernel

// golden is one of the golden files of package ruleset: routes, and the text of each table.
type golden struct {
	name   string
	routes routes.Routes
	texts  map[routes.Family]string
}

func (g golden) text() string { return g.texts[routes.IPv4] + g.texts[routes.IPv6] }

// goldens are all of them. The texts are read from the files, not built: what Build makes
// of the routes is the golden files' own test.
func goldens(t *testing.T) (all []golden) {
	t.Helper()
	const folder = "../../internal/ip2service/ruleset/testdata/"
	files, err := filepath.Glob(folder + "*.json")
	if err != nil || len(files) < 20 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		all = append(all, readGolden(t, strings.TrimSuffix(file, ".json")))
	}
	return all
}

func goldenOf(t *testing.T, name string) golden {
	t.Helper()
	return readGolden(t, "../../internal/ip2service/ruleset/testdata/"+name)
}

func readGolden(t *testing.T, path string) golden {
	t.Helper()
	content, err := os.ReadFile(path + ".json")
	if err != nil {
		t.Fatal(err)
	}
	var want routes.Routes
	if err := json.Unmarshal(content, &want); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path + ".nft")
	if err != nil {
		t.Fatal(err)
	}
	ipv4, ipv6, _ := strings.Cut(string(text), "table ip6 ")
	return golden{
		filepath.Base(path), want,
		map[routes.Family]string{routes.IPv4: ipv4, routes.IPv6: "table ip6 " + ipv6},
	}
}

// noTables removes all tables, now and at the end of the test.
func noTables(t *testing.T) {
	t.Helper()
	node.NFT(t, "flush", "ruleset")
	t.Cleanup(func() { node.NFT(t, "flush", "ruleset") })
}

// wantSync brings the routes into the kernel and checks what Sync says.
func wantSync(t *testing.T, want routes.Routes, wantChanged bool) {
	t.Helper()
	changed, err := kernel.Sync(want)
	if err != nil || changed != wantChanged {
		t.Fatalf("Sync: changed %v, %v, want %v", changed, err, wantChanged)
	}
}

// list is all tables as nft prints them, in the order in which they were made.
func list(t *testing.T) string {
	t.Helper()
	return node.NFT(t, "--numeric-priority", "list", "ruleset")
}

// wantText checks that the kernel has these rules and no others. The table of one family may
// have been made anew, and so be the last one.
func wantText(t *testing.T, want golden) {
	t.Helper()
	if have := list(t); have != want.text() && have != want.texts[routes.IPv6]+want.texts[routes.IPv4] {
		t.Fatalf("the kernel's rules are not those of %s:\n%s", want.name, have)
	}
}
