// Package benchscale measures the server in a large cluster, as `make bench-scale` prints
// it: how long it takes to know 50,000 pods and how much memory that needs. The pods are
// objects in a real API server; creating them takes most of the time. A figure that is
// missed is printed as it is and fails nothing. Throughput is measured in bench.
package benchscale

import (
	"errors"
	"flag"
	"fmt"
	"iter"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/fakests"
)

// A cluster of another size: make bench-scale TESTFLAGS="-pods 150000 -accounts 15000".
var (
	podCount     = flag.Int("pods", 50000, "pods of BenchmarkScale")
	accountCount = flag.Int("accounts", 5000, "ServiceAccounts of BenchmarkScale")
	profiles     = flag.String("profiles", "", "directory for profiles of the server's heap")
)

const (
	podBytes       = 10 << 10 // of JSON
	namespaceCount = 100
	nodeCount      = 500

	// fillRoles are fetched at fillRate a second, fillBurst at once.
	fillRoles, fillRate, fillBurst = 500, 50, 20
	// usedRoles have pods when all are fetched, at usedRate a second.
	usedRoles, usedRate = 1000, 200
)

// env is the only API server, filled in the course of the benchmark.
var env *environment.Environment

func TestMain(m *testing.M) {
	os.Exit(environment.Main(m, func(e *environment.Environment) { env = e }))
}

// BenchmarkScale starts the server against a cluster with many pods and ServiceAccounts,
// with streaming lists and, as an older API server makes it, with lists in pages, lets every
// pod ask, and breaks the watches so that everything is listed again. Roles are fetched at
// 2,000 a second, so that their credentials are part of the memory and the wait for them is not.
func BenchmarkScale(b *testing.B) {
	if *accountCount <= usedRoles || *podCount <= idle {
		b.Fatalf("%d pods and %d ServiceAccounts are too few: want more than %d and %d", *podCount, *accountCount, idle, usedRoles)
	}
	r, c := &results{}, &cluster{}
	c.createAccounts(b, fillRoles)
	r.fill = measureFill(b, c.roles, fillRate)
	c.createAccounts(b, *accountCount)
	c.createNodes(b)
	c.createPods(b, usedRoles)
	r.used = measureFill(b, c.roles[:usedRoles], usedRate)
	c.createPods(b, *podCount)
	b.Setenv("KUBE_FEATURE_WatchListClient", "true")
	measureSync(b, r, "streaming lists", c.pods)
	b.Setenv("KUBE_FEATURE_WatchListClient", "false")
	measureSync(b, r, "lists in pages of 250", c.pods)
	r.print()
	b.ReportMetric(0, "ns/op")
}

func namespaceOf(account int) string { return fmt.Sprintf("team-%d", account%namespaceCount) }
func accountName(account int) string { return fmt.Sprintf("application-%d", account) }

// cluster is what there is: roles by ARN, one for each ServiceAccount, nodes, and pods.
type cluster struct {
	roles []string
	nodes []controlplane.Node
	pods  []pod
}

// createAccounts creates ServiceAccounts until there are so many, with a role each, and
// before the first of them the namespaces.
func (c *cluster) createAccounts(b *testing.B, count int) {
	b.Helper()
	if len(c.roles) == 0 {
		for i := range namespaceCount {
			if err := env.CreateNamespace(b.Context(), namespaceOf(i)); err != nil {
				b.Fatal(err)
			}
		}
	}
	err := env.CreateServiceAccounts(b.Context(), progress("ServiceAccounts", count-len(c.roles), func(int) controlplane.ServiceAccount {
		i, arn := len(c.roles), env.NewRole()
		c.roles = append(c.roles, arn)
		return controlplane.ServiceAccount{Namespace: namespaceOf(i), Name: accountName(i), Annotations: map[string]string{role.AnnotationARN: arn}}
	}))
	if err != nil {
		b.Fatal(err)
	}
}

func (c *cluster) createNodes(b *testing.B) {
	b.Helper()
	for i := range nodeCount {
		zone := fmt.Sprintf("eu-west-1%c", 'a'+i%3)
		node := controlplane.Node{Name: fmt.Sprintf("ip-10-0-%d-%d.eu-west-1.compute.internal", i/256, i%256), Zone: zone, Region: "eu-west-1", IP: env.Address().String()}
		if err := env.CreateNode(b.Context(), node); err != nil {
			b.Fatal(err)
		}
		c.nodes = append(c.nodes, node)
	}
}

// createPods creates pods until there are so many, of one ServiceAccount after the other.
func (c *cluster) createPods(b *testing.B, count int) {
	b.Helper()
	err := env.CreatePods(b.Context(), progress("pods", count-len(c.pods), func(int) controlplane.Pod {
		i := len(c.pods)
		account, node := i%*accountCount, c.nodes[i%nodeCount]
		p := pod{env.Address(), role.Role{ARN: c.roles[account]}.Name()}
		c.pods = append(c.pods, p)
		return controlplane.Pod{
			Namespace: namespaceOf(account), Name: fmt.Sprintf("%s-5d4f7c9b8d-%05d", accountName(account), i),
			ServiceAccount: accountName(account), Node: node.Name,
			IPs: []string{p.from.String()}, HostIPs: []string{node.IP}, PadTo: podBytes,
		}
	}))
	if err != nil {
		b.Fatal(err)
	}
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

// measureFill measures the time from a server's first call of STS to its last one for these
// roles.
func measureFill(b *testing.B, roles []string, rate int) time.Duration {
	b.Helper()
	fmt.Fprintln(os.Stderr, "scale: filling the cache")
	before := len(env.STS.Attempts())
	server, _ := env.StartReleased(b, "--log-level", "info", "--drain", "0s", "--sts-rate-limit", fmt.Sprint(rate), "--sts-rate-burst", fmt.Sprint(fillBurst))
	wanted := map[string]bool{}
	for _, arn := range roles {
		wanted[arn] = true
	}
	ofServer := func(a fakests.Attempt) bool { return a.RoleARN == "" }
	ofOthers := func(a fakests.Attempt) bool { return !wanted[a.RoleARN] }
	var took time.Duration
	environment.Eventually(b, 5*time.Minute, func() error {
		all := slices.DeleteFunc(env.STS.Attempts()[before:], ofServer)
		if len(all) == 0 {
			return errors.New("no role is fetched")
		}
		first := all[0].Time
		all = slices.DeleteFunc(all, ofOthers)
		if len(all) < len(roles) {
			return fmt.Errorf("%d of %d roles", len(all), len(roles))
		}
		if len(all) > len(roles) {
			b.Errorf("%d attempts for %d roles", len(all), len(roles))
		}
		took = all[len(all)-1].Time.Sub(first)
		return nil
	})
	if err := server.Stop(); err != nil {
		b.Fatal(err)
	}
	return took
}
