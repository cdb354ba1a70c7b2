package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"github.com/iam4kube/iam4kube/cmd/kubectl-iam4kube/cluster"
	"github.com/iam4kube/iam4kube/cmd/kubectl-iam4kube/finding"
	"github.com/iam4kube/iam4kube/cmd/kubectl-iam4kube/why"
	"github.com/iam4kube/iam4kube/internal/buildinfo"
)

// Exit statuses.
const (
	exitOK     = 0
	exitBroken = 1
	exitUsage  = 2
	// exitUnseen: nothing broken was seen, and not all could be seen.
	exitUnseen = 3
)

// plugin is what the commands have in common.
type plugin struct {
	kube      *genericclioptions.ConfigFlags
	installed string
	output    string
	out       io.Writer
	// worst is how it turned out.
	worst finding.State
}

// run is main, and returns the exit status.
func run(ctx context.Context, arguments []string, in io.Reader, out, errOut io.Writer) int {
	p := &plugin{kube: genericclioptions.NewConfigFlags(true).WithWarningPrinter(genericiooptions.IOStreams{In: in, Out: out, ErrOut: errOut}), out: out}
	root := p.root() //nolint:contextcheck // its commands get the context from ExecuteContext
	root.SetArgs(arguments)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	if err := root.ExecuteContext(ctx); err != nil {
		_, _ = fmt.Fprintf(errOut, "kubectl iam4kube: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
		return exitUsage
	}
	switch p.worst {
	case finding.Broken:
		return exitBroken
	case finding.Unseen:
		return exitUnseen
	default:
		return exitOK
	}
}

func (p *plugin) root() *cobra.Command {
	root := &cobra.Command{
		Use: "kubectl-iam4kube", Short: "Why a pod has the credentials of its ServiceAccount's role, or not",
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl iam4kube"},
		Version:       fmt.Sprintf("%s, revision %s", buildinfo.Version(), buildinfo.Revision()),
		SilenceErrors: true, SilenceUsage: true,
	}
	p.kube.AddFlags(root.PersistentFlags())
	root.PersistentFlags().StringVar(&p.installed, "iam4kube-namespace", "iam4kube", "namespace that iam4kube is in")
	root.AddCommand(p.whyCommand(), p.checkCommand(), p.whoCommand(), p.trustCommand())
	return root
}

// printed adds the flag -o to a command whose answer programs may read.
func (p *plugin) printed(command *cobra.Command) *cobra.Command {
	command.Flags().StringVarP(&p.output, "output", "o", "", `"json", or empty for a text`)
	command.PreRunE = func(*cobra.Command, []string) error {
		if p.output != "" && p.output != "json" {
			return fmt.Errorf("--output %q: want json, or nothing", p.output)
		}
		return nil
	}
	return command
}

func (p *plugin) cluster() (*cluster.Cluster, error) {
	config, err := p.kube.ToRESTConfig()
	if err != nil {
		return nil, err
	}
	return cluster.New(config, p.installed)
}

func (p *plugin) whyCommand() *cobra.Command {
	return p.printed(&cobra.Command{
		Use: "why pod/NAME", Short: "Follow a pod's way to its credentials to the link that is broken",
		Example: "  kubectl iam4kube why pod/orders-0 -n shop", Args: cobra.RangeArgs(1, 2),
		RunE: func(command *cobra.Command, arguments []string) error {
			name, err := podName(arguments)
			if err != nil {
				return err
			}
			namespace, _, err := p.kube.ToRawKubeConfigLoader().Namespace()
			if err != nil {
				return err
			}
			c, err := p.cluster()
			if err != nil {
				return err
			}
			chain, err := why.Pod(command.Context(), c, namespace, name)
			if err != nil {
				return err
			}
			p.worst = finding.Worst(chain.Links)
			if p.output == "json" {
				return finding.JSON(p.out, chain)
			}
			printer := p.printer()
			for _, link := range chain.Links {
				printer.Print(link)
			}
			return nil
		},
	})
}

// podName reads NAME, pod/NAME and, as kubectl does, pod NAME.
func podName(arguments []string) (string, error) {
	text := strings.Join(arguments, "/")
	kind, name, found := strings.Cut(text, "/")
	if !found {
		kind, name = "pod", text
	}
	switch kind {
	case "pod", "pods", "po":
	default:
		return "", fmt.Errorf("%q: want pod/NAME", text)
	}
	if name == "" || strings.Contains(name, "/") {
		return "", errors.New("want pod/NAME")
	}
	return name, nil
}

// printer colors where a terminal reads.
func (p *plugin) printer() finding.Printer {
	file, ok := p.out.(*os.File)
	if !ok {
		return finding.Printer{Out: p.out}
	}
	info, err := file.Stat()
	terminal := err == nil && info.Mode()&os.ModeCharDevice != 0
	return finding.Printer{Out: p.out, Color: terminal && os.Getenv("NO_COLOR") == ""}
}
