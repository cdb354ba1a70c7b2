package rules

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
	"github.com/iam4kube/iam4kube/internal/ip2service/ruleset"
	"github.com/iam4kube/iam4kube/test/netns"
	"github.com/iam4kube/iam4kube/test/node"
)

const (
	// fixedSeed is that of the history that is the same in every run, but for the choice
	// of endpoints, which is the kernel's.
	fixedSeed = 1
	rounds    = uint64(80)
)

var (
	ports = []uint16{80, 8080, 9080}
	// beyond are addresses on the far side that are not the metadata service's.
	beyond = byFamily("192.0.2.7", "2001:db8:7::7")
	// metadata are the metadata service's.
	metadata = map[routes.Family]netip.Addr{routes.IPv4: routes.MetadataIPv4, routes.IPv6: routes.MetadataIPv6}
)

// TestKernelAndModelAgree plays random histories: rules, those of other tables beside them,
// and packets of each kind from everywhere. What becomes of a packet in the kernel has to
// be one of the outcomes that the interpreter of rulesets has for it.
//
// One history is the same in every run, the other one is new; to repeat it, make its seed
// fixedSeed.
func TestKernelAndModelAgree(t *testing.T) {
	for _, seed := range []uint64{fixedSeed, uint64(time.Now().UnixNano())} {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			noTables(t)
			h := newHistory(t)
			for i := range rounds {
				h.Rand, h.names = rand.New(rand.NewPCG(seed, i)), rand.New(rand.NewPCG(seed, rounds+i))
				h.round(t)
			}
			h.hangUp()
			t.Log(h.seen)
			if seed != fixedSeed {
				return
			}
			for _, kind := range everyKind {
				if h.seen[kind] == 0 {
					t.Errorf("no packet was %q", kind)
				}
			}
		})
	}
}

// everyKind is what has to be among the packets of a history.
var everyKind = []string{
	"tcp translated", "tcp reset", "tcp let be", "udp rejected", "udp let be", "icmp rejected", "icmp let be",
	"open kept", "open reset", "older kept", "older reset",
	"from the host translated", "from the host let be", "from the host reset",
	"from the node itself translated", "from the node itself reset", "from the node itself rejected",
	"from an endpoint translated", "from an endpoint reset",
	"another table's to a live endpoint", "another table's reset",
	"dns by tcp passed", "dns by udp passed", "dns by tcp rejected", "dns by udp rejected",
}

// history is a random life of a host.
type history struct {
	*rand.Rand
	// names is for what has to do with DNS, so that all else is as it is without.
	names     *rand.Rand
	domain    bool // the next packets are sent to its port
	far       *netns.FarSide
	host      *place
	pods      []*place
	endpoints []*place
	filter    filter
	foreign   string // the other table, in nft's language
	open      []*connection
	routes    routes.Routes
	onNode    bool   // they have the hooks of a node
	port      uint16 // that most addresses are intercepted at
	seen      map[string]int
}

