package bench

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
)

const (
	podCount = 64
	// Many short rounds: what else the machine does hits both servers in each of them.
	rounds     = 15
	saturation = time.Second
	fixedRate  = 1000 // requests a second to each server
	fixedTime  = 2 * time.Second

	rolesPath = "/latest/meta-data/iam/security-credentials/"
)

// BenchmarkThroughput sends warm credentials requests of 64 pods with a role each, on one
// connection per pod, to the server and in turns to a bare net/http server that answers
// the same bytes and knows nothing. Client and servers share the machine. Every answer is
// compared with what STS issued for the pod that asked.
func BenchmarkThroughput(b *testing.B) {
	ours, server := startServer(b)
	scenarios := []*scenario{
		{name: "IMDSv1", least: 0.97, most: 1.05},
		{name: "IMDSv2, with a token", token: true, least: 0.95, most: 1.08},
		{name: "/v1/credentials, with a token that was verified before", container: true, least: 0.90},
		{name: "IMDSv1, a new connection for each request", reconnect: true, least: 1, most: 1.02},
	}
	name, start := "bare net/http", startBare
	if program := os.Getenv(againstEnv); program != "" {
		name, start = filepath.Base(program), func(b *testing.B, ours *peer) *peer { b.Helper(); return startAgainst(b, program, ours) }
		for _, s := range scenarios {
			s.least, s.most = 0.98, 1.02
		}
	}
	other := start(b, ours)
	if len(other.containerPods) == 0 {
		scenarios = slices.DeleteFunc(scenarios, func(s *scenario) bool { return s.container })
	}
	for round := range rounds {
		fmt.Fprintf(os.Stderr, "throughput: round %d of %d\n", round+1, rounds)
		order := []*peer{ours, other}
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, s := range scenarios {
			for _, p := range order {
				s.saturate(b, p)
			}
			if !s.reconnect {
				s.pace(b, order)
			}
		}
	}
	tokens := measureTokens(b, ours)
	checkMetrics(b, server, ours)
	report(scenarios, name)
	tokens.report()
	b.ReportMetric(0, "ns/op") // the time of all rounds says nothing
}

// againstEnv names the environment variable with a program of the server, of another commit, that
// stands for the bare server: `make bench-against`.
const againstEnv = "IAM4KUBE_BENCH_AGAINST"

// peer is one of the servers that are compared.
type peer struct {
	address string
	pid     int
	// other is what ours is compared with.
	other bool
	// pods are its clients, tokenPods the same with an IMDSv2 token, containerPods the same at
	// /v1/credentials with a token of their ServiceAccount.
	pods, tokenPods, containerPods []*pod
	answered                       int
}

// index of a peer in what is measured.
func (p *peer) index() int {
	if p.other {
		return 1
	}
	return 0
}

// podsNamespace is that of a benchmark's 64 pods.
func podsNamespace(b *testing.B) string {
	b.Helper()
	return strings.ToLower(b.Name())
}

var serverFlags = []string{"--log-level", "info", "--sts-rate-limit", "1000", "--sts-rate-burst", "100"}

// startServer starts the server and fills it with 64 pods, each with a ServiceAccount and
// a role of its own.
func startServer(b *testing.B) (*peer, *environment.Server) {
	b.Helper()
	server, process := env.StartReleased(b, serverFlags...)
	server.WaitReady(b) // with the key for tokens
	p := &peer{address: server.Address, pid: process.Pid}
	if err := env.CreateNamespace(b.Context(), podsNamespace(b)); err != nil {
		b.Fatal(err)
	}
	for i := range podCount {
		name, arn, from := fmt.Sprintf("app-%d", i), env.NewRole(), env.Address()
		account := controlplane.ServiceAccount{Namespace: podsNamespace(b), Name: name, Annotations: map[string]string{role.AnnotationARN: arn}}
		if err := env.CreateServiceAccount(b.Context(), account); err != nil {
			b.Fatal(err)
		}
		object := controlplane.Pod{Namespace: podsNamespace(b), Name: name, ServiceAccount: name, IPs: []string{from.String()}}
		if _, err := env.CreatePod(b.Context(), object); err != nil {
			b.Fatal(err)
		}
		path := rolesPath + role.Role{ARN: arn}.Name()
		status, body := server.Get(b, from, path)
		if status != http.StatusOK {
			b.Fatalf("%s: %d %s", from, status, body)
		}
		checkOwner(b, body, arn, podsNamespace(b)+"@"+name)
		p.pods = append(p.pods, &pod{from: from, want: []byte(body), request: imdsRequest(path, "")})
		p.tokenPods = append(p.tokenPods, &pod{from: from, want: []byte(body), request: imdsRequest(path, newToken(b, server, from))})
		p.containerPods = append(p.containerPods, newContainerPod(b, server, from, name, arn))
	}
	return p, server
}

