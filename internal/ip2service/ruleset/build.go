package ruleset

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
)

// hooks is where in netfilter packets are caught.
type hooks struct {
	nat   Hook
	guard []Hook
	// source is where translated connections get another source port.
	source Hook
	// foreign: what comes from the host itself is let be, and calls of the endpoints
	// themselves are rejected.
	foreign bool
}

func hooksOf(h routes.Hooks) hooks {
	switch h {
	case routes.Node:
		// What a node forwards for its pods, and what they send to it. The host's own
		// traffic, and that of hostNetwork pods, passes neither hook or comes from lo: of
		// that, Routes.Host are caught in the hook output.
		return hooks{nat: Prerouting, guard: []Hook{Forward, Input}, foreign: true}
	case routes.Pod:
		// Behind the pod, the node translates a second time, from the Service to a server,
		// and its connection tracking remembers by the source port for two minutes where an
		// unanswered connection went to. So a connection that is led anew needs a new port.
		return hooks{nat: Output, guard: []Hook{Output, Forward}, source: Postrouting}
	}
	panic(fmt.Sprintf("hooks %q", h))
}

// Names of the chains that change with the endpoints.
const (
	endpointsChain = "endpoints"
	liveChain      = "live"
)

// domain is the port of DNS, RFC 1035, section 4.2.
const domain = 53

// Build returns the rules for the routes.
//
//	nat:        to an intercepted address and port → endpoints
//	endpoints:  from an endpoint → return, and so into the guard
//	            else at random → DNAT to one of them
//	guard:      to the domain port of an intercepted address, if DNS may → accept
//	            still to a guarded address → reject
//	            sent to a guarded address and translated, by us or others → live
//	            came back from there → reject
//	live:       to an endpoint that is still there → accept
//	source:     sent to an intercepted address → another source port
//
// What the host itself sends to Routes.Host goes through chains of the same kinds, in the
// hook output.
//
// The guard needs no connection tracking to reject what was not translated, so it also
// cuts connections that were open before the rules, and packets that are not tracked.
//
// There are no sets or maps: replacing one under load refused connections now and then,
// which replacing rules in one transaction does not.
func Build(r routes.Routes) Ruleset {
	rules := make(Ruleset, 0, len(routes.Families))
	for _, family := range routes.Families {
		b := builder{hooksOf(r.Hooks), r.Of(family)}
		rules = append(rules, Table{Family: family, HalfOpen: true, Chains: b.chains(r.Guarded(family))})
	}
	return rules
}

// builder makes the chains of one family.
type builder struct {
	hooks  hooks
	routes routes.Routes
}

func (b builder) chains(guarded []netip.Addr) []Chain {
	// The order is that of dependence: nft reads no jump to a chain that comes later.
	chains := []Chain{b.endpoints(), b.live(), b.nat()}
	for _, hook := range b.hooks.guard {
		chains = append(chains, b.guard(hook, guarded))
	}
	if b.hooks.foreign && len(b.routes.Host) > 0 {
		host := b.host()
		chains = append(chains, host.nat(), host.guard(Output, b.routes.Host))
	}
	if b.hooks.source != "" {
		chains = append(chains, b.source())
	}
	return chains
}

// host makes the chains for what the host itself sends.
func (b builder) host() builder {
	b.hooks = hooks{nat: Output}
	b.routes.Intercept = slices.DeleteFunc(slices.Clone(b.routes.Intercept), func(i netip.AddrPort) bool {
		return !slices.Contains(b.routes.Host, i.Addr())
	})
	return b
}

func (b builder) nat() Chain {
	c := Chain{Name: "nat-" + string(b.hooks.nat), Type: NAT, Hook: b.hooks.nat, Priority: natPriority}
	for _, i := range b.routes.Intercept {
		c.Rules = append(c.Rules, Rule{
			NotLoopback: b.hooks.foreign, Destination: i.Addr(), TCP: true, Port: i.Port(),
			HalfOpen: true, Verdict: Jump, Chain: endpointsChain,
		})
	}
	return c
}

func (b builder) endpoints() Chain {
	c := Chain{Name: endpointsChain, Keep: b.routes.Unknown}
	if b.hooks.foreign {
		// An endpoint that were led to itself, or to its neighbour, would get
		// credentials of the role that it hands out; a bridge could not even answer.
		var last netip.Addr
		for _, e := range b.routes.Live { // sorted, so an address with two ports is once in a row
			if e.Addr() != last {
				c.Rules = append(c.Rules, Rule{Source: e.Addr(), Verdict: Return})
			}
			last = e.Addr()
		}
	}
	for i, e := range b.routes.New {
		rule := Rule{TCP: true, Count: Translated, Verdict: DNAT, To: e}
		if left := len(b.routes.New) - i; left > 1 {
			rule.OneIn = uint32(left)
		}
		c.Rules = append(c.Rules, rule)
	}
	return c
}

func (b builder) live() Chain {
	c := Chain{Name: liveChain, Keep: b.routes.Unknown}
	for _, e := range b.routes.Live {
		c.Rules = append(c.Rules, Rule{Destination: e.Addr(), TCP: true, Port: e.Port(), Verdict: Accept})
	}
	return c
}

func (b builder) source() Chain {
	c := Chain{Name: "nat-" + string(b.hooks.source), Type: NAT, Hook: b.hooks.source, Priority: sourcePriority}
	for _, a := range b.routes.Intercepted() {
		c.Rules = append(c.Rules, Rule{OriginalDestination: a, TCP: true, Verdict: SourcePort})
	}
	return c
}

func (b builder) guard(hook Hook, addresses []netip.Addr) Chain {
	c := Chain{Name: "guard-" + string(hook), Type: Filter, Hook: hook, Priority: guardPriority}
	reject := func(match Rule) {
		match.NotLoopback, match.Count = b.hooks.foreign, Rejected
		match.TCP, match.Verdict = true, Reset
		c.Rules = append(c.Rules, match)
		match.TCP, match.Verdict = false, Reject
		c.Rules = append(c.Rules, match)
	}
	if b.routes.DNS {
		for _, a := range b.routes.Intercepted() {
			c.Rules = append(c.Rules,
				Rule{Destination: a, UDP: true, Port: domain, Verdict: Accept},
				Rule{Destination: a, TCP: true, Port: domain, Verdict: Accept})
		}
	}
	for _, a := range addresses {
		reject(Rule{Destination: a})
	}
	for _, a := range addresses {
		translated := Rule{OriginalDestination: a}
		c.Rules = append(c.Rules, Rule{
			NotLoopback: b.hooks.foreign, OriginalDestination: a, Verdict: Jump, Chain: liveChain,
		})
		reject(translated)
	}
	return c
}
