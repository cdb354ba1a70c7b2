package routingload

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/test/netns"
	"github.com/iam4kube/iam4kube/test/node"
)

// damages are what others can do to our tables. HANDLE is that of the last rule of the
// chain endpoints.
var damages = []struct {
	name, commands string
	// opens says that pods reach the machine's metadata service until it is repaired.
	opens bool
}{
	{name: "a rule is deleted", commands: "delete rule ip iam4kube endpoints handle HANDLE"},
	{name: "a rule is replaced", commands: "replace rule ip iam4kube endpoints handle HANDLE meta l4proto tcp dnat to 10.244.1.1:8080"},
	{name: "a rule is added", commands: "add rule ip iam4kube live ip daddr 10.244.1.9 accept"},
	{name: "an accept before the guard", commands: "insert rule ip iam4kube guard-forward accept"},
	{name: "an accept before the guard of IPv6", commands: "insert rule ip6 iam4kube guard-forward accept"},
	{name: "a chain is flushed", commands: "flush chain ip iam4kube guard-forward"},
	{name: "a chain is deleted", commands: "delete chain ip iam4kube guard-forward"},
	{name: "a policy is changed", commands: "add chain ip iam4kube guard-input { policy drop; }"},
	{name: "a set is added", commands: "add set ip iam4kube theirs { type ipv4_addr; }"},
	{name: "a chain is added", commands: "add chain ip iam4kube theirs { type filter hook forward priority -300; policy accept; }"},
	{name: "a counter is added", commands: "add counter ip iam4kube theirs"},
	{name: "the table is flushed", commands: "flush table ip iam4kube", opens: true},
	{name: "the table is made dormant", commands: "add table ip iam4kube { flags dormant; }", opens: true},
	{name: "the table is deleted", commands: "delete table ip iam4kube", opens: true},
	{name: "all tables are deleted", commands: "flush ruleset", opens: true},
}

var lastHandle = regexp.MustCompile(`# handle (\d+)\n\t}`)

// damage is what was done to our tables, and how that ended.
type damage struct {
	// The way may have been open between start and end.
	start, end time.Time
	// took is how long it took to repair, as the kernel tells.
	took time.Duration
}

// do runs nft's commands and returns when all is as it was.
func do(t *testing.T, k *kernel, commands, want string) (d damage) {
	t.Helper()
	if strings.Contains(commands, "HANDLE") {
		found := lastHandle.FindStringSubmatch(node.NFT(t, "--handle", "list", "chain", "ip", "iam4kube", "endpoints"))
		commands = strings.Replace(commands, "HANDLE", found[1], 1)
	}
	count := k.count()
	d.start = time.Now()
	nft(t, commands)
	theirs := k.wait(t, count, func(x transaction) bool { return x.by == "nft" && x.ours })
	for repairs := 0; ; {
		// Tables of both families are usually repaired at once, but need not be.
		repair := k.wait(t, count, func(x transaction) bool { return x.by == "ip2service" && x.at.After(d.end) })
		d.end, d.took = repair.at, repair.at.Sub(theirs.at)
		have := ours(t)
		if have == want {
			return d
		}
		if repairs++; repairs == 3 {
			t.Fatalf("our tables are\n%s\nwant\n%s", have, want)
		}
	}
}

// inARow is how many repairs in a row are not yet taken for a fight with another program,
// in which they are slower.
const inARow = 5

// calm waits for the end of a row.
func calm() { <-time.After(1100 * time.Millisecond) }

// checkLeaked says how many requests the machine's metadata service answered and how many
// connections to it were cut, and that none was answered except during these damages.
func (l *load) checkLeaked(t *testing.T, damages []damage) (answered, cut int) {
	t.Helper()
	for _, e := range slices.Concat(l.fresh, l.kept) {
		switch {
		case e.by != leaked:
		case e.err != nil:
			cut++
		default:
			answered++
			if !slices.ContainsFunc(damages, func(d damage) bool { return !e.end.Before(d.start) && !e.start.After(d.end) }) {
				t.Errorf("the machine's metadata service answered although the rules were there")
			}
		}
	}
	return answered, cut
}

