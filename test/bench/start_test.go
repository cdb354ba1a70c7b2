package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
)

const (
	startAccounts, startPods = 1000, 5000
	// oneAttempt is how long each pod waits for its only answer.
	oneAttempt = 2 * time.Second
)

// BenchmarkStart starts 5,000 pods of 1,000 ServiceAccounts, each of which asks with its token
// once and gives up after two seconds: every pod in the moment in which it has its address and
// its token, as fast as the API server makes them, so that some come before the server knows
// of their pod; and then all of them in the same moment, with new tokens. It is what the agent
// of EKS Pod Identity is tested with. Client, API server and server share the machine.
func BenchmarkStart(b *testing.B) {
	server, process := env.StartReleased(b, "--log-level", "info", "--sts-rate-limit", "1000", "--sts-rate-burst", "100")
	pods := startingPods(b)
	server.WaitReady(b)
	awaitCredentials(b, server)

	begin, before := time.Now(), environment.ProcessorTime(b, process.Pid)
	var group errgroup.Group
	group.SetLimit(16) // the API server is the limit
	for _, p := range pods {
		group.Go(func() error {
			if err := p.create(b.Context()); err != nil {
				return err
			}
			p.attempt(b.Context(), server.Address)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		b.Fatal(err)
	}
	results := []startResult{newStartResult(b, "each when it has its token", pods, time.Since(begin), environment.ProcessorTime(b, process.Pid)-before)}

	for _, p := range pods {
		group.Go(func() error { return p.requestToken(b.Context()) })
	}
	if err := group.Wait(); err != nil {
		b.Fatal(err)
	}
	var all sync.WaitGroup
	gate := make(chan struct{})
	for _, p := range pods {
		all.Go(func() {
			<-gate
			p.attempt(b.Context(), server.Address)
		})
	}
	begin, before = time.Now(), environment.ProcessorTime(b, process.Pid)
	close(gate)
	all.Wait()
	results = append(results, newStartResult(b, "all at once, with new tokens", pods, time.Since(begin), environment.ProcessorTime(b, process.Pid)-before))
	reportStart(results)
	b.ReportMetric(0, "ns/op")
}

// startingPod is a pod that asks once.
type startingPod struct {
	controlplane.Pod
	from netip.Addr
	arn  string
	uid  types.UID

	token string
	body  []byte
	took  time.Duration
	err   error
}

// startingPods creates the ServiceAccounts, and says of which pods there will be.
func startingPods(b *testing.B) []*startingPod {
	b.Helper()
	namespace := func(account int) string { return fmt.Sprintf("start-%d", account%20) }
	name := func(account int) string { return fmt.Sprintf("application-%d", account) }
	for i := range 20 {
		if err := env.CreateNamespace(b.Context(), namespace(i)); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { // the servers of other benchmarks would ask for these roles, too
			core, ctx := env.Client.CoreV1(), context.WithoutCancel(b.Context())
			now := metav1.DeleteOptions{GracePeriodSeconds: new(int64)}
			if err := errors.Join(
				core.Pods(namespace(i)).DeleteCollection(ctx, now, metav1.ListOptions{}),
				core.ServiceAccounts(namespace(i)).DeleteCollection(ctx, now, metav1.ListOptions{}),
			); err != nil {
				b.Error(err)
			}
		})
	}
	arns := make([]string, startAccounts)
	err := env.CreateServiceAccounts(b.Context(), func(yield func(controlplane.ServiceAccount) bool) {
		for i := range arns {
			arns[i] = env.NewRole()
			account := controlplane.ServiceAccount{Namespace: namespace(i), Name: name(i), Annotations: map[string]string{role.AnnotationARN: arns[i]}}
			if !yield(account) {
				return
			}
		}
	})
	if err != nil {
		b.Fatal(err)
	}
	pods := make([]*startingPod, startPods)
	for i := range pods {
		account, from := i%startAccounts, env.Address()
		pods[i] = &startingPod{from: from, arn: arns[account], Pod: controlplane.Pod{
			Namespace: namespace(account), Name: fmt.Sprintf("%s-5d4f7c9b8d-%05d", name(account), i), ServiceAccount: name(account), IPs: []string{from.String()},
		}}
	}
	return pods
}

// awaitCredentials waits until the server has those of every role: pods that start are late
// compared with their ServiceAccounts.
func awaitCredentials(b *testing.B, server *environment.Server) {
	b.Helper()
	environment.Eventually(b, time.Minute, func() error {
		valid, pending := server.Metric(b, "iam4kube_roles", "state", "valid"), server.Metric(b, "iam4kube_roles", "state", "pending")
		if valid < startAccounts || pending > 0 {
			return fmt.Errorf("%v roles have credentials, %v have none yet", valid, pending)
		}
		return nil
	})
}

// create creates the pod, and then its token as its kubelet would.
func (p *startingPod) create(ctx context.Context) error {
	created, err := env.CreatePod(ctx, p.Pod)
	if err != nil {
		return err
	}
	p.uid = created.UID
	return p.requestToken(ctx)
}

func (p *startingPod) requestToken(ctx context.Context) (err error) {
	p.token, err = podToken(ctx, p.Namespace, p.Name, p.uid, p.ServiceAccount)
	return err
}

// attempt asks once, on a connection of its own.
func (p *startingPod) attempt(ctx context.Context, to string) {
	ctx, cancel := context.WithTimeout(ctx, oneAttempt)
	defer cancel()
	start := time.Now()
	p.body, p.err = func() ([]byte, error) {
		client := &pod{from: p.from, request: containerRequest(p.token)}
		if err := client.dial(ctx, to); err != nil {
			return nil, err
		}
		defer client.close()
		if err := client.conn.SetDeadline(start.Add(oneAttempt)); err != nil {
			return nil, err
		}
		if _, err := client.conn.Write(client.request); err != nil {
			return nil, err
		}
		body, err := client.read()
		return bytes.Clone(body), err
	}()
	p.took = time.Since(start)
}

// startResult is how the pods fared.
type startResult struct {
	name   string
	failed int
	// took are the times to an answer, sorted; all is how long it took until the last pod had
	// one, and used what the server took of the processor meanwhile.
	took      []time.Duration
	all, used time.Duration
}

func newStartResult(b *testing.B, name string, pods []*startingPod, all, used time.Duration) startResult {
	b.Helper()
	r := startResult{name: name, all: all, used: used}
	for _, p := range pods {
		r.took = append(r.took, p.took)
		if p.err != nil {
			if r.failed++; r.failed <= 3 {
				b.Logf("%s: %s: after %v: %v", name, p.Name, p.took, p.err)
			}
			continue
		}
		checkOwner(b, string(p.body), p.arn, p.Namespace+"@"+p.ServiceAccount)
	}
	slices.Sort(r.took)
	return r
}

func reportStart(results []startResult) {
	var text strings.Builder
	fmt.Fprintf(&text, "\n%d pods of %d ServiceAccounts start, each with one attempt of %v, by token\n\n", startPods, startAccounts, oneAttempt)
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "\tfailed\tp50, ms\tp99, ms\tmax, ms\tall within, s\tserver CPU per pod, µs\tcontract\t")
	for _, r := range results {
		contract := "0 failed"
		if r.failed > 0 {
			contract += "  MISSED"
		}
		fmt.Fprintf(table, "%s\t%d\t%.1f\t%.1f\t%.1f\t%.1f\t%d\t%s\t\n", r.name, r.failed, percentile(r.took, 50), percentile(r.took, 99), percentile(r.took, 100),
			r.all.Seconds(), r.used.Microseconds()/startPods, contract)
	}
	_ = table.Flush() // a Builder never fails
	_, _ = os.Stdout.WriteString(text.String() + "\n")
}
