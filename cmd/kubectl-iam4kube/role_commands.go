package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/iam4kube/iam4kube/cmd/kubectl-iam4kube/finding"
	"github.com/iam4kube/iam4kube/cmd/kubectl-iam4kube/terms"
	"github.com/iam4kube/iam4kube/cmd/kubectl-iam4kube/who"
)

func (p *plugin) whoCommand() *cobra.Command {
	return p.printed(&cobra.Command{
		Use: "who ROLE", Short: "Find the ServiceAccounts that name a role, and the pods that have it",
		Example: "  kubectl iam4kube who arn:aws:iam::111122223333:role/orders\n  kubectl iam4kube who orders", Args: cobra.ExactArgs(1),
		RunE: func(command *cobra.Command, arguments []string) error {
			namespace, _, err := p.kube.ToRawKubeConfigLoader().Namespace()
			if err != nil {
				return err
			}
			c, err := p.cluster()
			if err != nil {
				return err
			}
			answer, err := who.Names(command.Context(), c, arguments[0], namespace)
			if err != nil {
				return err
			}
			if len(answer.Unseen) > 0 {
				p.worst = finding.Unseen
			}
			if p.output == "json" {
				return finding.JSON(p.out, answer)
			}
			_, err = fmt.Fprint(p.out, answer.Text())
			return err
		},
	})
}

func (p *plugin) trustCommand() *cobra.Command {
	var given terms.Given
	command := &cobra.Command{
		Use: "trust NAMESPACE/NAME", Short: "Print the trust policy that the role of a ServiceAccount needs",
		Example: "  kubectl iam4kube trust shop/orders", Args: cobra.ExactArgs(1),
		RunE: func(command *cobra.Command, arguments []string) error {
			namespace, name, found := strings.Cut(arguments[0], "/")
			if !found || namespace == "" || name == "" {
				return fmt.Errorf("%q: want NAMESPACE/NAME of a ServiceAccount, such as shop/orders", arguments[0])
			}
			if given.Principal != "" && given.Issuer != "" {
				return fmt.Errorf("--issuer and --principal: want one")
			}
			c, err := p.cluster()
			if err != nil {
				return err
			}
			policy, note, err := terms.Policy(command.Context(), c, namespace, name, given)
			if err != nil {
				return err
			}
			if note != "" {
				_, _ = fmt.Fprintln(command.ErrOrStderr(), "note:", note)
			}
			text, err := policy.JSON()
			if err != nil {
				return err
			}
			_, err = p.out.Write(text)
			return err
		},
	}
	command.Flags().StringVar(&given.Principal, "principal", "", "ARN of the servers' own IAM role or user, if it cannot be seen")
	command.Flags().StringVar(&given.Issuer, "issuer", "", "URL of the tokens' issuer, where the servers have no AWS credentials")
	return command
}
