package rules

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	nft "github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
	"github.com/iam4kube/iam4kube/internal/ip2service/ruleset"
	"github.com/iam4kube/iam4kube/test/node"
)

// instead is a chain of ours with something else about it.
func instead(chain, changed string) string {
	return "flush table ip iam4kube; delete chain ip iam4kube " + chain + "; add chain ip iam4kube " + chain + " " + changed
}

// foreignChanges are what others may do to our tables, as nft commands.
var foreignChanges = map[string]string{
	// Case 8: in place, the kernel answers EOPNOTSUPP to those.
	"guard with another priority":  instead("guard-forward", "{ type filter hook forward priority 0; }"),
	"guard at another hook":        instead("guard-forward", "{ type filter hook output priority -50; }"),
	"guard of another type":        instead("guard-input", "{ type nat hook input priority -50; }"),
	"NAT with another priority":    instead("nat-prerouting", "{ type nat hook prerouting priority -100; }"),
	"NAT at another hook":          instead("nat-prerouting", "{ type nat hook output priority -110; }"),
	"NAT that only filters":        instead("nat-prerouting", "{ type filter hook prerouting priority -110; }"),
	"guard that drops":             "add chain ip iam4kube guard-forward { policy drop; }",
	"guard without a hook":         instead("guard-forward", ""),
	"endpoints with a hook":        instead("endpoints", "{ type filter hook forward priority 0; }"),
	"table dormant":                "add table ip iam4kube { flags dormant; }",
	"chain deleted":                "flush table ip iam4kube; delete chain ip iam4kube live",
	"chain renamed":                "rename chain ip iam4kube live alive",
	"chain instead of ours":        "flush table ip iam4kube; delete chain ip iam4kube live; add chain ip iam4kube more",
	"chain added":                  "add chain ip iam4kube more",
	"base chain added":             "add chain ip iam4kube more { type filter hook forward priority -60; }; add rule ip iam4kube more accept",
	"set added":                    "add set ip iam4kube more { type ipv4_addr; elements = { 10.0.0.1 }; }",
	"map that is used":             "add map ip iam4kube more { type ipv4_addr : verdict; }; add rule ip iam4kube endpoints ip saddr vmap @more",
	"counter added":                "add counter ip iam4kube more",
	"counter deleted":              "flush table ip iam4kube; delete counter ip iam4kube rejected",
	"quota in a counter's place":   "flush table ip iam4kube; delete counter ip iam4kube rejected; add quota ip iam4kube rejected over 1 bytes",
	"rule before ours":             "insert rule ip iam4kube guard-forward accept",
	"rule behind ours":             "add rule ip6 iam4kube endpoints return",
	"rule among ours":              "add rule ip iam4kube live index 1 return",
	"rule with a foreign kind":     "insert rule ip iam4kube guard-forward osf name \"Linux\" accept",
	"rules of one chain gone":      "flush chain ip iam4kube guard-input",
	"rules of all chains gone":     "flush table ip iam4kube; flush table ip6 iam4kube",
	"rules in another order":       "flush chain ip iam4kube live; add rule ip iam4kube live ip daddr 10.0.0.2 tcp dport 8080 accept; add rule ip iam4kube live ip daddr 10.0.0.1 tcp dport 8080 accept; add rule ip iam4kube live ip daddr 10.0.0.3 tcp dport 8080 accept",
	"rule with another address":    "flush chain ip iam4kube live; add rule ip iam4kube live ip daddr 10.0.0.1 tcp dport 8080 accept; add rule ip iam4kube live ip daddr 10.0.0.2 tcp dport 8080 accept; add rule ip iam4kube live ip daddr 10.0.0.4 tcp dport 8080 accept",
	"NAT of another interface":     "flush chain ip iam4kube nat-prerouting; add rule ip iam4kube nat-prerouting iifname != \"l0\" ip daddr 169.254.169.254 tcp dport 80 jump endpoints",
	"one table deleted":            "delete table ip6 iam4kube",
	"both tables deleted":          "delete table ip iam4kube; delete table ip6 iam4kube",
	"everything flushed":           "flush ruleset",
	"table made anew, but empty":   "delete table ip iam4kube; add table ip iam4kube",
	"everything of the table else": "delete table ip iam4kube; add table ip iam4kube; add chain ip iam4kube a; add chain ip iam4kube b; add chain ip iam4kube c; add chain ip iam4kube d; add chain ip iam4kube e; add counter ip iam4kube translated; add counter ip iam4kube rejected",
}