func newHistory(t *testing.T) *history {
	t.Helper()
	h := &history{
		far: netns.NewFarSide(t), host: hostPlace(), seen: map[string]int{},
		filter: filter{local: map[netip.Addr]bool{}},
	}
	t.Cleanup(func() {
		// The host's own packets have reached the metadata service, as they may, the last
		// ones in answer to the end of the servers. That no pod's did, the model has said.
		for h.far.TakeLeaks(t) > 0 {
		}
	})
	for i := range 2 {
		h.pods = append(h.pods, addPlace(t, fmt.Sprint("pod", i), fmt.Sprintf("10.244.0.%d", i+2), fmt.Sprintf("fd00:10:244::%d", i+2)))
	}
	for i := range 3 {
		e := addPlace(t, fmt.Sprint("endpoint", i), fmt.Sprintf("10.244.1.%d", i+2), fmt.Sprintf("fd00:10:244:1::%d", i+2))
		e.serve(t, ports, e.addresses[routes.IPv4], e.addresses[routes.IPv6])
		h.endpoints = append(h.endpoints, e)
	}
	h.host.allowPing(t)
	h.host.serve(t, ports, h.host.addresses[routes.IPv4], h.host.addresses[routes.IPv6])
	// The kernel sends few ICMP errors a second to one host.
	for _, limit := range []string{"ipv4/icmp_ratelimit", "ipv6/icmp/ratelimit"} {
		if err := os.WriteFile("/proc/sys/net/"+limit, []byte("0"), 0); err != nil {
			t.Fatal(err)
		}
	}
	far := &place{name: "far side", do: h.far.Do}
	for _, family := range routes.Families {
		h.filter.local[h.host.addresses[family]] = true
		command := strings.Fields(fmt.Sprintf("address add %s/%d dev lo", beyond[family], beyond[family].BitLen()))
		if family == routes.IPv6 {
			command = append(command, "nodad")
		}
		if output, err := h.far.Run(t.Context(), "ip", command...); err != nil {
			t.Fatalf("%v: %s", err, output)
		}
		far.serve(t, append(slices.Clip(ports), 53), metadata[family], beyond[family])
	}
	return h
}

func (h *history) hangUp() {
	for _, c := range h.open {
		c.hangUp()
	}
	h.open = nil
}

func (h *history) oneOf(places ...*place) *place { return places[h.IntN(len(places))] }

func (h *history) anyPlace() *place {
	return h.oneOf(slices.Concat(h.pods, h.pods, h.pods, h.endpoints, []*place{h.host, h.host})...)
}

// round changes the rules and sends packets.
func (h *history) round(t *testing.T) {
	t.Helper()
	if h.IntN(5) == 0 {
		h.openBeforeTheRules(t)
	}
	h.changeForeign(t)
	h.changeRules(t)
	i, closed := 0, h.IntN(3)
	h.open = slices.DeleteFunc(h.open, func(c *connection) bool {
		i++
		if h.later(t, c) == "reset" || i%3 == closed {
			c.hangUp()
			return true
		}
		return false
	})
	for range 12 {
		h.first(t)
	}
	other := h.Rand
	h.Rand, h.domain = h.names, true
	for range 4 {
		h.first(t)
	}
	h.Rand, h.domain = other, false
}

// openBeforeTheRules opens connections while there are no rules at all.
func (h *history) openBeforeTheRules(t *testing.T) {
	t.Helper()
	h.hangUp()
	node.NFT(t, "flush", "ruleset")
	for range 4 {
		family := h.anyFamily()
		from, to := h.anyPlace(), netip.AddrPortFrom(metadata[family], ports[h.IntN(2)])
		if h.IntN(3) == 0 {
			to = netip.AddrPortFrom(beyond[family], to.Port())
		}
		c, end := from.connect(to)
		if end != "to "+to.String() {
			t.Fatalf("without rules, from the %s to %s: %s", from.name, to, end)
		}
		c.older = true
		h.open = append(h.open, c)
	}
}

func (h *history) anyFamily() routes.Family { return routes.Families[h.IntN(len(routes.Families))] }

