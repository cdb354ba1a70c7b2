package bench

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// figure is a line of the table. The ratio is the median of the rounds' ratios, because
// what else the machine does changes from round to round and hits both servers alike.
type figure struct {
	name   string
	values [2][]float64
	// least or most is the contract's bound for the ratio; 0: it has none.
	least, most float64
}

func (s *scenario) figures() []figure {
	figures := []figure{
		{name: "requests per second", values: s.perSecond, least: s.least},
		{name: "server CPU per request, µs", values: s.processor, most: s.most},
	}
	if s.reconnect {
		return figures
	}
	return append(figures, figure{
		name: fmt.Sprintf("p99 at %d requests/s, ms", fixedRate), values: s.p99, most: 1.25,
	})
}

func (f figure) ratio() float64 {
	ratios := make([]float64, len(f.values[0]))
	for i := range ratios {
		ratios[i] = f.values[0][i] / f.values[1][i]
	}
	return median(ratios)
}

// contract is the bound and whether the ratio keeps it.
func (f figure) contract() string {
	text, kept := "", true
	switch {
	case f.least > 0:
		text, kept = fmt.Sprintf("≥ %.2f", f.least), f.ratio() >= f.least
	case f.most > 0:
		text, kept = fmt.Sprintf("≤ %.2f", f.most), f.ratio() <= f.most
	}
	if !kept {
		text += " MISSED"
	}
	return text
}

func report(scenarios []*scenario, other string) {
	var text strings.Builder
	fmt.Fprintf(&text, "\nwarm credentials requests of %d pods, %d rounds in turns, medians;\nclient and servers share the machine; every answer's owner was checked\n\n", podCount, rounds)
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "\tiam4kube\t%s\tratio\tcontract\t\n", other)
	for _, s := range scenarios {
		fmt.Fprintf(table, "%s\t\t\t\t\t\n", s.name)
		for _, f := range s.figures() {
			fmt.Fprintf(table, "  %s\t%s\t%s\t%.2f\t%s\t\n", f.name, short(median(f.values[0])), short(median(f.values[1])), f.ratio(), f.contract())
		}
	}
	_ = table.Flush() // a Builder never fails
	_, _ = os.Stdout.WriteString(text.String() + "\n")
}

// short is a number with three digits at least.
func short(value float64) string {
	if value >= 100 {
		return strconv.Itoa(int(value))
	}
	return strconv.FormatFloat(value, 'g', 3, 64)
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}
