package routingload

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
	"github.com/iam4kube/iam4kube/internal/ip2service/ruleset"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/node"
)

// foreign are tables as others have them on a node: iptables-nft, kube-proxy, a firewall.
const foreign = `
table ip nat {
	chain PREROUTING {
		type nat hook prerouting priority -100; policy accept;
		ip daddr 10.96.0.1 tcp dport 443 jump KUBE-SERVICES
	}
	chain OUTPUT {
		type nat hook output priority -100; policy accept;
		ip daddr 10.96.0.1 tcp dport 443 jump KUBE-SERVICES
	}
	chain POSTROUTING {
		type nat hook postrouting priority 100; policy accept;
		ip saddr 10.244.0.0/16 ip daddr 203.0.113.0/24 masquerade
	}
	chain KUBE-SERVICES {
		ip daddr 10.96.0.1 tcp dport 443 dnat to 10.0.0.1:6443
	}
}
table ip kube-proxy {
	set cluster-ips {
		type ipv4_addr
		elements = { 10.96.0.1, 10.96.0.10 }
	}
	map service-ips {
		type ipv4_addr . inet_proto . inet_service : verdict
		elements = { 10.96.0.10 . udp . 53 : goto service-dns }
	}
	chain service-dns {
		numgen random mod 2 vmap { 0 : goto endpoint-1, 1 : goto endpoint-2 }
	}
	chain endpoint-1 {
		meta l4proto udp dnat to 10.244.9.1:53
	}
	chain endpoint-2 {
		meta l4proto udp dnat to 10.244.9.2:53
	}
	chain nat-prerouting {
		type nat hook prerouting priority -100; policy accept;
		ip daddr . meta l4proto . th dport vmap @service-ips
	}
	chain filter-forward {
		type filter hook forward priority -110; policy accept;
		ct state new ip daddr @cluster-ips reject
	}
}
table inet filter {
	chain forward {
		type filter hook forward priority 0; policy drop;
		ct state established,related accept
		ip saddr 10.244.0.0/16 accept
	}
}
`

// addForeign adds them until the test ends.
func addForeign(t *testing.T) {
	t.Helper()
	nft(t, foreign)
	t.Cleanup(func() { nft(t, "delete table ip nat; delete table ip kube-proxy; delete table inet filter") })
}

// nft makes these changes in one transaction.
func nft(t *testing.T, commands string) {
	t.Helper()
	node.NFT(t, commands)
}

var ourTable = regexp.MustCompile(`(?ms)^table ip6? ` + ruleset.TableName + ` \{.*?^\}\n`)

// notOurs are the rules of all tables but ours, with their handles, which change with them.
func notOurs(t *testing.T) string {
	t.Helper()
	return ourTable.ReplaceAllString(node.NFT(t, "--handle", "list", "ruleset"), "")
}

var counted = regexp.MustCompile(`packets \d+ bytes \d+`)

// ours are our tables.
func ours(t *testing.T) string {
	t.Helper()
	tables := ourTable.FindAllString(node.NFT(t, "--numeric-priority", "list", "ruleset"), -1)
	slices.Sort(tables) // nft lists those first that were there first
	return counted.ReplaceAllString(strings.Join(tables, ""), "packets 0 bytes 0")
}

// eventuallyOurs waits until our tables are these.
func eventuallyOurs(t *testing.T, want string) {
	t.Helper()
	environment.Eventually(t, patience, func() error {
		if have := ours(t); have != want {
			return fmt.Errorf("our tables are\n%s\nwant\n%s", have, want)
		}
		return nil
	})
}

// wanted is what ours is for these endpoints.
func wanted(fresh, live []netip.Addr) string {
	ports := func(addresses []netip.Addr) (ends []netip.AddrPort) {
		for _, a := range addresses {
			ends = append(ends, netip.AddrPortFrom(a, node.Port))
		}
		slices.SortFunc(ends, netip.AddrPort.Compare)
		return ends
	}
	var text strings.Builder
	for _, table := range ruleset.Build(routes.Routes{
		Hooks: routes.Node, New: ports(fresh), Live: ports(live),
		Intercept: []netip.AddrPort{netip.AddrPortFrom(routes.MetadataIPv4, 80), netip.AddrPortFrom(routes.MetadataIPv6, 80)},
	}) {
		text.WriteString(table.String())
	}
	return text.String()
}