// changeForeign makes another table, or none, with some rule that is in the way of ours.
func (h *history) changeForeign(t *testing.T) {
	t.Helper()
	h.filter.foreign, h.filter.untracked, h.foreign = nil, nil, ""
	family := h.anyFamily()
	from := []netip.Addr{metadata[family], beyond[family]}[h.IntN(2)]
	switch h.IntN(10) {
	case 0, 1, 2, 3:
		to := []netip.Addr{metadata[family], beyond[family], h.host.addresses[family]}
		for _, e := range h.endpoints {
			to = append(to, e.addresses[family], e.addresses[family])
		}
		translate := []ruleset.Rule{{
			Destination: from, TCP: true, Port: []uint16{0, 80, 8080}[h.IntN(3)],
			Verdict: ruleset.DNAT, To: netip.AddrPortFrom(to[h.IntN(len(to))], ports[h.IntN(len(ports))]),
		}}
		priority := []int32{-150, -100}[h.IntN(2)] // before our chain and behind it
		h.filter.foreign = &ruleset.Table{Family: family, Chains: []ruleset.Chain{
			{Name: "prerouting", Type: ruleset.NAT, Hook: ruleset.Prerouting, Priority: priority, Rules: translate},
			{Name: "output", Type: ruleset.NAT, Hook: ruleset.Output, Priority: priority, Rules: translate},
		}}
	case 4:
		accept := []ruleset.Rule{{Destination: from, Verdict: ruleset.Accept}}
		h.filter.foreign = &ruleset.Table{Family: family, Chains: []ruleset.Chain{
			{Name: "forward", Type: ruleset.Filter, Hook: ruleset.Forward, Priority: -60, Rules: accept},
			{Name: "input", Type: ruleset.Filter, Hook: ruleset.Input, Priority: -60, Rules: accept},
		}}
	case 5:
		h.filter.untracked = map[netip.Addr]bool{from: true}
		h.foreign = fmt.Sprintf(`table %[1]s foreign {
	chain prerouting {
		type filter hook prerouting priority -300
		%[1]s daddr %[2]s notrack
	}
	chain output {
		type filter hook output priority -300
		%[1]s daddr %[2]s notrack
	}
}
`, family, from)
	}
	if h.filter.foreign != nil {
		h.foreign = strings.Replace(h.filter.foreign.String(), ruleset.TableName, "foreign", 1)
	}
	const none = "table ip foreign\ndelete table ip foreign\ntable ip6 foreign\ndelete table ip6 foreign\n"
	nft := exec.Command("nft", "-f", "-")
	nft.Stdin = strings.NewReader(none + h.foreign)
	if output, err := nft.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s\n%s", err, output, h.foreign)
	}
}

// changeRules makes ours.
func (h *history) changeRules(t *testing.T) {
	t.Helper()
	r := routes.Routes{Hooks: routes.Node, DNS: h.names.IntN(2) == 0}
	h.port = 80
	if h.onNode = h.IntN(10) >= 3; !h.onNode {
		r.Hooks = routes.Pod
	}
	if h.IntN(10) < 3 {
		h.port = 8080
	}
	for _, family := range routes.Families {
		if h.IntN(10) < 8 {
			r.Intercept = append(r.Intercept, netip.AddrPortFrom(metadata[family], h.port))
		}
		if h.IntN(10) < 4 {
			r.Intercept = append(r.Intercept, netip.AddrPortFrom(beyond[family], h.port))
		}
		if h.IntN(10) < 3 { // at a port of its own, or at a second one
			r.Intercept = append(r.Intercept, netip.AddrPortFrom([]netip.Addr{metadata[family], beyond[family]}[h.IntN(2)], ports[h.IntN(len(ports))]))
		}
		some := h.IntN(6) > 0
		for _, e := range h.endpoints {
			for _, port := range ports[1:] {
				if !some || h.IntN(2) == 0 {
					continue
				}
				at := netip.AddrPortFrom(e.addresses[family], port)
				r.Live = append(r.Live, at)
				if h.IntN(10) < 6 {
					r.New = append(r.New, at)
				}
			}
		}
	}
	if h.onNode && h.IntN(3) > 0 {
		r.Host = slices.DeleteFunc(r.Intercepted(), func(a netip.Addr) bool { return routes.Metadata(a) || h.IntN(5) == 0 })
	}
	r.KeepMetadata = h.IntN(3) == 0 && !slices.ContainsFunc(r.Intercepted(), routes.Metadata)
	h.Shuffle(len(r.Intercept), func(i, j int) { r.Intercept[i], r.Intercept[j] = r.Intercept[j], r.Intercept[i] })
	h.routes, h.filter.ours = r, ruleset.Build(r)
	if _, err := kernel.Sync(r); err != nil {
		t.Fatal(err)
	}
}

