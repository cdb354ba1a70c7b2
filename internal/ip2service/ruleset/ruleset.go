// Package ruleset says in netfilter's terms what package routes says in those of every
// data path: the routes that are wanted become chains and rules by a pure function. It
// owns what the rules are and why; how they get into the kernel is package nftables.
package ruleset

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
)

// TableName is the name of our tables, one in each of the families ip and ip6. No other
// table is ever read or changed.
const TableName = "iam4kube"

// Hook is where a base chain is attached; the values are nft's keywords.
type Hook string

// Hooks, see nft(8).
const (
	Prerouting  Hook = "prerouting"
	Input       Hook = "input"
	Forward     Hook = "forward"
	Output      Hook = "output"
	Postrouting Hook = "postrouting"
)

// ChainType is that of a base chain; the values are nft's keywords.
type ChainType string

// Chain types, see nft(8).
const (
	NAT    ChainType = "nat"
	Filter ChainType = "filter"
)

const (
	// natPriority is before iptables' and kube-proxy's destination NAT (-100): of the
	// chains of one hook that translate a connection the first one decides.
	natPriority = -110
	// guardPriority is after every destination NAT and before the filters of others
	// (0), which might accept for good.
	guardPriority = -50
	// sourcePriority is before iptables' source NAT (100), for the reason of natPriority.
	sourcePriority = 90
)

// Counters of a table. They are objects of their own, so that they go on when rules
// change.
const (
	// Translated counts the first packets of connections that were led to an endpoint.
	Translated = "translated"
	// Rejected counts the packets that the guard rejected.
	Rejected = "rejected"
)

// Counters are all of them.
var Counters = []string{Translated, Rejected}

// HalfOpen is the name of a table's object that makes the kernel forget a translation which
// the endpoint has not answered within HalfOpenSeconds. That is when clients first repeat
// their SYN, RFC 6298, section 2: it is led to an endpoint anew, so a connection gets past
// endpoints that are dead and not known to be. With the kernel's own two minutes, the
// repetitions, and later connections from the same port, would go to the dead one, also
// after it has left the rules.
const (
	HalfOpen        = "half-open"
	HalfOpenSeconds = 1
)

// Ruleset is the tables that are wanted, one for each family, because NAT in family inet
// needs Linux 5.2.
type Ruleset []Table

// Table is the table TableName of one family. It has all Counters.
type Table struct {
	Family routes.Family
	// HalfOpen says that it has the object of that name.
	HalfOpen bool
	Chains   []Chain
}

// WithoutHalfOpen is for kernels that do not have such objects.
func (r Ruleset) WithoutHalfOpen() Ruleset {
	r = slices.Clone(r)
	for i := range r {
		r[i].HalfOpen = false
		r[i].Chains = slices.Clone(r[i].Chains)
		for j := range r[i].Chains {
			rules := slices.Clone(r[i].Chains[j].Rules)
			for k := range rules {
				rules[k].HalfOpen = false
			}
			r[i].Chains[j].Rules = rules
		}
	}
	return r
}

// Chain is a base chain if it has a hook. Base chains have the policy accept: what is
// not ours is none of our business.
type Chain struct {
	Name     string
	Type     ChainType
	Hook     Hook
	Priority int32
	Rules    []Rule
	// Keep leaves the rules of a chain that is there as they are: they are an earlier
	// run's, and Rules are only for a chain that is not there.
	Keep bool
}

// Rule is what a packet has to be, and what is done with it then. A zero field matches
// everything.
type Rule struct {
	// NotLoopback: it came in by another interface than lo, so it is not the host's own.
	NotLoopback bool
	// OriginalDestination: it goes in the direction of its connection's first packet, and
	// that one was sent to this address, whatever became of it since.
	OriginalDestination netip.Addr
	Source, Destination netip.Addr
	TCP, UDP            bool   // at most one of them
	Port                uint16 // destination port, with TCP or UDP
	// OneIn: one packet in so many, at random.
	OneIn uint32

	// HalfOpen: the connection gets the object of that name.
	HalfOpen bool
	// Count is the name of one of Counters, or empty.
	Count   string
	Verdict Verdict
	// To is where DNAT sends the connection, Chain where Jump goes to.
	To    netip.AddrPort
	Chain string
}

// Verdict is what a rule does with a packet.
type Verdict int

// Verdicts; see nft(8), VERDICT STATEMENT, REJECT STATEMENT and NAT STATEMENTS.
const (
	// Jump goes to another chain and comes back from it at its end.
	Jump Verdict = iota
	// Return ends the chain.
	Return
	// Accept ends the chain and those that jumped to it.
	Accept
	// Reset answers with a TCP RST, Reject with ICMP port unreachable. So clients
	// notice at once.
	Reset
	Reject
	// DNAT sends the connection to another address and port.
	DNAT
	// SourcePort gives the connection a free source port at random, from SourcePortMin on,
	// and leaves its source address.
	SourcePort
)

// SourcePortMin is the first port that is not privileged, RFC 6335.
const SourcePortMin = 1024

// String is the table as `nft --numeric-priority list table` prints it while its counters
// are 0.
func (t Table) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table %s %s {\n", t.Family, TableName)
	for _, c := range Counters {
		fmt.Fprintf(&b, "\tcounter %s {\n\t\tpackets 0 bytes 0\n\t}\n\n", c)
	}
	if t.HalfOpen {
		fmt.Fprintf(&b, "\tct timeout %s {\n\t\tprotocol tcp\n\t\tl3proto %s\n\t\tpolicy = { syn_sent : %d, close : 0 }\n\t}\n\n", HalfOpen, t.Family, HalfOpenSeconds)
	}
	for i, c := range t.Chains {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "\tchain %s {\n", c.Name)
		if c.Hook != "" {
			fmt.Fprintf(&b, "\t\ttype %s hook %s priority %d; policy accept;\n", c.Type, c.Hook, c.Priority)
		}
		for _, r := range c.Rules {
			fmt.Fprintf(&b, "\t\t%s\n", r.text(t.Family))
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

func (r Rule) text(f routes.Family) string {
	var words []string
	add := func(format string, a ...any) { words = append(words, fmt.Sprintf(format, a...)) }
	if r.NotLoopback {
		add(`iifname != "lo"`)
	}
	if r.OriginalDestination.IsValid() {
		add("ct direction original ct original %s daddr %s", f, r.OriginalDestination)
	}
	if r.Source.IsValid() {
		add("%s saddr %s", f, r.Source)
	}
	if r.Destination.IsValid() {
		add("%s daddr %s", f, r.Destination)
	}
	switch {
	case r.Port != 0 && r.UDP:
		add("udp dport %d", r.Port)
	case r.Port != 0:
		add("tcp dport %d", r.Port)
	case r.TCP:
		add("meta l4proto tcp")
	}
	if r.OneIn > 0 {
		add("numgen random mod %d 0", r.OneIn)
	}
	if r.HalfOpen {
		add("ct timeout set %q", HalfOpen)
	}
	if r.Count != "" {
		add("counter name %q", r.Count)
	}
	add("%s", r.verdictText())
	return strings.Join(words, " ")
}

func (r Rule) verdictText() string {
	switch r.Verdict {
	case Jump:
		return "jump " + r.Chain
	case Return:
		return "return"
	case Accept:
		return "accept"
	case Reset:
		return "reject with tcp reset"
	case Reject:
		return "reject"
	case DNAT:
		return "dnat to " + r.To.String()
	case SourcePort:
		return fmt.Sprintf("snat to :%d-%d fully-random", SourcePortMin, math.MaxUint16)
	}
	panic(fmt.Sprintf("verdict %d", r.Verdict))
}
