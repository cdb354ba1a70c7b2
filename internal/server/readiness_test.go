package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/iam4kube/iam4kube/internal/kube"
	"github.com/iam4kube/iam4kube/internal/server/credentials"
	"github.com/iam4kube/iam4kube/internal/server/imdstoken"
	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/internal/server/sts"
	"github.com/iam4kube/iam4kube/internal/server/waiting"
)

// rig is a readiness with the real parts around it, in a bubble. STS and the list of
// the one resource that is followed answer when the test says so; the API server answers
// everything else with 401.
type rig struct {
	*readiness
	sts  chan error    // what STS answers to the next attempt
	list chan struct{} // closed: the first list has arrived
	keys atomic.Bool   // the keys of ServiceAccounts' tokens are known
}

func newRig(t *testing.T, fillWithin time.Duration) *rig {
	t.Helper()
	b := &rig{sts: make(chan error), list: make(chan struct{})}
	registry, log := prometheus.NewRegistry(), zap.NewNop()
	reach := &kube.Reach{}
	client := unauthorized(t, reach)
	watches := kube.NewWatches(reach, client, registry)
	cache := credentials.New(b, waiting.NewHub(1, 1), registry, log)
	tokens := imdstoken.NewKeys(client.Secrets("iam4kube"), registry, log)
	peers := newPeers(watches, func() []netip.Addr { return nil }, registry, log)
	b.readiness = newReadiness(watches, peers, cache, tokens, b.keys.Load, fillWithin)
	b.keys.Store(true)
	follow := kube.Follow(watches, kube.Resource[*corev1.ConfigMap, string]{
		Name:     "configmaps",
		Selector: func(*metav1.ListOptions) {},
		List: func(ctx context.Context, _ metav1.ListOptions) (runtime.Object, error) {
			select {
			case <-b.list:
				return &corev1.ConfigMapList{}, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		},
		Watch: func(_ context.Context, o metav1.ListOptions) (watch.Interface, error) {
			if o.SendInitialEvents != nil {
				return nil, apierrors.NewBadRequest("lists are not streamed")
			}
			return watch.NewFake(), nil
		},
		Keep: func(o *corev1.ConfigMap) string { return o.Name },
		Sink: nothing{},
	})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, run := range []func(context.Context) error{follow, watches.Run, cache.Run, b.Run} {
		running.Go(func() { _ = run(ctx) })
	}
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return b
}

// Admit implements credentials.STS.
func (b *rig) Admit(ctx context.Context) (context.Context, error) { return ctx, ctx.Err() }

// AssumeRole implements credentials.STS.
func (b *rig) AssumeRole(ctx context.Context, _ role.Role) (*sts.Credentials, error) {
	select {
	case err := <-b.sts:
		if err != nil {
			return nil, err
		}
		return &sts.Credentials{AccessKeyID: "ASIA", Issued: time.Now(), Expiration: time.Now().Add(time.Hour)}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type nothing struct{}

func (nothing) Replace([]string) {}
func (nothing) Set(string)       {}
func (nothing) Delete(string)    {}

// unauthorized is a client of an API server that answers 401, over pipes.
func unauthorized(t *testing.T, reach *kube.Reach) kube.Core {
	t.Helper()
	return clientOver(t, reach, func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		go answer401(server)
		return client, nil
	})
}

func clientOver(t *testing.T, reach *kube.Reach, dial func(context.Context, string, string) (net.Conn, error)) kube.Core {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	kubeconfig := `{"clusters":[{"name":"c","cluster":{"server":"http://127.0.0.1:1"}}],"contexts":[{"name":"c","context":{"cluster":"c"}}],"current-context":"c"}`
	if err := os.WriteFile(path, []byte(kubeconfig), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := kube.Config(path, "test", reach)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Dial = dial
	httpClient, hangUp, err := kube.HTTPClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(hangUp)
	client, err := kube.NewCore(cfg, httpClient)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func answer401(c net.Conn) {
	defer c.Close()
	request := make([]byte, 64<<10)
	for {
		if n, err := c.Read(request); err != nil || !bytes.HasSuffix(request[:n], []byte("\r\n\r\n")) {
			return
		}
		if _, err := fmt.Fprintf(c, "HTTP/1.1 %d Unauthorized\r\nContent-Length: 0\r\n\r\n", http.StatusUnauthorized); err != nil {
			return
		}
	}
}

func (b *rig) want(t *testing.T, want error) {
	t.Helper()
	synctest.Wait()
	if err := b.Err(); !errors.Is(err, want) {
		t.Fatalf("not ready because of %v, want %v", err, want)
	}
}

func (b *rig) learnKey() {
	b.tokens.Resource().Sink.Set(&corev1.Secret{Data: map[string][]byte{imdstoken.CurrentKey: make([]byte, imdstoken.MinKeyLength)}})
}

func roleNamed(name string) *role.Role {
	return &role.Role{ARN: "arn:aws:iam::123456789012:role/" + name, Namespace: "ns", ServiceAccount: name, SessionName: "ns@" + name, Duration: time.Hour}
}

// Ready is: the first lists are there, the token key is known, and each role of that moment
// has had one attempt, whatever came of it. Roles that come later do not matter.
func TestReadyOnceEachRoleWasTried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRig(t, time.Hour)
		for _, name := range []string{"good", "denied", "unavailable"} {
			b.cache.Want(roleNamed(name))
		}
		b.want(t, errNotSynced)
		close(b.list)
		b.want(t, errNoKey)
		b.learnKey()
		b.want(t, errNotFilled)
		b.cache.Want(roleNamed("later"))
		synctest.Wait() // all four attempts are under way
		b.sts <- nil
		b.sts <- &sts.Error{Kind: sts.Denied}
		b.want(t, errNotFilled)
		b.sts <- &sts.Error{Kind: sts.Unavailable}
		b.sts <- nil
		b.want(t, nil)
	})
}

// A role that is dropped meanwhile is not waited for.
func TestReadyWithoutRolesThatWereDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRig(t, time.Hour)
		b.learnKey()
		dropped := roleNamed("dropped")
		b.cache.Want(dropped)
		close(b.list)
		b.want(t, errNotFilled)
		b.cache.Drop(dropped)
		b.want(t, nil)
	})
}