// first sends the first packet of a connection, or one that has none.
func (h *history) first(t *testing.T) {
	t.Helper()
	family, from := h.anyFamily(), h.anyPlace()
	to := []netip.Addr{metadata[family], metadata[family], metadata[family], beyond[family], beyond[family], h.host.addresses[family], h.oneOf(h.endpoints...).addresses[family]}
	p := packet{source: from.addresses[family], destination: to[h.IntN(len(to))], fresh: true, port: h.port}
	if h.IntN(3) == 0 {
		p.port = ports[h.IntN(len(ports))]
	}
	if h.domain && (p.destination == metadata[family] || p.destination == beyond[family]) {
		p.port = 53 // which is served on the far side alone
	}
	protocol := []string{"tcp", "tcp", "tcp", "udp", "icmp"}[h.IntN(5)]
	p.original, p.tcp, p.udp = p.destination, protocol == "tcp", protocol == "udp"
	if protocol == "icmp" {
		p.port = 0
	}
	want := h.filter.outcomes(p, from == h.host)
	// A pod that is led back to itself drops the packet, or never sends it.
	if from != h.host && slices.ContainsFunc(want, func(o outcome) bool { return o.leadsTo(p.source) }) {
		return
	}
	target := netip.AddrPortFrom(p.destination, p.port)
	have := outcome{}
	translated, rejected := counted(t)
	switch protocol {
	case "tcp":
		var c *connection
		if c, have.end = from.connect(target); c != nil {
			c.moved = !h.onNode && slices.Contains(h.routes.Intercepted(), p.destination)
			h.open = append(h.open, c)
		}
	case "udp":
		have.end = from.datagram(target)
	case "icmp":
		have.end = from.ping(p.destination)
	}
	translatedNow, rejectedNow := counted(t)
	have.translated = translatedNow > translated
	wrong := translatedNow > translated+1 || !have.leadsTo(netip.Addr{}) && rejectedNow == rejected
	if !slices.Contains(want, have) || wrong {
		h.fail(t, fmt.Sprintf("%s from the %s to %s: %s, counted %d as translated and %d as rejected, want one of %v",
			protocol, from.name, target, have.end, translatedNow-translated, rejectedNow-rejected, want))
	}
	h.checkPromise(t, from, target, have)
	h.count(protocol, from, p, have)
}

// checkPromise checks what holds whatever the rules are: nothing gets to a guarded address,
// but DNS where that may pass, and what was sent to one gets to a live endpoint or nowhere.
func (h *history) checkPromise(t *testing.T, from *place, target netip.AddrPort, have outcome) {
	t.Helper()
	to := target.Addr()
	if from == h.host && h.onNode && !slices.Contains(h.routes.Host, to) {
		return // the host's own traffic is let be
	}
	if !h.onNode && have.leadsTo(h.host.addresses[routes.FamilyOf(to)]) {
		return // as is what another table leads to the pod itself
	}
	var guarded []netip.Addr
	if !h.routes.KeepMetadata {
		guarded = append(guarded, routes.MetadataIPv4, routes.MetadataIPv6)
	}
	for _, i := range h.routes.Intercept {
		guarded = append(guarded, i.Addr())
	}
	if from == h.host && h.onNode {
		guarded = h.routes.Host
	}
	if h.routes.DNS && target.Port() == 53 && have.end == "to "+target.String() && slices.Contains(h.routes.Intercepted(), to) {
		return
	}
	live := slices.ContainsFunc(h.routes.Live, func(e netip.AddrPort) bool { return have.end == "to "+e.String() })
	if slices.ContainsFunc(guarded, have.leadsTo) || slices.Contains(guarded, to) && have.leadsTo(netip.Addr{}) && !live {
		h.fail(t, fmt.Sprintf("sent from the %s to %s: %s", from.name, to, have.end))
	}
}