// imdsRequest is one with an IMDSv2 token, unless that is empty.
func imdsRequest(path, token string) []byte {
	request := "GET " + path + " HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: bench\r\n"
	if token != "" {
		request += "X-aws-ec2-metadata-token: " + token + "\r\n"
	}
	return []byte(request + "\r\n")
}

// checkOwner checks that the body are the credentials that STS issued for this role and
// session.
func checkOwner(b *testing.B, body, arn, session string) {
	b.Helper()
	var document struct{ AccessKeyId, SecretAccessKey, Token string }
	if err := json.Unmarshal([]byte(body), &document); err != nil {
		b.Fatalf("%v: %s", err, body)
	}
	issued, _ := env.STS.Issued(document.AccessKeyId)
	if issued.RoleARN != arn || issued.SessionName != session || issued.SecretAccessKey != document.SecretAccessKey || issued.SessionToken != document.Token {
		b.Fatalf("not the credentials of %s for %s: %s", arn, session, body)
	}
}

// checkMetrics checks that the server has counted what the clients were answered, so that
// no request went elsewhere.
func checkMetrics(b *testing.B, server *environment.Server, p *peer) {
	b.Helper()
	want := float64(p.answered + 2*podCount) // and one to warm each pod up
	got := server.Metric(b, "iam4kube_http_requests_total", "endpoint", "credentials", "code", "200") +
		server.Metric(b, "iam4kube_http_requests_total", "endpoint", "container", "code", "200")
	if got != want {
		b.Errorf("the server counts %v requests, the clients %v", got, want)
	}
}

// scenario is one way to ask, with what was measured, round by round.
type scenario struct {
	name      string
	token     bool
	container bool
	reconnect bool
	// least and most are the contract's bounds for the ratios of requests per second and of
	// processor time.
	least, most float64

	perSecond, processor, p99 [2][]float64 // of the server and of the other one
}

func (s *scenario) pods(p *peer) []*pod {
	switch {
	case s.token:
		return p.tokenPods
	case s.container:
		return p.containerPods
	}
	return p.pods
}

// saturate measures requests per second, and the processor time of each in microseconds.
func (s *scenario) saturate(b *testing.B, p *peer) {
	b.Helper()
	var answered atomic.Int64
	before, start := environment.ProcessorTime(b, p.pid), time.Now()
	err := s.each(b, p, func(_ int, client *pod) error {
		n, err := client.saturate(b.Context(), p.address, start.Add(saturation), s.reconnect)
		answered.Add(int64(n))
		return err
	})
	took, used, n := time.Since(start), environment.ProcessorTime(b, p.pid)-before, float64(answered.Load())
	if err != nil {
		b.Fatal(err)
	}
	p.answered += int(answered.Load())
	i := p.index()
	s.perSecond[i] = append(s.perSecond[i], n/took.Seconds())
	s.processor[i] = append(s.processor[i], float64(used.Microseconds())/n)
}

// pace measures the 99th percentile of the time to an answer at a fixed rate, in
// milliseconds: of both servers at once, request by request in turns, because what shares
// the machine with them for a moment shows first in this figure.
func (s *scenario) pace(b *testing.B, peers []*peer) {
	b.Helper()
	const every = time.Second * podCount / fixedRate
	start := time.Now().Add(50 * time.Millisecond) // when all are connected
	var group errgroup.Group
	for turn, p := range peers {
		group.Go(func() error {
			var mu sync.Mutex
			var all []time.Duration
			err := s.each(b, p, func(i int, client *pod) error {
				first := start.Add(every * time.Duration(2*i+turn) / (2 * podCount))
				took, err := client.pace(first, every, int(fixedTime/every))
				mu.Lock()
				defer mu.Unlock()
				all = append(all, took...)
				return err
			})
			if err != nil {
				return err
			}
			p.answered += len(all)
			slices.Sort(all)
			i := p.index()
			s.p99[i] = append(s.p99[i], float64(all[len(all)*99/100].Microseconds())/1000)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		b.Fatal(err)
	}
}

// each runs do for every pod at once, connected unless the scenario does that itself.
func (s *scenario) each(b *testing.B, p *peer, do func(int, *pod) error) error {
	b.Helper()
	clients := s.pods(p)
	var connected, group errgroup.Group
	for _, client := range clients {
		if !s.reconnect {
			connected.Go(func() error { return client.dial(b.Context(), p.address) })
		}
	}
	if err := connected.Wait(); err != nil {
		return err
	}
	for i, client := range clients {
		group.Go(func() error {
			if !s.reconnect {
				defer client.close()
			}
			if err := do(i, client); err != nil {
				return fmt.Errorf("%s: pod %s: %w", s.name, client.from, err)
			}
			return nil
		})
	}
	return group.Wait()
}