// Whatever others have changed is as it was after one Sync.
func TestForeignChangesArePutRight(t *testing.T) {
	want := goldenOf(t, "node-dual-3")
	for name, change := range foreignChanges {
		t.Run(name, func(t *testing.T) {
			noTables(t)
			wantSync(t, want.routes, true)
			node.NFT(t, change)
			if list(t) == want.text() {
				t.Fatal("nothing was changed")
			}
			wantSync(t, want.routes, true)
			for _, family := range routes.Families { // the order of the tables may be another one
				if have := node.NFT(t, "--numeric-priority", "list", "table", string(family), ruleset.TableName); have != want.texts[family] {
					t.Errorf("the rules were not put right:\n%s", have)
				}
			}
			wantSync(t, want.routes, false)
		})
	}
}

// While the endpoints are not known, those of an earlier run stay, and the guard is put
// right around them.
func TestEndpointsOfAnEarlierRunStay(t *testing.T) {
	unknown, earlier := goldenOf(t, "node-unknown"), goldenOf(t, "node-dual-3")
	t.Run("guard as it was", func(t *testing.T) {
		noTables(t)
		wantSync(t, earlier.routes, true)
		wantSync(t, unknown.routes, false)
		wantText(t, earlier)
	})
	for name, change := range map[string]string{
		"guard with another priority": "flush chain ip iam4kube guard-forward; delete chain ip iam4kube guard-forward; add chain ip iam4kube guard-forward { type filter hook forward priority 0; }",
		"guard deleted":               "flush chain ip iam4kube guard-forward; delete chain ip iam4kube guard-forward",
		"guard without rules":         "flush chain ip iam4kube guard-forward",
		"table dormant":               "add table ip iam4kube { flags dormant; }",
		"set that a rule uses":        "add set ip iam4kube more { type ipv4_addr; }; insert rule ip iam4kube endpoints ip saddr @more return; flush chain ip iam4kube guard-forward",
		"map that a rule uses":        "add map ip iam4kube more { type ipv4_addr : verdict; }; add rule ip iam4kube live ip saddr vmap @more",
		"set that a rule fills":       "add set ip iam4kube more { type ipv4_addr; flags dynamic; }; insert rule ip iam4kube live add @more { ip saddr }",
		"chain that a rule jumps to":  "add chain ip iam4kube more; insert rule ip iam4kube live jump more",
		"object that a rule uses":     "add quota ip iam4kube more over 1 mbytes; insert rule ip iam4kube live quota name more accept",
		"chain of an older version":   "add chain ip iam4kube older; insert rule ip iam4kube guard-forward jump older",
	} {
		t.Run(name, func(t *testing.T) {
			noTables(t)
			wantSync(t, earlier.routes, true)
			node.NFT(t, change)
			wantSync(t, unknown.routes, true)
			for _, family := range routes.Families {
				if have := node.NFT(t, "--numeric-priority", "list", "table", string(family), ruleset.TableName); have != earlier.texts[family] {
					t.Errorf("the guard was not put right around the endpoints:\n%s", have)
				}
			}
		})
	}
	t.Run("one family without endpoints", func(t *testing.T) {
		noTables(t)
		wantSync(t, earlier.routes, true)
		node.NFT(t, "delete table ip6 iam4kube")
		wantSync(t, unknown.routes, true)
		if have := list(t); have != earlier.texts[routes.IPv4]+unknown.texts[routes.IPv6] {
			t.Errorf("want the earlier endpoints of IPv4, and none of IPv6:\n%s", have)
		}
	})
	t.Run("until the endpoints are known", func(t *testing.T) {
		noTables(t)
		wantSync(t, earlier.routes, true)
		wantSync(t, unknown.routes, false)
		none := goldenOf(t, "node-dual-0")
		wantSync(t, none.routes, true)
		wantText(t, none)
	})
}

