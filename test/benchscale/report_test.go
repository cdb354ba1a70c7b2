package benchscale

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
)

// The contract's figures.
const (
	mostMemory = 200 // MiB
	mostSync   = 15 * time.Second
)

type results struct {
	fill   time.Duration
	phases []phase
}

// phase is what one start, or one listing of everything again, took.
type phase struct {
	name       string
	took, most time.Duration // most: the contract's figure, 0 if it has none
	// peak and after are resident memory in MiB.
	peak, after float64
}

func (r *results) add(b *testing.B, pid int, name string, took, most time.Duration) {
	b.Helper()
	r.phases = append(r.phases, phase{name: name, took: took, most: most, peak: memory(b, pid, "VmHWM"), after: memory(b, pid, "VmRSS")})
}

func (r *results) print() {
	var text strings.Builder
	fmt.Fprintf(&text, "\n%d pods of %d KiB, %d annotated ServiceAccounts, %d nodes\n\n", podCount, podBytes>>10, accountCount, nodeCount)
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "\tafter, s\tcontract\tpeak RSS, MiB\tRSS, MiB\tcontract\t")
	for _, p := range r.phases {
		within := ""
		if p.most > 0 {
			within = fmt.Sprintf("< %.0f%s", p.most.Seconds(), missed(p.took >= p.most))
		}
		fmt.Fprintf(table, "%s\t%.1f\t%s\t%.0f\t%.0f\t< %d%s\t\n", p.name, p.took.Seconds(), within, p.peak, p.after, mostMemory, missed(p.peak >= mostMemory))
	}
	most := 1.05 * (fillRoles - fillBurst) / fillRate
	fill := fmt.Sprintf("%d roles fetched at %d/s, burst %d", fillRoles, fillRate, fillBurst)
	fmt.Fprintf(table, "%s\t%.2f\t≤ %.2f%s\t\t\t\t\n", fill, r.fill.Seconds(), most, missed(r.fill.Seconds() > most))
	_ = table.Flush() // a Builder never fails
	_, _ = os.Stdout.WriteString(text.String() + "\n")
}

func missed(is bool) string {
	if is {
		return " MISSED"
	}
	return ""
}