// newOpenFarSide is a far side that may have answered. It repeats what is not acknowledged
// because its connection was cut, and once ip2service's rules are gone, pods answer that.
func newOpenFarSide(t *testing.T) *netns.FarSide {
	t.Helper()
	far := netns.NewFarSide(t)
	t.Cleanup(func() { far.TakeLeaks(t) })
	return far
}

// What others change in our tables is changed back within a second, and counted. The
// connections that got through meanwhile are cut.
func TestForeignChangesAreRepaired(t *testing.T) {
	far := newOpenFarSide(t)
	endpoints := addresses(addEndpoints(t, 3))
	l := newLoad(t, podCount)
	k := watchKernel(t)
	service := cluster.NewService()
	service.Set(t, "all", node.Ready(endpoints[0].String()), node.Ready(endpoints[1].String()), node.Ready(endpoints[2].String()))
	i := service.Start(t)
	i.WaitReady(t)
	want := wanted(endpoints, endpoints)
	l.start(t, visitPause, kept)
	var open []damage
	for n, d := range damages {
		if n > 0 && n%inARow == 0 {
			calm()
		}
		done := do(t, k, d.commands, want)
		leaks := 0
		if d.opens {
			open = append(open, done)
			leaks = far.TakeLeaks(t)
		}
		t.Logf("%s: repaired after %v, %d packets leaked", d.name, done.took, leaks)
		if done.took > time.Second {
			t.Errorf("%s: want it repaired within a second", d.name)
		}
		if far.TakeLeaks(t) > 0 {
			t.Errorf("%s: a packet leaked", d.name)
		}
		i.WaitReady(t)
	}
	l.end()
	l.checkLeaked(t, open)
	if leaks := far.TakeLeaks(t); leaks > 0 {
		t.Errorf("%d packets leaked at the end", leaks)
	}
	if repairs := i.Metric(t, "iam4kube_ruleset_repairs_total"); repairs < len(damages) {
		t.Errorf("%d repairs were counted, want %d", repairs, len(damages))
	}
}

func addresses(texts []string) (parsed []netip.Addr) {
	for _, text := range texts {
		parsed = append(parsed, netip.MustParseAddr(text))
	}
	return parsed
}

// A flush of all tables opens the way until they are there again, milliseconds later. A
// program that does so again and again meets slower repairs.
func TestFlushesUnderLoad(t *testing.T) {
	far := newOpenFarSide(t)
	endpoints := addresses(addEndpoints(t, 1))
	l := newLoad(t, podCount)
	k := watchKernel(t)
	service := cluster.NewService()
	service.Set(t, "all", node.Ready(endpoints[0].String()))
	service.StartReleased(t).WaitReady(t)
	l.start(t, time.Millisecond, kept)
	const flushes, more = 20, 8
	var done []damage
	var took []time.Duration
	for flush := range flushes + more {
		if flush > 0 && flush <= flushes && flush%inARow == 0 {
			calm()
		}
		if flush == flushes {
			t.Logf("open for %v (median of %d, at most %v), in which %d packets leaked",
				percentile(took, .5), flushes, percentile(took, 1), far.TakeLeaks(t))
		}
		d := do(t, k, "flush ruleset", wanted(endpoints, endpoints))
		done, took = append(done, d), append(took, d.took)
	}
	l.end()
	answered, cut := l.checkLeaked(t, done)
	t.Logf("%d requests were answered, %d connections cut; the %d repairs of a fight took at most %v", answered, cut, more, percentile(took[flushes:], 1))
	if percentile(took, 1) > time.Second {
		t.Errorf("repairs took %v, want each within a second", took)
	}
	if answered == 0 {
		t.Error("no connection got through, so nothing was tested")
	}
}
