package rules

import (
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/internal/ip2service/nftables"
	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
	"github.com/iam4kube/iam4kube/internal/ip2service/ruleset"
	"github.com/iam4kube/iam4kube/test/netns"
	"github.com/iam4kube/iam4kube/test/node"
)

// A node loses its power: nobody answers at its endpoint, nothing refuses, and its slice lists
// it still, at first as ready. A connection that is being opened to it gets to another one.
func TestHalfOpenConnectionLeavesADeadEndpoint(t *testing.T) {
	noTables(t)
	pod := addPlace(t, "pod", "10.244.0.2", "fd00:10:244::2")
	live := addPlace(t, "live", "10.244.1.2", "fd00:10:244:1::2")
	live.serve(t, []uint16{8080}, live.addresses[routes.IPv4], live.addresses[routes.IPv6])
	dead := netns.AddPod(t, "10.244.1.3", "fd00:10:244:1::3")
	if output, err := dead.Run(t.Context(), "nft", "add table inet dead; add chain inet dead input { type filter hook input priority 0; }; add rule inet dead input meta l4proto tcp drop"); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	deadAddresses := byFamily("10.244.1.3", "fd00:10:244:1::3")
	for _, family := range routes.Families {
		t.Run(string(family), func(t *testing.T) {
			to, gone := netip.AddrPortFrom(live.addresses[family], 8080), netip.AddrPortFrom(deadAddresses[family], 8080)
			want := routes.Routes{
				Hooks: routes.Node, Intercept: []netip.AddrPort{netip.AddrPortFrom(metadata[family], 80)},
				New: []netip.AddrPort{gone}, Live: []netip.AddrPort{to, gone},
			}
			if _, err := kernel.Sync(want); err != nil {
				t.Fatal(err)
			}
			before, _ := counted(t)
			ended := make(chan string, 1)
			go func() {
				c, end := pod.connect(netip.AddrPortFrom(metadata[family], 80))
				if c != nil {
					c.hangUp()
				}
				ended <- end
			}()
			for now := before; now == before; now, _ = counted(t) {
				runtime.Gosched() // until its first packet was led to the dead endpoint
			}
			want.New = []netip.AddrPort{to}
			if _, err := kernel.Sync(want); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			if end := <-ended; end != "to "+to.String() {
				t.Errorf("the connection ended %q, want it to go to %s", end, to)
			}
			t.Logf("after %s", time.Since(start).Round(time.Millisecond))
		})
	}
}

// Kernels without the object get all the other rules.
func TestRulesWithoutHalfOpen(t *testing.T) {
	noTables(t)
	for _, g := range goldens(t) {
		without := ruleset.Build(g.routes).WithoutHalfOpen()
		wantTransact(t, without, true)
		if text := node.NFT(t, "list", "ruleset"); strings.Contains(text, ruleset.HalfOpen) {
			t.Fatalf("%s: %s", g.name, text)
		}
		wantTransact(t, without, false)
		if _, err := kernel.Sync(g.routes); err != nil {
			t.Fatal(err)
		}
		if g.name != "node-unknown" {
			wantText(t, g)
		}
	}
}

func wantTransact(t *testing.T, rules ruleset.Ruleset, wantChanged bool) {
	t.Helper()
	changed, err := nftables.Transact(rules)
	if err != nil || changed != wantChanged {
		t.Fatalf("Transact: changed %v, %v, want %v", changed, err, wantChanged)
	}
}