// Roles that STS does not answer keep the server from being ready for --ready-within after
// the first lists, however long those took.
func TestReadyWithin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRig(t, time.Minute)
		b.learnKey()
		b.cache.Want(roleNamed("slow"))
		wait(time.Hour)
		b.want(t, errNotSynced)
		close(b.list)
		wait(time.Minute - time.Second)
		b.want(t, errNotFilled)
		wait(2 * time.Second)
		b.want(t, nil)
	})
}

// A server whose own credentials STS refuses, or that reaches no STS, is not ready before
// --ready-within, and says why: a rollout keeps the replicas of before.
func TestNotReadyWithoutIdentityOrSTS(t *testing.T) {
	for says, failure := range map[string]error{
		"not been tried yet: InvalidClientTokenId: refused": &sts.Error{Kind: sts.Identity, Code: "InvalidClientTokenId", Message: "refused"},
		"not been tried yet: STS cannot be reached":         &sts.Error{Kind: sts.Unavailable, Message: "STS cannot be reached"},
	} {
		t.Run(says, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newRig(t, 10*time.Minute)
				b.learnKey()
				b.cache.Want(roleNamed("app"))
				close(b.list)
				b.want(t, errNotFilled)
				for range 5 {
					b.sts <- failure
					b.want(t, errNotFilled)
					if err := b.Err(); !strings.Contains(err.Error(), says) {
						t.Errorf("says %v", err)
					}
				}
				b.sts <- nil
				b.want(t, nil)
			})
			synctest.Test(t, func(t *testing.T) {
				b := newRig(t, time.Minute)
				b.learnKey()
				b.cache.Want(roleNamed("app"))
				close(b.list)
				b.want(t, errNotFilled)
				b.sts <- failure
				wait(time.Minute - time.Second)
				b.want(t, errNotFilled)
				wait(2 * time.Second)
				b.want(t, nil)
			})
		})
	}
}

// A watch that is open and silent makes the server not ready if the API server answers, even
// with 401.
func TestNotReadyWhileAWatchIsBroken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRig(t, time.Minute)
		b.learnKey()
		close(b.list)
		b.want(t, nil)
		wait(3*time.Minute - time.Second)
		b.want(t, nil)
		// The first answer to be seen was a probe's, after 150 s.
		wait(2 * time.Minute)
		if err := b.Err(); err == nil || !strings.Contains(err.Error(), "configmaps") {
			t.Fatalf("ready (%v) although a watch is broken", err)
		}
		b.Drain()
		b.want(t, errDraining)
	})
}

// wait lets time pass in the bubble.
func wait(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // how a bubble's clock is advanced
	synctest.Wait()
}
