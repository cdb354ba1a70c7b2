// Generate writes observability/ and the tables of docs/ anew.
package main

import (
	"fmt"
	"os"

	"github.com/iam4kube/iam4kube/test/monitoring"
)

func main() {
	if err := monitoring.Write(); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}
