package rules

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
	"github.com/iam4kube/iam4kube/internal/ip2service/ruleset"
)

// packet is a packet in the direction in which its connection was opened.
type packet struct {
	loopback            bool // came in by lo
	source, destination netip.Addr
	tcp, udp            bool
	port                uint16
	// fresh: the first one of its connection, so chains of type nat see it.
	fresh bool
	// original is where the first packet of its connection was sent; invalid if it is not
	// tracked.
	original netip.Addr
}

func (p packet) family() routes.Family { return routes.FamilyOf(p.source) }

// outcome is what becomes of a packet.
type outcome struct {
	// end is "to ADDRESS:PORT", "reset" or "rejected".
	end string
	// translated: counted as a connection that was led to an endpoint.
	translated bool
}

// leadsTo says that it arrives there; at any address if it is invalid.
func (o outcome) leadsTo(a netip.Addr) bool {
	to, arrives := strings.CutPrefix(o.end, "to ")
	return arrives && (!a.IsValid() || netip.MustParseAddrPort(to).Addr() == a)
}

// filter is an interpreter of rulesets: netfilter as its documentation describes it, with
// as much of it as our rules use.
type filter struct {
	ours    ruleset.Ruleset
	foreign *ruleset.Table
	// untracked are destinations that the rule `notrack` of another table matches.
	untracked map[netip.Addr]bool
	local     map[netip.Addr]bool
}

// outcomes are all that a packet may have: a rule for one packet in so many may match or
// not.
func (f *filter) outcomes(p packet, fromHost bool) (all []outcome) {
	// notrack comes before the translation of a connection that is open.
	if sent := cmp.Or(p.original, p.destination); f.untracked[sent] {
		p.fresh, p.original = false, netip.Addr{}
	}
	states := []state{{packet: p}}
	if fromHost {
		states = f.pass(ruleset.Output, states)
		for i := range states {
			states[i].loopback = true // where it is not local, that is seen no more
		}
	} else {
		states = f.pass(ruleset.Prerouting, states)
	}
	for _, s := range states {
		local := f.local[s.destination]
		next := []state{s}
		switch {
		case local && fromHost:
			next = f.pass(ruleset.Input, f.pass(ruleset.Prerouting, next))
		case local:
			next = f.pass(ruleset.Input, next)
		case !fromHost:
			next = f.pass(ruleset.Forward, next)
		}
		for _, s := range next {
			o := outcome{s.end, s.translated}
			if s.end == "" {
				o.end = "to " + netip.AddrPortFrom(s.packet.destination, s.packet.port).String()
			}
			if !slices.Contains(all, o) {
				all = append(all, o)
			}
		}
	}
	return all
}

// state is a packet on its way; with an end it is nowhere any more.
type state struct {
	packet
	end        string
	translated bool
}

type base struct {
	ruleset.Chain
	table ruleset.Table
}

// pass sends packets through the base chains of a hook.
func (f *filter) pass(hook ruleset.Hook, states []state) []state {
	var chains []base
	tables := slices.Clone(f.ours)
	if f.foreign != nil {
		tables = append(tables, *f.foreign)
	}
	for _, t := range tables {
		for _, c := range t.Chains {
			if c.Hook == hook {
				chains = append(chains, base{c, t})
			}
		}
	}
	// The chains that translate are one hook for the kernel, at iptables' priority, with an
	// order of their own.
	at := func(b base) int32 {
		if b.Type == ruleset.NAT {
			return -100
		}
		return b.Priority
	}
	slices.SortStableFunc(chains, func(a, b base) int {
		return cmp.Or(cmp.Compare(at(a), at(b)), cmp.Compare(a.Priority, b.Priority))
	})
	for _, c := range chains {
		var next []state
		for _, s := range states {
			if s.end != "" || c.table.Family != s.family() || c.Type == ruleset.NAT && !s.fresh {
				next = append(next, s)
				continue
			}
			for _, e := range run(c.table, c.Chain, s) {
				next = append(next, e.state)
			}
		}
		states = next
	}
	for i := range states {
		// That nothing translates a connection is decided once, too.
		states[i].fresh = states[i].fresh && !slices.ContainsFunc(chains, func(b base) bool {
			return b.Type == ruleset.NAT && b.table.Family == states[i].family()
		})
	}
	return states
}

// after is a packet after a chain. returned: it goes on behind the rule that jumped.
type after struct {
	state
	returned bool
}

// run sends a packet through a chain.
func run(t ruleset.Table, c ruleset.Chain, s state) (all []after) {
	for _, r := range c.Rules {
		if !matches(r, s.packet) {
			continue
		}
		hit := s
		if r.Count == ruleset.Translated {
			hit.translated = true
		}
		switch r.Verdict {
		case ruleset.Jump:
			target := t.Chains[slices.IndexFunc(t.Chains, func(c ruleset.Chain) bool { return c.Name == r.Chain })]
			goesOn := false
			for _, a := range run(t, target, hit) {
				if a.returned {
					goesOn = true
				} else {
					all = append(all, a)
				}
			}
			if !goesOn {
				return all
			}
			continue
		case ruleset.Return:
			all = append(all, after{hit, true})
		case ruleset.Accept:
			all = append(all, after{hit, false})
		case ruleset.Reset:
			hit.end = "reset"
			all = append(all, after{hit, false})
		case ruleset.Reject:
			hit.end = "rejected"
			all = append(all, after{hit, false})
		case ruleset.DNAT:
			hit.destination, hit.port, hit.fresh = r.To.Addr(), r.To.Port(), false
			all = append(all, after{hit, false})
		default:
			panic(fmt.Sprint("verdict ", r.Verdict))
		}
		if r.OneIn == 0 {
			return all
		}
	}
	return append(all, after{s, true})
}

func matches(r ruleset.Rule, p packet) bool {
	is := func(want, have netip.Addr) bool { return !want.IsValid() || want == have }
	return (!r.NotLoopback || !p.loopback) && is(r.OriginalDestination, p.original) &&
		is(r.Source, p.source) && is(r.Destination, p.destination) &&
		(!r.TCP || p.tcp) && (!r.UDP || p.udp) && (r.Port == 0 || p.port == r.Port)
}
