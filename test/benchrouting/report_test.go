package benchrouting

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// reportConnections prints ratios to the first way: medians of the rounds' ratios,
// because what else the machine does changes from round to round.
func reportConnections(results map[int][]result) {
	report(fmt.Sprintf("connections from a pod to endpoints, all on one processor; %d rounds in turns;\nwho answered was checked", rounds),
		fmt.Sprintf("\tconnections/s\tratio\tp50 at %d/s, µs\tratio\tp99, µs\trequests/s when open\tratio\t", fixedRate),
		func(table *tabwriter.Writer, count int) {
			base := results[count][0]
			for i, r := range results[count] {
				fmt.Fprintf(table, "  %s\t%.0f\t%.2f\t%.1f\t%.2f\t%.0f\t%.0f\t%.2f\t\n", ways[i].name,
					median(r.perSecond), ratio(r.perSecond, base.perSecond),
					percentile(r.took, 50), percentile(r.took, 50)/percentile(base.took, 50), percentile(r.took, 99),
					median(r.requests), ratio(r.requests, base.requests))
			}
		})
}

func reportApply(results map[int][]applied) {
	report(fmt.Sprintf("bringing rules into the kernel, ms; %d times, at first %d", changes, firsts),
		"\tfirst, p50\tone endpoint changed, p50\tp99\tno change, p50\tp99\t",
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
				fmt.Fprintln(table, "\t")
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
