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
)

const usage = `usage:
  cluster up [-proxy nftables|iptables] [-cni ptp|bridge]   start it; what ran before ends
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
	switch args[0] {
	case "up":
		flags := flag.NewFlagSet("up", flag.ExitOnError)
		proxy := flags.String("proxy", "nftables", "kube-proxy's `mode`: nftables or iptables")
		cni := flags.String("cni", "ptp", "`plug-in` for pods' links: ptp or bridge")
		_ = flags.Parse(args[1:]) // it exits
		return up(ctx, c, *proxy, *cni)
	case "down":
		return c.Stop()
	case "shell":
		return shell(ctx,c)
	case "exec":
		if len(args) < 3 {
			break
		}
		cmd, err := c.Command(ctx, args[1], args[2:]...)
		if err != nil {
			return err
		}
		return attached(cmd)
	case "status":
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

func up(ctx context.Context, c cluster.Cluster, proxy, cni string) error {
	return c.Start(ctx, cluster.Options{ProxyMode: proxy, CNI: cni, Nodes: cluster.FourNodes(), Images: images()}, os.Stdout)
}

func attached(cmd *exec.Cmd) error {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}

func shell(ctx context.Context, c cluster.Cluster) error { return nil }

func images() []string { m, _ := filepath.Glob("/tmp/img/*.tar"); return m }
