// Package benchrouting measures on one machine, as `make bench` prints it, what
// ip2service's rules cost a pod: connections and requests through them beside those that
// no rule leads, and beside a chain of iptables' statistic module, which is how the
// original iam4kube and kube-proxy lead them; and how long rules take to get into the
// kernel. A figure is printed as it is and fails nothing; an answer of the wrong
// endpoint, or a packet that leaks, does.
package benchrouting

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/test/netns"
)

const (
	// Many short rounds: what else the machine does hits all ways in each of them.
	rounds     = 15
	saturation = 120 * time.Millisecond
	fixedRate  = 1000 // connections a second
	fixedCount = 100
	keepAlive  = 60 * time.Millisecond
)

// sizes are numbers of endpoints.
var sizes = []int{1, 10, 100}

func TestMain(m *testing.M) { netns.MainInPods(m, nil) }

// inNamespace begins each benchmark.
func inNamespace(b *testing.B) {
	b.Helper()
	netns.Require(b)
	b.Setenv("XTABLES_LOCKFILE", filepath.Join(b.TempDir(), "lock")) // that of the machine is root's
	b.ReportMetric(0, "ns/op")                                       // the time of all rounds says nothing
}

// BenchmarkConnections compares the ways from a pod to an endpoint, in turns. The pod, the
// endpoints and the kernel between them share one processor, so a connection's share of a
// second is the processor's time that it costs.
func BenchmarkConnections(b *testing.B) {
	inNamespace(b)
	netns.NewFarSide(b)
	p := newPods(b)
	results := map[int][]result{}
	for _, count := range sizes {
		results[count] = make([]result, len(ways))
	}
	for round := range rounds {
		fmt.Fprintf(os.Stderr, "connections: round %d of %d\n", round+1, rounds)
		for _, count := range sizes {
			for i := range ways {
				if round%2 == 1 {
					i = len(ways) - 1 - i
				}
				p.measure(b, ways[i], count, &results[count][i])
			}
		}
	}
	for _, count := range sizes {
		for i, r := range results[count] {
			if err := r.accepted.check(count); err != nil {
				b.Errorf("%s: %v", ways[i].name, err)
			}
		}
	}
	reportConnections(results)
}

// result is what was measured of a way to some number of endpoints.
type result struct {
	saturated, requests runs
	paced               []time.Duration
	accepted            shares
}

// runs are as many connections, or requests, one after the other as each round had time for.
type runs struct {
	took      []time.Duration
	perSecond []float64 // round by round
}

func (r *runs) add(took []time.Duration, within time.Duration) {
	r.took = append(r.took, took...)
	r.perSecond = append(r.perSecond, float64(len(took))/within.Seconds())
}

// measure adds a round.
func (p *pods) measure(b *testing.B, w way, count int, r *result) {
	b.Helper()
	to := endpoints(0, count)
	must := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatalf("%s, %d endpoints: %v", w.name, count, err)
		}
	}
	must(w.set(to))
	if !w.direct {
		to = []netip.AddrPort{intercepted}
	}
	saturated, err := p.saturate(to)
	must(err)
	p.server.wait(b, len(saturated))
	paced, err := p.pace(to)
	must(err)
	p.server.wait(b, len(saturated)+len(paced))
	requests, err := p.keepAlive(to)
	must(err)
	accepted := p.server.take(b, len(saturated)+len(paced)+connections)
	must(w.remove())
	r.saturated.add(saturated, saturation)
	r.paced = append(r.paced, paced...)
	r.requests.add(requests, keepAlive)
	for i := range r.accepted {
		r.accepted[i] += accepted[i]
	}
}
