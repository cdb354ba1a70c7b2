package clients

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/netns"
	"github.com/iam4kube/iam4kube/test/node"
)

var cluster = sync.OnceValues(func() (*node.Cluster, error) { return node.NewCluster(context.Background(), env.ControlPlane) })

// deployment is replicas of the server, each in a pod, behind the rules of a node. The test
// writes their EndpointSlices when and as Kubernetes would.
type deployment struct {
	service *node.Service
	drain   string
	states  map[*replica]func(address string) node.State
	added   int
}

type replica struct {
	*environment.Server
	process   *os.Process
	addresses []string // IPv4, IPv6
}

// sliceNames are those of the EndpointSlices, in the order of a replica's addresses.
var sliceNames = []string{"ipv4", "ipv6"}

func notReady(address string) node.State {
	return node.State{Address: address, Ready: new(false), Serving: new(false), Terminating: new(false)}
}

// deploy starts what leads to the replicas, of which there are none yet.
func deploy(t *testing.T, drain string) *deployment {
	t.Helper()
	netns.NewFarSide(t)
	c, err := cluster()
	if err != nil {
		t.Fatal(err)
	}
	d := &deployment{service: c.NewService(), drain: drain, states: map[*replica]func(string) node.State{}}
	d.service.Start(t).WaitReady(t)
	return d
}

// add starts a replica and returns when pods are led to it.
func (d *deployment) add(t *testing.T) *replica {
	t.Helper()
	d.added++
	r := &replica{addresses: []string{fmt.Sprint("10.244.1.", d.added), fmt.Sprint("fd00:10:244:1::", d.added)}}
	p := netns.AddPod(t, r.addresses...)
	r.Server, r.process = env.StartInPod(t, p, "--listen-on", fmt.Sprint(":", node.Port),
		"--aux-listen-on", r.addresses[0]+":9090", "--drain", d.drain)
	d.set(t, r, notReady)
	r.WaitReady(t)
	d.set(t, r, node.Ready)
	d.waitRules(t, r, true)
	return r
}

// set writes the EndpointSlices with another state of a replica; nil: it is gone.
func (d *deployment) set(t *testing.T, r *replica, state func(string) node.State) {
	t.Helper()
	d.states[r] = state
	for i, name := range sliceNames {
		var states []node.State
		for r, state := range d.states {
			if state != nil {
				states = append(states, state(r.addresses[i]))
			}
		}
		d.service.Set(t, name, states...)
	}
}

// waitRules returns when the kernel leads new connections to a replica, or does not.
func (d *deployment) waitRules(t *testing.T, r *replica, want bool) {
	t.Helper()
	environment.Eventually(t, 10*time.Second, func() error {
		rules := node.NFT(t, "list", "ruleset")
		for _, address := range r.addresses {
			to := "dnat to " + net.JoinHostPort(address, fmt.Sprint(node.Port))
			if strings.Contains(rules, to+"\n") != want {
				return fmt.Errorf("the rules have %q: %t", to, !want)
			}
		}
		return nil
	})
}

// terminate ends a replica under load as Kubernetes does, in the worse order: the slices
// follow some requests after the signal.
func (d *deployment) terminate(t *testing.T, r *replica, l *load) {
	t.Helper()
	wantAsked(t, r)
	if err := r.process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	l.waitEach(10, time.Now(), newConnections)
	d.set(t, r, node.Draining)
	<-r.Done()
	d.set(t, r, nil)
}

// wantAsked checks that a replica has had its share of the clients, and took the tokens of
// the others.
func wantAsked(t *testing.T, r *replica) {
	t.Helper()
	if r.Metric(t, "iam4kube_http_requests_total", "endpoint", "credentials", "code", "200") == 0 {
		t.Errorf("%s has answered no request for credentials", r.addresses[0])
	}
	if r.Metric(t, "iam4kube_http_requests_total", "code", "401") != 0 {
		t.Errorf("%s has refused a token", r.addresses[0])
	}
}

// Every client gets its own pod's credentials and region from either replica, by IPv6 too.
func TestEveryClientIsLedToAReplica(t *testing.T) {
	d := deploy(t, "0s")
	serveS3(t)
	two := twoPods(t, "led")
	d.add(t)
	d.add(t)
	forEachClient(t, two, func(t *testing.T, c client, p pod) {
		t.Helper()
		wantOwn(t, p, c.run(t, p))
	})
	for _, p := range two {
		wantOwn(t, p, clientGoV2.runWith(t, p, []string{"AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE=IPv6"}, "-times", "20"))
	}
	for r := range d.states {
		wantAsked(t, r)
	}
}

// Both of two replicas are replaced, one of them after its successor is ready, the other
// one before.
func TestNoClientFailsWhileReplicasAreReplaced(t *testing.T) {
	d := deploy(t, "2s")
	pods := slices.Concat(twoPods(t, "replaced-1"), twoPods(t, "replaced-2"))
	first, second := d.add(t), d.add(t)
	l := startLoad(t, pods)
	l.waitEach(1, time.Now(), newConnections, keepAlive)
	start := time.Now()
	third := d.add(t)
	d.terminate(t, first, l)
	d.terminate(t, second, l)
	fourth := d.add(t)
	l.waitEach(1, start, kinds()...)
	l.waitEach(1, time.Now(), newConnections, keepAlive)
	for _, r := range []*replica{third, fourth} {
		wantAsked(t, r)
	}
	within, outside := l.failures(start, time.Now())
	for _, err := range slices.Concat(within, outside) {
		t.Error(err)
	}
}

// Kubernetes takes a moment to notice that a replica was killed; here that lasts until
// every client has met it.
func TestKilledReplicaFailsRequestsOnlyUntilItsEndpointIsGone(t *testing.T) {
	d := deploy(t, "0s")
	pods := slices.Concat(twoPods(t, "killed-1"), twoPods(t, "killed-2"))
	victim, other := d.add(t), d.add(t)
	l := startLoad(t, pods)
	l.waitEach(1, time.Now(), newConnections, keepAlive)
	killed := time.Now()
	if err := victim.process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = victim.Wait() // says that it was killed
	l.waitEach(1, killed, kinds()...)
	d.set(t, victim, nil)
	written := time.Now()
	d.waitRules(t, victim, false)
	removed := time.Now()
	l.waitEach(1, removed, kinds()...)
	wantAsked(t, other)
	within, outside := l.failures(killed, removed)
	t.Logf("gone from the slices after %v, from the rules %v later", written.Sub(killed), removed.Sub(written))
	if len(within) == 0 {
		t.Error("nobody met the replica that was killed")
	}
	for _, err := range outside {
		t.Error(err)
	}
}

// Without a replica every client is refused at once, and served as soon as there is one.
func TestEveryClientIsRefusedWithoutAReplica(t *testing.T) {
	d := deploy(t, "0s")
	p := twoPods(t, "none")[0]
	for _, address := range netns.MetadataAddresses {
		var took []time.Duration
		for range 20 {
			start := time.Now()
			conn, err := p.DialContext(t.Context(), "tcp", net.JoinHostPort(address, "80"))
			took = append(took, time.Since(start))
			if err == nil {
				conn.Close()
			}
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Fatalf("connecting to %s: %v, want to be refused", address, err)
			}
		}
		slices.Sort(took)
		if median := took[len(took)/2]; median >= 100*time.Millisecond {
			t.Errorf("half of the connections to %s were refused after %v only, want less than 100ms", address, median)
		}
	}
	noClientFindsAnything(t, p)
	d.add(t)
	wantOwn(t, p, clientGoV2.run(t, p))
}
