package outage

import (
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/iam4kube/iam4kube/internal/server"
	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
)

// scene is a cluster in which things happen during an outage of the API server, seen from a
// server under load.
type scene struct {
	server *environment.Server
	load   *load
	// lasting pods are there all the time.
	lasting []workload
	// old is deleted and its address handed to next; gone is deleted; lonely loses its
	// ServiceAccount; moved gets another role; late is new.
	old, next, gone, lonely, moved, late workload
	// waiting is late's request, sent while the API server is away.
	waiting <-chan error
	// usual is how long it takes to create a pod and have it served, on this machine
	// under this load.
	usual time.Duration
}

func newScene(t *testing.T, namespace string, cfg server.Config) *scene {
	t.Helper()
	newNamespace(t, namespace)
	c := &scene{}
	for i := range 4 {
		c.lasting = append(c.lasting, newWorkload(namespace, fmt.Sprint("lasting-", i)).create(t))
	}
	c.old = newWorkload(namespace, "old").create(t)
	c.next = newWorkload(namespace, "next").onAddressOf(c.old).createAccount(t)
	c.gone = newWorkload(namespace, "gone").create(t)
	c.lonely = newWorkload(namespace, "lonely").create(t)
	c.moved = newWorkload(namespace, "moved").create(t)
	c.late = newWorkload(namespace, "late")
	cfg.MaxWait = time.Minute
	c.server = env.Start(t, cfg)
	c.server.WaitReady(t)
	warm(t, c.server, append(c.lasting, c.old, c.gone, c.lonely, c.moved)...)
	c.load = startLoad(t, c.server, nil, c.lasting...)
	c.usual = c.serveAnother(t, "usual")
	return c
}

// serveAnother creates a pod and returns how long it took until it was served.
func (c *scene) serveAnother(t *testing.T, name string) time.Duration {
	t.Helper()
	start := time.Now()
	warm(t, c.server, newWorkload(c.late.Namespace, name).create(t))
	return time.Since(start)
}

