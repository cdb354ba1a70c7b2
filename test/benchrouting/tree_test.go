package benchrouting

import (
	"fmt"
	"net/netip"
	"strings"
)

// leaf is how many rules are not worth a further branch.
const leaf = 4

// chains are those of a table that is being built, each before those that jump to it.
type chains struct {
	done strings.Builder
	n    int
}

func (c *chains) add(prefix, rules string) (name string) {
	c.n++
	name = fmt.Sprint(prefix, "-", c.n)
	fmt.Fprintf(&c.done, "\tchain %s {\n%s\t}\n", name, rules)
	return name
}

// tree is the text of rules that do what ruleset.Build's do, in a number of steps that
// grows with the logarithm of the number of endpoints: chance and addresses are halved,
// again and again. to is sorted.
func tree(to []netip.AddrPort) string {
	c := &chains{}
	balanced := c.add("balance", c.balance(to))
	foreign := c.add("foreign", c.search("saddr", to, func(e netip.AddrPort) string {
		return fmt.Sprintf("\t\tip saddr %s return\n", e.Addr())
	}, fmt.Sprintf("\t\tgoto %s\n", balanced)))
	live := c.add("live", c.search("daddr", to, func(e netip.AddrPort) string {
		return fmt.Sprintf("\t\tip daddr %s tcp dport %d accept\n", e.Addr(), e.Port())
	}, ""))
	guard := fmt.Sprintf(`
		iifname != "lo" ip daddr 169.254.169.254 meta l4proto tcp counter name "rejected" reject with tcp reset
		iifname != "lo" ip daddr 169.254.169.254 counter name "rejected" reject
		iifname != "lo" ct direction original ct original ip daddr 169.254.169.254 jump %s
		iifname != "lo" ct direction original ct original ip daddr 169.254.169.254 meta l4proto tcp counter name "rejected" reject with tcp reset
		iifname != "lo" ct direction original ct original ip daddr 169.254.169.254 counter name "rejected" reject
	}
`, live)
	return "table ip iam4kube {\n\tcounter translated { }\n\tcounter rejected { }\n" + c.done.String() +
		"\tchain nat-prerouting {\n\t\ttype nat hook prerouting priority -110\n" +
		"\t\tiifname != \"lo\" ip daddr 169.254.169.254 tcp dport 80 jump " + foreign + "\n\t}\n" +
		"\tchain guard-forward {\n\t\ttype filter hook forward priority -50" + guard +
		"\tchain guard-input {\n\t\ttype filter hook input priority -50" + guard + "}\n"
}

// balance are rules that lead to each endpoint with the same chance. An even number is
// halved; an odd one becomes even by one endpoint that is drawn before.
func (c *chains) balance(to []netip.AddrPort) string {
	dnat := func(e netip.AddrPort, chance int) string {
		draw := ""
		if chance > 1 {
			draw = fmt.Sprintf("numgen random mod %d 0 ", chance)
		}
		return fmt.Sprintf("\t\tmeta l4proto tcp %scounter name \"translated\" dnat to %s\n", draw, e)
	}
	n := len(to)
	switch {
	case n == 1:
		return dnat(to[0], 1)
	case n%2 == 1 || n <= leaf:
		return dnat(to[0], n) + c.balance(to[1:])
	}
	return fmt.Sprintf("\t\tnumgen random mod 2 0 goto %s\n", c.add("balance", c.balance(to[:n/2]))) + c.balance(to[n/2:])
}

// search are the rules of the endpoints whose address is that of the packet, and at last
// those for all other packets.
func (c *chains) search(field string, to []netip.AddrPort, rule func(netip.AddrPort) string, rest string) string {
	if n := len(to); n > leaf {
		left := c.add(field, c.search(field, to[:n/2], rule, rest))
		return fmt.Sprintf("\t\tip %s < %s goto %s\n", field, to[n/2].Addr(), left) + c.search(field, to[n/2:], rule, rest)
	}
	var rules strings.Builder
	for _, e := range to {
		rules.WriteString(rule(e))
	}
	return rules.String() + rest
}
