// Package benchscale measures the server in a large cluster, as `make bench-scale` prints
// it: how long it takes to know 50,000 pods and how much memory that needs. The pods are
// objects in a real API server; creating them takes most of the time. A figure that is
// missed is printed as it is and fails nothing. Throughput is measured in bench.
package benchscale

import (
	"fmt"
	"iter"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/fakests"
)

const (
	podCount       = 50000
	podBytes       = 10 << 10 // of JSON
	accountCount   = 5000
	namespaceCount = 100
	nodeCount      = 500

	// fillRoles are fetched at fillRate a second, fillBurst at once.
	fillRoles, fillRate, fillBurst = 500, 50, 20
)

// env is the only API server, filled in the course of the benchmark.
var env *environment.Environment

func TestMain(m *testing.M) {
	os.Exit(environment.Main(m, func(e *environment.Environment) { env = e }))
}

// BenchmarkScale starts the server against a cluster with many pods and ServiceAccounts,
// with streaming lists and, as an older API server makes it, with lists in pages, and
// breaks the watches so that everything is listed again. Roles are fetched at 1,000 a
// second, so that their credentials are part of the memory and the wait for them is not.
func BenchmarkScale(b *testing.B) {
	r := &results{}
	createAccounts(b, 0, fillRoles)
	measureFill(b, r)
	createAccounts(b, fillRoles, accountCount)
	last := createPods(b)
	b.Setenv("KUBE_FEATURE_WatchListClient", "true")
	measureSync(b, r, "streaming lists", last)
	b.Setenv("KUBE_FEATURE_WatchListClient", "false")
	measureSync(b, r, "lists in pages of 500", last)
	r.print()
	b.ReportMetric(0, "ns/op")
}

func namespaceOf(account int) string { return fmt.Sprintf("team-%d", account%namespaceCount) }
func accountName(account int) string { return fmt.Sprintf("application-%d", account) }

// createAccounts creates ServiceAccounts with a role each, and before the first of them
// the namespaces.
func createAccounts(b *testing.B, from, to int) {
	b.Helper()
	for i := range namespaceCount {
		if err := env.CreateNamespace(b.Context(), namespaceOf(i)); err != nil {
			b.Fatal(err)
		}
	}
	err := env.CreateServiceAccounts(b.Context(), progress("ServiceAccounts", to-from, func(i int) controlplane.ServiceAccount {
		return controlplane.ServiceAccount{
			Namespace: namespaceOf(from + i), Name: accountName(from + i),
			Annotations: map[string]string{role.AnnotationARN: env.NewRole()},
		}
	}))
	if err != nil {
		b.Fatal(err)
	}
}

// createPods creates nodes and pods and returns the address of a pod.
func createPods(b *testing.B) netip.Addr {
	b.Helper()
	nodes := make([]controlplane.Node, nodeCount)
	for i := range nodes {
		zone := fmt.Sprintf("eu-west-1%c", 'a'+i%3)
		nodes[i] = controlplane.Node{Name: fmt.Sprintf("ip-10-0-%d-%d.eu-west-1.compute.internal", i/256, i%256), Zone: zone, Region: "eu-west-1", IP: env.Address().String()}
		if err := env.CreateNode(b.Context(), nodes[i]); err != nil {
			b.Fatal(err)
		}
	}
	var last netip.Addr
	err := env.CreatePods(b.Context(), progress("pods", podCount, func(i int) controlplane.Pod {
		last = env.Address()
		account, node := i%accountCount, nodes[i%nodeCount]
		return controlplane.Pod{
			Namespace: namespaceOf(account), Name: fmt.Sprintf("%s-5d4f7c9b8d-%05d", accountName(account), i),
			ServiceAccount: accountName(account), Node: node.Name,
			IPs: []string{last.String()}, HostIPs: []string{node.IP}, PadTo: podBytes,
		}
	}))
	if err != nil {
		b.Fatal(err)
	}
	return last
}

// progress makes so many items, and says on stderr how far it got.
func progress[T any](what string, count int, item func(int) T) iter.Seq[T] {
	return func(yield func(T) bool) {
		start := time.Now()
		for i := range count {
			if !yield(item(i)) {
				return
			}
			if (i+1)%(max(count, 10)/10) == 0 {
				fmt.Fprintf(os.Stderr, "scale: %d of %d %s created after %.0f s\n", i+1, count, what, time.Since(start).Seconds())
			}
		}
	}
}

// measureFill measures the time from the first call of STS to the answer of the last one.
func measureFill(b *testing.B, r *results) {
	b.Helper()
	fmt.Fprintln(os.Stderr, "scale: filling the cache")
	before := len(env.STS.Attempts())
	server, _ := env.StartReleased(b, "--sts-rate-limit", fmt.Sprint(fillRate), "--sts-rate-burst", fmt.Sprint(fillBurst))
	server.WaitReady(b)
	filled := time.Now()
	ofServer := func(a fakests.Attempt) bool { return a.RoleARN == "" }
	attempts := slices.DeleteFunc(env.STS.Attempts()[before:], ofServer)
	if len(attempts) != fillRoles {
		b.Errorf("%d attempts for %d roles", len(attempts), fillRoles)
	}
	r.fill = filled.Sub(attempts[0].Time)
	if err := server.Stop(); err != nil {
		b.Fatal(err)
	}
}