// happen changes the cluster in a way that the server cannot see.
func (c *scene) happen(t *testing.T) {
	t.Helper()
	c.old.deletePod(t)
	c.next.createPod(t)
	c.gone.deletePod(t)
	accounts := env.Client.CoreV1().ServiceAccounts(c.late.Namespace)
	if err := accounts.Delete(t.Context(), c.lonely.ServiceAccount, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.moved.arn = env.NewRole()
	patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}}}`, role.AnnotationARN, c.moved.arn)
	if _, err := accounts.Patch(t.Context(), c.moved.ServiceAccount, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	c.late.create(t)
}

// ask sends late's request, which has to wait.
func (c *scene) ask(t *testing.T) {
	t.Helper()
	c.waiting = c.late.request(t, c.server)
	environment.Eventually(t, 10*time.Second, func() error {
		select {
		case err := <-c.waiting:
			t.Fatalf("late's request did not wait: %v", err)
		default:
		}
		if c.server.Metric(t, "iam4kube_waiting_requests", "missing", "pod") == 0 {
			return errors.New("late's request does not wait")
		}
		return nil
	})
}

// away checks what holds while the API server is away, for at least so long.
func (c *scene) away(t *testing.T, d time.Duration) {
	t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); pass(t, 200*time.Millisecond) {
		if status, body := c.server.Readyz(t); status != http.StatusOK {
			t.Fatalf("readiness changed although the API server does not answer: %s", body)
		}
		select {
		case err := <-c.waiting:
			t.Fatalf("the new pod's request did not wait: %v", err)
		default:
		}
	}
	warm(t, c.server, c.lasting...)
}

// resumeWithin is the promise; creating a pod and serving it takes its time besides, more
// of it where the machine is busy with other tests.
const (
	resumeWithin = 2 * time.Second
	serveWithin  = time.Second
)

// back checks what holds once the API server is back.
func (c *scene) back(t *testing.T) {
	t.Helper()
	took := c.serveAnother(t, "fresh")
	t.Logf("a pod created right after the return was served after %v, before the outage after %v", took, c.usual)
	if took > resumeWithin+max(c.usual, serveWithin) {
		t.Errorf("the watches were not back within %v", resumeWithin)
	}
	if err := <-c.waiting; err != nil {
		t.Errorf("the request of the pod that appeared during the outage: %v", err)
	}
	// The watches of pods and ServiceAccounts are two, and fresh proves that both are back.
	for range 20 {
		warm(t, c.server, c.next, c.moved)
		if status, body := c.server.Get(t, c.old.from, c.old.path()); status != http.StatusNotFound {
			t.Fatalf("the role of an address's former pod: %d %s", status, body)
		}
	}
	if status, body := c.server.Readyz(t); status != http.StatusOK {
		t.Errorf("not ready after the return: %s", body)
	}
	for _, w := range []workload{c.gone, c.lonely} {
		if status, body := c.server.Get(t, w.from, "/iam4kube/ready"); status != http.StatusServiceUnavailable {
			t.Errorf("%s, which cannot be served since the outage: %d %s", w.Name, status, body)
		}
	}
	c.load.mustHaveServed(t)
}

// An outage of the API server, refused or without any answer, shorter than what a connection
// survives or longer: no warm pod notices it, neither in it nor at its end, readiness stays,
// and what was missed is caught up.
func TestAPIServerOutage(t *testing.T) {
	t.Parallel()
	for _, outage := range []struct {
		name string
		mode controlplane.GateMode
		long time.Duration
	}{
		{"refused", controlplane.Refuse, 4 * time.Second},
		{"short-black-hole", controlplane.BlackHole, 2 * time.Second},
		// HTTP/2 gives a connection up after 10 s, so this one is made anew.
		{"long-black-hole", controlplane.BlackHole, 14 * time.Second},
	} {
		t.Run(outage.name, func(t *testing.T) {
			t.Parallel()
			gate, cfg := newGate(t)
			c := newScene(t, outage.name, cfg)
			set(t, gate, outage.mode)
			c.happen(t)
			c.ask(t)
			c.away(t, outage.long)
			set(t, gate, controlplane.Pass)
			c.back(t)
		})
	}
}

// Connections that are reset again and again, by a load balancer, say.
func TestAPIServerConnectionsReset(t *testing.T) {
	t.Parallel()
	gate, cfg := newGate(t)
	c := newScene(t, "reset", cfg)
	c.ask(t)
	for range 10 {
		gate.ResetAll()
		pass(t, 100*time.Millisecond)
	}
	c.happen(t)
	c.back(t)
}

// The API server ends and starts again, as with an upgrade of a single control plane.
func TestAPIServerRestarts(t *testing.T) {
	_, cfg := newGate(t)
	c := newScene(t, "restart", cfg)
	if err := env.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	c.ask(t)
	c.away(t, 2*time.Second)
	if err := env.StartAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.happen(t)
	c.back(t)
}

// What happened meanwhile is not in the API server's memory any more, so that the watches
// cannot be resumed (410) and everything is listed anew.
func TestAPIServerForgetsWhatHappened(t *testing.T) {
	gate, cfg := newGate(t)
	c := newScene(t, "forgets", cfg)
	set(t, gate, controlplane.Refuse)
	c.happen(t)
	c.ask(t)
	if err := env.ExpireWatches(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.away(t, 0)
	set(t, gate, controlplane.Pass)
	c.back(t)
}

// A server that starts while the API server is away answers what it can, is not ready, and
// needs nobody to recover.
func TestServerStartsDuringAnOutage(t *testing.T) {
	t.Parallel()
	for name, mode := range map[string]controlplane.GateMode{"start-refused": controlplane.Refuse, "start-black-hole": controlplane.BlackHole} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gate, cfg := newGate(t)
			cfg.MaxWait = time.Minute
			w := newWorkload(newNamespace(t, name), "app").create(t)
			set(t, gate, mode)
			s := env.Start(t, cfg)
			request := w.request(t, s)
			client := s.Client(t, w.from)
			for range 30 {
				if status, body := s.Readyz(t); status != http.StatusServiceUnavailable {
					t.Fatalf("/readyz: %d %s", status, body)
				}
				start := time.Now()
				response, body, err := s.Do(t.Context(), client, http.MethodPut, "/latest/api/token", http.Header{"X-Aws-Ec2-Metadata-Token-Ttl-Seconds": {"60"}})
				if err != nil {
					t.Fatal(err)
				}
				if took := time.Since(start); response.StatusCode != http.StatusServiceUnavailable || took > time.Second {
					t.Fatalf("token: %d %s after %v", response.StatusCode, body, took)
				}
				pass(t, 100*time.Millisecond)
			}
			select {
			case err := <-request:
				t.Fatalf("the request did not wait: %v", err)
			default:
			}
			start := time.Now()
			set(t, gate, controlplane.Pass)
			if err := <-request; err != nil {
				t.Fatal(err)
			}
			t.Logf("served %v after the return", time.Since(start))
			s.WaitReady(t)
			t.Logf("ready %v after the return", time.Since(start))
			warm(t, s, w)
		})
	}
}
