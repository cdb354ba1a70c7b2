package benchscale

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/iam4kube/iam4kube/test/environment"
)

// The contract's figures.
const (
	mostMemory = 200 // MiB
	mostSync   = 15 * time.Second
	mostFirst  = 15 * time.Second
)

type results struct {
	fill, used time.Duration
	phases     []phase
	relists    []relist
	// live is what of the heap and of stacks is reachable once every pod has been served, and idle
	// what kept connections add, in MiB.
	live, idle []float64
}

// relist is the 99th percentile of warm requests before everything is listed again, and meanwhile.
type relist struct {
	lists            string
	quiet, meanwhile time.Duration
}

// phase is what one start, or one listing of everything again, took.
type phase struct {
	name       string
	took, most time.Duration // most: the contract's figure, 0 if it has none
	// processor is what the server has used since its start.
	processor time.Duration
	// peak and after are resident memory in MiB.
	peak, after float64
}

func (r *results) add(b *testing.B, pid int, name string, took, most time.Duration) {
	b.Helper()
	r.phases = append(r.phases, phase{name: name, took: took, most: most, processor: environment.ProcessorTime(b, pid), peak: memory(b, pid, "VmHWM"), after: memory(b, pid, "VmRSS")})
}

func (r *results) print() {
	var text strings.Builder
	fmt.Fprintf(&text, "\n%d pods of %d KiB, %d annotated ServiceAccounts, %d nodes\n\n", *podCount, podBytes>>10, *accountCount, nodeCount)
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "\tafter, s\tcontract\tprocessor, s\tpeak RSS, MiB\tRSS, MiB\tcontract\t")
	for _, p := range r.phases {
		within := ""
		if p.most > 0 {
			within = fmt.Sprintf("< %.0f%s", p.most.Seconds(), missed(p.took >= p.most))
		}
		fmt.Fprintf(table, "%s\t%.1f\t%s\t%.1f\t%.0f\t%.0f\t< %d%s\t\n", p.name, p.took.Seconds(), within, p.processor.Seconds(), p.peak, p.after, mostMemory, missed(p.peak >= mostMemory))
	}
	filled := func(what string, roles, rate, burst int, took time.Duration) {
		most := 1.05 * float64(roles-burst) / float64(rate)
		fmt.Fprintf(table, "%s at %d/s, burst %d\t%.2f\t≤ %.2f%s\t\t\t\t\t\n", what, rate, burst, took.Seconds(), most, missed(took.Seconds() > most))
	}
	filled(fmt.Sprintf("%d roles fetched", fillRoles), fillRoles, fillRate, fillBurst, r.fill)
	filled(fmt.Sprintf("of %d roles the %d with pods fetched", *accountCount, usedRoles), usedRoles, usedRate, fillBurst, r.used)
	for _, l := range r.relists {
		fmt.Fprintf(table, "%s: p99 of warm requests while all is listed again, times the %.2f ms before\t%.2f\t\t\t\t\t\t\n", l.lists, l.quiet.Seconds()*1000, l.meanwhile.Seconds()/l.quiet.Seconds())
	}
	for i := range r.live {
		fmt.Fprintf(table, "live heap and stacks, every pod served once\t\t\t\t\t%.1f\t\t\n", r.live[i])
		fmt.Fprintf(table, "  a kept connection, of %d, KiB\t\t\t\t\t%.1f\t\t\n", idle, r.idle[i]*1024/idle)
	}
	_ = table.Flush() // a Builder never fails
	_, _ = os.Stdout.WriteString(text.String() + "\n")
}

func missed(is bool) string {
	if is {
		return " MISSED"
	}
	return ""
}
