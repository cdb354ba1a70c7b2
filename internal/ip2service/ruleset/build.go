package ruleset

import (
	"net/netip"
	"slices"
)

// The addresses of EC2's instance metadata service,
// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html.
// They are guarded whatever is intercepted: a node with an IPv4 route alone must not
// give its role away by IPv6.
var (
	MetadataIPv4 = netip.MustParseAddr("169.254.169.254")
	MetadataIPv6 = netip.MustParseAddr("fd00:ec2::254")
)

// Routes are what is wanted.
type Routes struct {
	// Hooks are those of the place where the rules are.
	Hooks Hooks
	// Intercept are the addresses and TCP ports that are led to the endpoints of their
	// family. All else that is sent to these addresses is rejected.
	Intercept []netip.AddrPort
	// New are the endpoints that get new connections, in equal shares.
	New []netip.AddrPort
	// Live are those whose connections may go on. Whoever is not among them gets no
	// packet, even if another table sends it there.
	Live []netip.AddrPort
	// Unknown says that the endpoints are not known yet: those of an earlier run, if
	// there are any, stay.
	Unknown bool
}

// Hooks is where packets are caught.
type Hooks struct {
	nat   Hook
	guard []Hook
	// source is where translated connections get another source port.
	source Hook
	// foreign: what comes from the host itself is let be, and calls of the endpoints
	// themselves are rejected.
	foreign bool
}

var (
	// Node catches what a node forwards for its pods, and what they send to it. The
	// host's own traffic, and that of hostNetwork pods, passes neither hook or comes
	// from lo.
	Node = Hooks{nat: Prerouting, guard: []Hook{Forward, Input}, foreign: true}
	// Pod catches what the processes of a pod send, in its own network namespace. What
	// the pod itself forwards (containers in a container) is only guarded.
	//
	// Behind the pod, the node translates a second time, from the Service to a server, and
	// its connection tracking remembers by the source port for two minutes where an
	// unanswered connection went to. So a connection that is led anew needs a new port.
	Pod = Hooks{nat: Output, guard: []Hook{Output, Forward}, source: Postrouting}
)

// Names of the chains that change with the endpoints.
const (
	endpointsChain = "endpoints"
	liveChain      = "live"
)

// Build returns the rules for the routes.
//
//	nat:        to an intercepted address and port → endpoints
//	endpoints:  from an endpoint → return, and so into the guard
//	            else at random → DNAT to one of them
//	guard:      still to a guarded address → reject
//	            sent to a guarded address and translated, by us or others → live
//	            came back from there → reject
//	live:       to an endpoint that is still there → accept
//	source:     sent to an intercepted address → another source port
//
// The guard needs no connection tracking to reject what was not translated, so it also
// cuts connections that were open before the rules, and packets that are not tracked.
//
// There are no sets or maps: replacing one under load refused connections now and then,
// which replacing rules in one transaction does not.
func Build(r Routes) Ruleset {
	rules := make(Ruleset, 0, len(Families))
	for _, family := range Families {
		rules = append(rules, r.table(family))
	}
	return rules
}

func (r Routes) table(family Family) Table {
	intercept, endpoints, live := ofFamily(r.Intercept, family), ofFamily(r.New, family), ofFamily(r.Live, family)
	nat := Chain{Name: "nat-" + string(r.Hooks.nat), Type: NAT, Hook: r.Hooks.nat, Priority: natPriority}
	for _, i := range intercept {
		nat.Rules = append(nat.Rules, Rule{
			NotLoopback: r.Hooks.foreign, Destination: i.Addr(), TCP: true, Port: i.Port(),
			HalfOpen: true, Verdict: Jump, Chain: endpointsChain,
		})
	}
	// The order is that of dependence: nft reads no jump to a chain that comes later.
	chains := []Chain{r.endpoints(endpoints, live), r.live(live), nat}
	for _, hook := range r.Hooks.guard {
		chains = append(chains, r.guard(hook, r.guarded(family)))
	}
	if r.Hooks.source != "" {
		chains = append(chains, r.source(family))
	}
	return Table{Family: family, HalfOpen: true, Chains: chains}
}

func ofFamily(all []netip.AddrPort, family Family) []netip.AddrPort {
	return slices.DeleteFunc(slices.Clone(all), func(a netip.AddrPort) bool { return FamilyOf(a.Addr()) != family })
}

// addresses are the intercepted ones of the family, each once.
func (r Routes) addresses(family Family) (all []netip.Addr) {
	for _, i := range ofFamily(r.Intercept, family) {
		if !slices.Contains(all, i.Addr()) {
			all = append(all, i.Addr())
		}
	}
	return all
}

// guarded are the addresses of the family that nothing may reach.
func (r Routes) guarded(family Family) []netip.Addr {
	all := r.addresses(family)
	metadata := map[Family]netip.Addr{IPv4: MetadataIPv4, IPv6: MetadataIPv6}[family]
	if !slices.Contains(all, metadata) {
		all = append(all, metadata)
	}
	return all
}

func (r Routes) endpoints(endpoints, live []netip.AddrPort) Chain {
	c := Chain{Name: endpointsChain, Keep: r.Unknown}
	if r.Hooks.foreign {
		// An endpoint that were led to itself, or to its neighbour, would get
		// credentials of the role that it hands out; a bridge could not even answer.
		var last netip.Addr
		for _, e := range live { // sorted, so an address with two ports is once in a row
			if e.Addr() != last {
				c.Rules = append(c.Rules, Rule{Source: e.Addr(), Verdict: Return})
			}
			last = e.Addr()
		}
	}
	for i, e := range endpoints {
		rule := Rule{TCP: true, Count: Translated, Verdict: DNAT, To: e}
		if left := len(endpoints) - i; left > 1 {
			rule.OneIn = uint32(left)
		}
		c.Rules = append(c.Rules, rule)
	}
	return c
}

func (r Routes) live(live []netip.AddrPort) Chain {
	c := Chain{Name: liveChain, Keep: r.Unknown}
	for _, e := range live {
		c.Rules = append(c.Rules, Rule{Destination: e.Addr(), TCP: true, Port: e.Port(), Verdict: Accept})
	}
	return c
}

func (r Routes) source(family Family) Chain {
	c := Chain{Name: "nat-" + string(r.Hooks.source), Type: NAT, Hook: r.Hooks.source, Priority: sourcePriority}
	for _, a := range r.addresses(family) {
		c.Rules = append(c.Rules, Rule{OriginalDestination: a, TCP: true, Verdict: SourcePort})
	}
	return c
}

func (r Routes) guard(hook Hook, addresses []netip.Addr) Chain {
	c := Chain{Name: "guard-" + string(hook), Type: Filter, Hook: hook, Priority: guardPriority}
	reject := func(match Rule) {
		match.NotLoopback, match.Count = r.Hooks.foreign, Rejected
		match.TCP, match.Verdict = true, Reset
		c.Rules = append(c.Rules, match)
		match.TCP, match.Verdict = false, Reject
		c.Rules = append(c.Rules, match)
	}
	for _, a := range addresses {
		reject(Rule{Destination: a})
	}
	for _, a := range addresses {
		translated := Rule{OriginalDestination: a}
		c.Rules = append(c.Rules, Rule{
			NotLoopback: r.Hooks.foreign, OriginalDestination: a, Verdict: Jump, Chain: liveChain,
		})
		reject(translated)
	}
	return c
}
