package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/iam4kube/iam4kube/cmd/kubectl-iam4kube/check"
	"github.com/iam4kube/iam4kube/cmd/kubectl-iam4kube/finding"
	"github.com/iam4kube/iam4kube/internal/buildinfo"
)

// again is how long `check --wait` rests between two looks.
const again = 2 * time.Second

func (p *plugin) checkCommand() *cobra.Command {
	var wait time.Duration
	command := p.printed(&cobra.Command{
		Use: "check", Short: "Look at the whole installation", Args: cobra.NoArgs,
		Example: "  kubectl iam4kube check --wait 2m",
		RunE: func(command *cobra.Command, _ []string) error {
			c, err := p.cluster()
			if err != nil {
				return err
			}
			ctx := command.Context()
			until := time.Now().Add(wait)
			report := check.Run(ctx, c, buildinfo.Version())
			for finding.Worst(report.Findings()) == finding.Broken && time.Now().Before(until) {
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-time.After(again):
				}
				report = check.Run(ctx, c, buildinfo.Version())
			}
			p.worst = finding.Worst(report.Findings())
			if p.output == "json" {
				return finding.JSON(p.out, report)
			}
			p.printReport(report)
			return nil
		},
	})
	command.Flags().DurationVar(&wait, "wait", 0, "look again until nothing is broken, for this long")
	return command
}

// verdicts are the last line of `check`.
var verdicts = map[finding.State]string{
	finding.OK: "All is well.", finding.Warning: "All works; look at the warnings.", finding.Broken: "Something is broken.",
	finding.Unseen: "Nothing broken was seen, and not all could be seen.",
}

func (p *plugin) printReport(report check.Report) {
	printer := p.printer()
	for _, category := range report.Categories {
		_, _ = fmt.Fprintf(p.out, "%s\n%s\n", category.Name, strings.Repeat("-", len(category.Name)))
		for _, f := range category.Checks {
			printer.Print(f)
		}
		_, _ = fmt.Fprintln(p.out)
	}
	_, _ = fmt.Fprintln(p.out, verdicts[p.worst])
}
