package rules

import (
	"errors"
	"net/netip"
	"runtime"
	"slices"
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

// The connection to an endpoint that went is reset, and its port is free again: a new connection
// from it goes to an endpoint that is there, and not after the old one.
func TestPortOfAResetConnectionIsUsedAgain(t *testing.T) {
	noTables(t)
	pod := addPlace(t, "pod", "10.244.0.2", "fd00:10:244::2")
	staying := addPlace(t, "staying", "10.244.1.2", "fd00:10:244:1::2")
	going := addPlace(t, "going", "10.244.1.3", "fd00:10:244:1::3")
	for _, p := range []*place{staying, going} {
		p.serve(t, []uint16{8080}, p.addresses[routes.IPv4], p.addresses[routes.IPv6])
	}
	for _, family := range routes.Families {
		t.Run(string(family), func(t *testing.T) {
			to := netip.AddrPortFrom(metadata[family], 80)
			stays, goes := netip.AddrPortFrom(staying.addresses[family], 8080), netip.AddrPortFrom(going.addresses[family], 8080)
			want := routes.Routes{Hooks: routes.Node, Intercept: []netip.AddrPort{to}, New: []netip.AddrPort{goes}, Live: []netip.AddrPort{goes}}
			if _, err := kernel.Sync(want); err != nil {
				t.Fatal(err)
			}
			old, end := pod.connect(to)
			if end != "to "+goes.String() {
				t.Fatalf("the connection went %q, want it to go to %s", end, goes)
			}
			want.New, want.Live = []netip.AddrPort{stays}, []netip.AddrPort{stays}
			if _, err := kernel.Sync(want); err != nil {
				t.Fatal(err)
			}
			if end := old.ask(); end != "reset" {
				t.Fatalf("the old connection: %q, want it reset", end)
			}
			local := old.LocalAddr()
			_ = old.Close()
			again, end := pod.connectFrom(local, to)
			if end != "to "+stays.String() {
				t.Fatalf("a new connection from %s: %q, want it to go to %s", local, end, stays)
			}
			again.hangUp()
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

// What a kernel lacks for one family keeps the other one from nothing, and is told of.
func TestFamilyThatTheKernelLacks(t *testing.T) {
	g := goldenOf(t, "node-dual-1")
	for _, lacking := range routes.Families {
		noTables(t)
		rules := ruleset.Build(g.routes)
		i := slices.IndexFunc(rules, func(table ruleset.Table) bool { return table.Family == lacking })
		base := slices.IndexFunc(rules[i].Chains, func(c ruleset.Chain) bool { return c.Hook != "" })
		rules[i].Chains[base].Type = "no-such-type"
		for range 2 {
			if _, err := nftables.Transact(rules); !errors.Is(err, routes.ErrUnsupported) {
				t.Fatalf("without %s: %v", lacking, err)
			}
			text := node.NFT(t, "list", "ruleset")
			for _, family := range routes.Families {
				if has := strings.Contains(text, "table "+string(family)+" "+ruleset.TableName+" "); has != (family != lacking) {
					t.Errorf("without %s, table %s is there: %v", lacking, family, has)
				}
			}
		}
		if _, err := kernel.Sync(g.routes); err != nil {
			t.Fatal(err)
		}
		wantText(t, g)
	}
}

func wantTransact(t *testing.T, rules ruleset.Ruleset, wantChanged bool) {
	t.Helper()
	changed, err := nftables.Transact(rules)
	if err != nil || changed != wantChanged {
		t.Fatalf("Transact: changed %v, %v, want %v", changed, err, wantChanged)
	}
}