// Case 9. The table of our name in family inet is not one of ours either.
func TestForeignTablesStayAsTheyAre(t *testing.T) {
	const foreign = `
table inet iam4kube {
	chain endpoints {
		type filter hook forward priority -50; policy drop;
	}
}
table ip nat {
	map services {
		type ipv4_addr . inet_service : verdict
	}
	chain PREROUTING {
		type nat hook prerouting priority -100; policy accept;
		ip daddr 169.254.169.254 tcp dport 80 counter dnat to 10.9.9.9:80
	}
}
table ip6 other {
	flags dormant
	set hosts {
		type ipv6_addr; flags interval; elements = { fd00::/64 }
	}
	counter translated {
		packets 5 bytes 300
	}
	chain guard-forward {
		type filter hook forward priority -50
		ip6 daddr @hosts tcp dport 80 log prefix "x" drop
	}
}
table arp other {
	chain c {
		type filter hook input priority 0
	}
}
table bridge iam4kube {
	chain live {
		type filter hook forward priority 0
	}
}
`
	noTables(t)
	node.NFT(t, foreign)
	foreignText := list(t)
	check := func() {
		t.Helper()
		text := list(t)
		for _, family := range routes.Families {
			if table := "table " + string(family) + " " + ruleset.TableName + " {"; strings.Contains(text, table) {
				text = strings.Replace(text, node.NFT(t, "--numeric-priority", "list", "table", string(family), ruleset.TableName), "", 1)
			}
		}
		if text != foreignText {
			t.Errorf("the foreign tables have become\n%s", text)
		}
	}
	check()
	for _, name := range []string{"node-dual-0", "node-dual-3", "pod-dual-1", "node-unknown"} {
		if _, err := kernel.Sync(goldenOf(t, name).routes); err != nil {
			t.Fatal(err)
		}
		check()
	}
	for _, want := range []bool{true, false} {
		if removed, err := kernel.Remove(); err != nil || removed != want {
			t.Errorf("removed %v, %v, want %v", removed, err, want)
		}
		if have := list(t); have != foreignText {
			t.Errorf("after Remove\n%s", have)
		}
	}
}

// What is there of one family alone is removed too.
func TestRemoveTakesHalfOfIt(t *testing.T) {
	noTables(t)
	node.NFT(t, "add table ip6 iam4kube")
	if removed, err := kernel.Remove(); err != nil || !removed || list(t) != "" {
		t.Errorf("removed %v, %v, left: %s", removed, err, list(t))
	}
}

// Case 18: a table that somebody owns cannot be changed, and the error says who does. When
// the owner has gone, one Sync takes it over.
func TestOwnedTableIsTakenOverWhenItsOwnerEnds(t *testing.T) {
	want := goldenOf(t, "node-dual-3")
	noTables(t)
	conn := own(t)
	if conn == nil {
		return // nobody can, on this kernel
	}
	before := list(t)
	if changed, err := kernel.Sync(want.routes); changed || !errors.Is(err, routes.ErrOwned) {
		t.Errorf("while it is owned: changed %v, %v", changed, err)
	}
	if removed, err := kernel.Remove(); removed || !errors.Is(err, routes.ErrOwned) {
		t.Errorf("while it is owned: removed %v, %v", removed, err)
	}
	if after := list(t); after != before {
		t.Errorf("after the failed Sync, which may have changed nothing:\n%s", after)
	}
	if err := conn.CloseLasting(); err != nil {
		t.Fatal(err)
	}
	wantSync(t, want.routes, true)
	wantText(t, want)
}

// own makes a table of our name that belongs to the connection and, if the kernel can, stays
// when that is closed. It is nil on kernels whose tables have no owners.
func own(t *testing.T) *nft.Conn {
	t.Helper()
	const owner, persist = 1 << 1, 1 << 2 // linux/netfilter/nf_tables.h, since Linux 5.12 and 6.9
	for _, flags := range []nft.TableFlags{owner | persist, owner} {
		conn, err := nft.New(nft.AsLasting())
		if err != nil {
			t.Fatal(err)
		}
		conn.AddTable(&nft.Table{Family: nft.TableFamilyIPv4, Name: ruleset.TableName, Flags: flags})
		if err = conn.Flush(); err == nil {
			return conn
		}
		// EINVAL is how kernels before owners refuse an unknown flag.
		if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINVAL) {
			t.Fatal(err)
		}
		if err := conn.CloseLasting(); err != nil {
			t.Fatal(err)
		}
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	release := unix.ByteSliceToString(name.Release[:])
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil || major > 5 || major == 5 && minor >= 12 {
		t.Fatalf("Linux %s refuses the flag owner (%v)", release, err)
	}
	return nil
}
