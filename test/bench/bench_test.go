// Package bench measures the server on one machine, as `make bench` prints it: warm
// requests beside a bare net/http server that returns the same bytes, and how fast the
// event that a request waits for wakes it. Each table has the contract's figure beside
// what was measured. A figure that is missed is printed as it is and fails nothing; a
// wrong answer does. Memory and time with many pods are measured in benchscale.
package bench

import (
	"os"
	"testing"

	"github.com/iam4kube/iam4kube/test/environment"
)

// env is shared by the benchmarks; each makes namespaces, roles and addresses of its own.
var env *environment.Environment

func TestMain(m *testing.M) {
	os.Exit(environment.Main(m, func(e *environment.Environment) { env = e }))
}
