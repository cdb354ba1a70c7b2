package benchrouting

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// reportConnections prints ratios to the first way. Those of numbers per second are medians
// of the rounds' ratios, because what else the machine does changes from round to round. A
// p50 hardly knows of that.
func reportConnections(results map[int][]result) {
	title := func(what string) string {
		return fmt.Sprintf("%s from a pod to endpoints, all on one processor; %d rounds in turns;\nwho answered was checked", what, rounds)
	}
	rows := func(cells func(w way, r, base result) string) func(*tabwriter.Writer, int) {
		return func(table *tabwriter.Writer, count int) {
			for i, r := range results[count] {
				fmt.Fprintf(table, "  %s\t%s\t\n", ways[i].name, cells(ways[i], r, results[count][0]))
			}
		}
	}
	report(title("connections"), fmt.Sprintf("\tper second\tratio\tp50, µs\tratio\tcontract\tat %d/s: p50, µs\tratio\tp99, µs\t", fixedRate),
		rows(func(w way, r, base result) string {
			p50 := percentile(r.saturated.took, 50) / percentile(base.saturated.took, 50)
			return r.saturated.cells(base.saturated) + fmt.Sprintf("\t%s\t%.1f\t%.2f\t%.0f", contract(p50, w.most.connect),
				percentile(r.paced, 50), percentile(r.paced, 50)/percentile(base.paced, 50), percentile(r.paced, 99))
		}))
	report(title("requests on open connections"), "\tper second\tratio\tp50, µs\tratio\t",
		rows(func(_ way, r, base result) string { return r.requests.cells(base.requests) }))
}

// contract is the bound, and whether what was measured keeps it.
func contract(measured, most float64) string {
	switch {
	case most == 0:
		return ""
	case measured > most:
		return fmt.Sprintf("≤ %.2f MISSED", most)
	}
	return fmt.Sprintf("≤ %.2f", most)
}

func (r runs) cells(base runs) string {
	return fmt.Sprintf("%.0f\t%.2f\t%.1f\t%.2f", median(r.perSecond), ratio(r.perSecond, base.perSecond),
		percentile(r.took, 50), percentile(r.took, 50)/percentile(base.took, 50))
}

func reportApply(results map[int][]applied) {
	report(fmt.Sprintf("bringing rules into the kernel, ms; %d times, at first %d", changes, firsts),
		"\tfirst, p50\tone endpoint changed, p50\tp99\tno change, p50\tp99\tcontract, one changed, p99\t",
		func(table *tabwriter.Writer, count int) {
			for _, r := range results[count] {
				fmt.Fprintf(table, "  %s", r.name)
				for _, p := range []struct {
					took    []time.Duration
					percent int
				}{{r.first, 50}, {r.change, 50}, {r.change, 99}, {r.same, 50}, {r.same, 99}} {
					if len(p.took) == 0 {
						fmt.Fprint(table, "\t")
						continue
					}
					fmt.Fprintf(table, "\t%.2f", percentile(p.took, p.percent)/1000)
				}
				fmt.Fprintf(table, "\t%s\t\n", contract(percentile(r.change, 99)/1000, r.most))
			}
		})
}

// report prints a table with a part for each number of endpoints.
func report(title, head string, part func(table *tabwriter.Writer, count int)) {
	var text strings.Builder
	fmt.Fprintf(&text, "\n%s\n\n", title)
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, head)
	for _, count := range sizes {
		fmt.Fprintf(table, "endpoints: %d%s\n", count, strings.Repeat("\t", strings.Count(head, "\t")))
		part(table, count)
	}
	_ = table.Flush() // a Builder never fails
	_, _ = os.Stdout.WriteString(text.String() + "\n")
}

func ratio(a, b []float64) float64 {
	ratios := make([]float64, len(a))
	for i := range ratios {
		ratios[i] = a[i] / b[i]
	}
	return median(ratios)
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// percentile is in microseconds.
func percentile(times []time.Duration, percent int) float64 {
	sorted := slices.Sorted(slices.Values(times))
	i := max(0, (len(sorted)*percent+99)/100-1)
	return float64(sorted[i]) / float64(time.Microsecond)
}
