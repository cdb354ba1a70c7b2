// Command kubernetes is Kubernetes' own programs in one binary, which acts as the
// one it is called as (argv[0]): one link instead of one per program.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
)

// programs is what the binary can act as. Each one more costs minutes of a cold build.
var programs = map[string]func() *cobra.Command{
	"kube-apiserver": apiserver.NewAPIServerCommand,
}

func main() {
	name := filepath.Base(os.Args[0])
	command, ok := programs[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "%s: not one of the programs in this binary; call it by a name from main.go\n", name)
		os.Exit(2)
	}
	os.Exit(cli.Run(command()))
}