// later sends a packet over a connection that is open.
func (h *history) later(t *testing.T, c *connection) (end string) {
	t.Helper()
	p := packet{source: c.from.addresses[routes.FamilyOf(c.to.Addr())], destination: c.to.Addr(), tcp: true, port: c.to.Port()}
	tracked := p
	tracked.original, tracked.destination, tracked.port = c.to.Addr(), c.current.Addr(), c.current.Port()
	possible := []packet{tracked}
	if h.filter.untracked[c.to.Addr()] {
		possible = []packet{p}
	}
	var want []string
	if c.moved && h.filter.untracked[c.to.Addr()] {
		want = append(want, "reset") // by a host that knows it from another port
	}
	if c.older {
		// Nothing says when the kernel stops to track connections after the last rule that
		// needs it, and what it tracks first it takes for new.
		fresh := tracked
		fresh.fresh = true
		possible = []packet{p, tracked, fresh}
	}
	for _, p := range possible {
		for _, o := range h.filter.outcomes(p, c.from == h.host) {
			if o.leadsTo(p.source) && c.from != h.host {
				return "reset" // see first
			}
			if o.leadsTo(netip.Addr{}) && o.end != "to "+c.current.String() {
				o.end = "reset" // by a host that knows of no such connection
			}
			want = append(want, o.end)
		}
	}
	end = c.ask()
	if !slices.Contains(want, end) {
		h.fail(t, fmt.Sprintf("connection from the %s to %s, open to %s: %s, want one of %v", c.from.name, c.to, c.current, end, want))
	}
	h.checkPromise(t, c.from, c.to, outcome{end: end})
	kind := map[bool]string{true: "older ", false: "open "}[c.older]
	h.seen[kind+map[bool]string{true: "reset", false: "kept"}[end == "reset"]]++
	return end
}

func (h *history) fail(t *testing.T, text string) {
	t.Helper()
	t.Fatalf("%s\nrules:\n%s%s%s", text, h.filter.ours[0], h.filter.ours[1], h.foreign)
}

// counted are the kernel's counters of both families.
func counted(t *testing.T) (translated, rejected uint64) {
	t.Helper()
	counters, err := kernel.Counters()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range routes.Families {
		translated += counters[family].Translated
		rejected += counters[family].Rejected
	}
	return translated, rejected
}

// count keeps what kinds of packets there were.
func (h *history) count(protocol string, from *place, p packet, have outcome) {
	end := have.end
	switch {
	case have.translated:
		end = "translated"
	case have.leadsTo(netip.Addr{}):
		end = "let be"
	}
	h.seen[protocol+" "+end]++
	if p.port == 53 && slices.Contains(h.routes.Intercepted(), p.destination) && from != h.host {
		h.seen["dns by "+protocol+map[bool]string{true: " passed", false: " rejected"}[have.leadsTo(p.destination)]]++
	}
	if from == h.host && slices.Contains(h.routes.Host, p.destination) {
		h.seen["from the node itself "+end]++
	}
	switch {
	case from == h.host:
		h.seen["from the host "+end]++
	case slices.Contains(h.endpoints, from):
		h.seen["from an endpoint "+end]++
	}
	f := h.filter.foreign
	if have.translated || f == nil || f.Family != p.family() || f.Chains[0].Rules[0].Verdict != ruleset.DNAT || !matches(f.Chains[0].Rules[0], p) {
		return
	}
	to := f.Chains[0].Rules[0].To
	if slices.ContainsFunc(h.endpoints, func(e *place) bool { return have.leadsTo(e.addresses[p.family()]) }) {
		h.seen["another table's to a live endpoint"]++
	} else if end == "reset" && to.Addr() != metadata[p.family()] {
		h.seen["another table's reset"]++
	}
}
