// Command cluster starts, enters and stops the cluster of package cluster.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/iam4kube/iam4kube/test/cluster"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/images"
)

const usage = `usage:
  cluster up [-proxy nftables|iptables] [-cni ptp|bridge]   start it; one that runs already ends
  cluster down                                              end it and remove its files
  cluster shell                                             a shell in which kubectl finds it
  cluster exec NODE COMMAND...                              run a command on a node
  cluster status                                            nodes, programs, leaked packets
`

func main() {
	cluster.Init()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	c, err := cluster.Default()
	if err != nil {
		return err
	}
	if len(args) == 0 {
		args = []string{""}
	}
	switch {
	case args[0] == "up":
		return up(ctx, c, args[1:])
	case args[0] == "down":
		return c.Stop()
	case args[0] == "shell":
		return shell(ctx, c)
	case args[0] == "exec" && len(args) > 2:
		cmd, err := c.Command(ctx, args[1], args[2:]...)
		if err != nil {
			return err
		}
		return attached(cmd)
	case args[0] == "status":
		status, err := c.Status(ctx)
		if err == nil {
			fmt.Printf("nodes: %v\nprograms: %v\nleaked packets: %d\n", status.Nodes, status.Programs, status.Leaks)
		}
		return err
	}
	fmt.Fprint(os.Stderr, usage)
	os.Exit(2)
	return nil
}

func up(ctx context.Context, c cluster.Cluster, args []string) error {
	flags := flag.NewFlagSet("up", flag.ExitOnError)
	options := cluster.Options{Nodes: cluster.FourNodes()}
	flags.StringVar(&options.ProxyMode, "proxy", "nftables", "kube-proxy's `mode`: nftables or iptables")
	flags.StringVar(&options.CNI, "cni", "ptp", "`plug-in` for pods' links: ptp or bridge")
	_ = flags.Parse(args) // it exits
	var err error
	if options.Images, err = images.Build(ctx, "demo", os.Stdout); err != nil {
		return err
	}
	return c.Start(ctx, options, os.Stdout)
}

// shell is the user's own, with kubectl of the cluster's version.
func shell(ctx context.Context, c cluster.Cluster) error {
	if _, err := c.Status(ctx); err != nil {
		return err
	}
	binDir, err := controlplane.Build(ctx)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	fmt.Print(`kubectl reaches the demo's cluster here, and $CLUSTER its nodes. Some things to look at:

  kubectl get pods -A -o wide
  kubectl -n shop logs aws-cli                            # what a pod got
  kubectl -n shop get events --field-selector reason=IAMRoleServing
  kubectl -n shop exec -it go -- sh                       # then: aws sts get-caller-identity --endpoint-url $AWS_ENDPOINT_URL_STS
  kubectl -n iam4kube logs -l app.kubernetes.io/name=iam4kube-server
  kubectl -n iam4kube logs deployment/iam4kube-demo-sts   # which roles STS gave to whom: by tokens, there is no AWS key
  $CLUSTER exec worker-1 nft list table ip iam4kube       # the rules on a node
  $CLUSTER status                                         # packets that reached the machine's metadata service: 0

`)
	cmd := exec.CommandContext(ctx, "bash", "--norc")
	cmd.Env = append(os.Environ(),
		"KUBECONFIG="+c.Kubeconfig(), "CLUSTER="+self, "PS1=iam4kube demo$ ",
		"PATH="+binDir+string(filepath.ListSeparator)+os.Getenv("PATH"))
	return attached(cmd)
}

func attached(cmd *exec.Cmd) error {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}
