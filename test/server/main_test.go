// Package server tests the server against a real API server and the fake STS, mostly from
// outside, by HTTP.
package server

import (
	"os"
	"testing"

	"github.com/iam4kube/iam4kube/test/environment"
)

// env is shared by the tests; each makes namespaces, roles and addresses of its own.
var env *environment.Environment

func TestMain(m *testing.M) {
	os.Exit(environment.Main(m, func(e *environment.Environment) { env = e }))
}
