package benchrouting

import (
	"net/netip"
	"testing"
	"time"
)

const (
	firsts  = 20
	changes = 200
)

// applied is how long it took to bring the rules of a way into the kernel: where there
// were none, with another endpoint than before, and with the same ones.
type applied struct {
	name                string
	first, change, same []time.Duration
	most                float64 // the contract's bound of change
}

// BenchmarkApply measures how long that takes. For iptables it is the run of a program. For
// nftables it is more than the rules take: closing netlink's socket waits until no
// processor uses the deleted rules any more.
func BenchmarkApply(b *testing.B) {
	inNamespace(b)
	results := map[int][]applied{}
	for _, count := range sizes {
		for _, w := range ways {
			if w.change != nil {
				results[count] = append(results[count], w.apply(b, count))
			}
		}
	}
	reportApply(results)
}

func (w way) apply(b *testing.B, count int) applied {
	b.Helper()
	r := applied{name: w.name, most: w.most.change}
	must := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatalf("%s, %d endpoints: %v", w.name, count, err)
		}
	}
	timed := func(do func([]netip.AddrPort) error, to []netip.AddrPort) time.Duration {
		start := time.Now()
		must(do(to))
		return time.Since(start)
	}
	for range firsts {
		r.first = append(r.first, timed(w.set, endpoints(0, count)))
		must(w.remove())
	}
	must(w.set(endpoints(0, count)))
	for i := range changes {
		to := endpoints((i+1)%2, count)
		r.change = append(r.change, timed(w.change, to))
		if w.same != nil {
			r.same = append(r.same, timed(w.same, to))
		}
	}
	must(w.remove())
	return r
}
