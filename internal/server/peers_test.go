package server

import (
	"context"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/klog/v2"

	"github.com/iam4kube/iam4kube/internal/kube"
)

func TestMain(m *testing.M) {
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	// client-go's own handlers log too, and limit themselves by a global clock that does
	// not survive the step from one bubble's time to the next one's.
	utilruntime.ErrorHandlers = nil //nolint:reassign // the only way
	os.Exit(m.Run())
}

// replica is so much of a server as judges what it hears, in a bubble. The API server's
// words come by hear; whether it answers requests, with 401, is reached.
type replica struct {
	watches   *kube.Watches
	peers     *peers
	staleness *staleness
	registry  *prometheus.Registry

	reached atomic.Bool
	mu      sync.Mutex
	watch   *watch.FakeWatcher
	// others are what answers on the addresses of the other replicas.
	others map[netip.Addr]http.HandlerFunc
	asked  atomic.Int64
	stale  atomic.Bool
}

func newReplica(t *testing.T, maxStaleness time.Duration, others map[netip.Addr]http.HandlerFunc) *replica {
	t.Helper()
	r := &replica{registry: prometheus.NewRegistry(), others: others}
	r.reached.Store(true)
	reach := &kube.Reach{}
	client := clientOver(t, reach, func(context.Context, string, string) (net.Conn, error) {
		if !r.reached.Load() {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
		}
		client, server := net.Pipe()
		go answer401(server)
		return client, nil
	})
	r.watches = kube.NewWatches(reach, client, r.registry)
	r.peers = newPeers(r.watches, func() []netip.Addr {
		r.mu.Lock()
		defer r.mu.Unlock()
		return slices.Collect(maps.Keys(r.others))
	}, r.registry, zap.NewNop())
	r.peers.port = 9090
	r.peers.client.Transport = r
	r.staleness = newStaleness(r.watches, maxStaleness, r.stale.Store, r.registry, zap.NewNop())
	follow := kube.Follow(r.watches, kube.Resource[*corev1.ConfigMap, string]{
		Name:     "configmaps",
		Selector: func(*metav1.ListOptions) {},
		List: func(context.Context, metav1.ListOptions) (runtime.Object, error) {
			if !r.reached.Load() {
				return nil, syscall.ECONNREFUSED
			}
			return &corev1.ConfigMapList{}, nil
		},
		Watch: func(_ context.Context, o metav1.ListOptions) (watch.Interface, error) {
			if o.SendInitialEvents != nil {
				return nil, apierrors.NewBadRequest("lists are not streamed")
			}
			if !r.reached.Load() {
				return nil, syscall.ECONNREFUSED
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			r.watch = watch.NewFake()
			return r.watch, nil
		},
		Keep: func(o *corev1.ConfigMap) string { return o.Name },
		Sink: nothing{},
	})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, run := range []func(context.Context) error{follow, r.watches.Run, r.peers.Run, r.staleness.Run} {
		running.Go(func() { _ = run(ctx) })
	}
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	synctest.Wait()
	return r
}

// RoundTrip implements http.RoundTripper for what peers are asked.
func (r *replica) RoundTrip(request *http.Request) (*http.Response, error) {
	r.asked.Add(1)
	address := netip.MustParseAddrPort(request.URL.Host)
	recorder := httptest.NewRecorder()
	switch {
	case address.Port() != 9090:
		return nil, syscall.ECONNREFUSED
	case request.URL.Path == "/readyz/watches":
		r.mu.Lock()
		answer := r.others[address.Addr()]
		r.mu.Unlock()
		answer(recorder, request)
	}
	if err := request.Context().Err(); err != nil {
		return nil, err
	}
	return recorder.Result(), nil
}

// hear is a word of the API server.
func (r *replica) hear() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.watch.Action(watch.Bookmark, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{ResourceVersion: "2"}})
	synctest.Wait()
}

// hearFor is a quiet cluster.
func (r *replica) hearFor(d time.Duration) {
	for range d / time.Minute {
		r.hear()
		wait(time.Minute)
	}
}

// lose cuts the replica off.
func (r *replica) lose() {
	r.reached.Store(false)
	r.mu.Lock()
	r.watch.Stop()
	r.mu.Unlock()
	synctest.Wait()
}

func says(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }
}

var other, another = netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::3")

func TestCutOff(t *testing.T) {
	for _, tc := range []struct {
		name   string
		others map[netip.Addr]http.HandlerFunc
		cutOff bool
	}{
		{"another hears", map[netip.Addr]http.HandlerFunc{other: says(503), another: says(200)}, true},
		{"no other", nil, false},
		{"nobody hears", map[netip.Addr]http.HandlerFunc{other: says(503), another: says(503)}, false},
		{"an older version", map[netip.Addr]http.HandlerFunc{other: says(404)}, false},
		{"a redirect", map[netip.Addr]http.HandlerFunc{other: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/healthz", http.StatusFound)
		}}, false},
		{"no answer", map[netip.Addr]http.HandlerFunc{other: func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }}, false},
		{"one does not answer", map[netip.Addr]http.HandlerFunc{
			other: func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, another: says(200),
		}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newReplica(t, 0, tc.others)
				r.hearFor(10 * time.Minute)
				if r.asked.Load() > 0 {
					t.Error("others are asked while all is well")
				}
				r.lose()
				wait(30 * time.Second) // 90 s after the last word
				if err := r.peers.Err(); err != nil || r.asked.Load() > 0 {
					t.Errorf("asked %d times, %v", r.asked.Load(), err)
				}
				wait(time.Minute)
				r.wantCutOff(t, tc.cutOff)
				if tc.cutOff { // what the others say later makes it know no more
					r.mu.Lock()
					for a := range r.others {
						r.others[a] = says(503)
					}
					r.mu.Unlock()
				}
				asked := r.asked.Load()
				wait(time.Hour)
				r.wantCutOff(t, tc.cutOff)
				if more := r.asked.Load() - asked; tc.cutOff && more > 0 {
					t.Errorf("asked %d times more", more)
				}
				r.reached.Store(true)
				wait(2 * time.Second)
				r.wantCutOff(t, false)
			})
		})
	}
}

func (r *replica) wantCutOff(t *testing.T, want bool) {
	t.Helper()
	err := r.peers.Err()
	if (err != nil) != want || want && !strings.Contains(err.Error(), another.String()) {
		t.Errorf("cut off: %v, want %t", err, want)
	}
	value := 0.0
	if want {
		value = 1
	}
	if got := r.gauge(t, "iam4kube_cut_off"); got != value {
		t.Errorf("iam4kube_cut_off is %v, want %v", got, value)
	}
}

// gauge is the value of the replica's metric.
func (r *replica) gauge(t *testing.T, name string) float64 {
	t.Helper()
	families, err := r.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// What an API server that answers says is judged without others.
func TestOthersAreNotAskedWhileTheAPIServerAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReplica(t, 0, map[netip.Addr]http.HandlerFunc{other: says(503)})
		wait(10 * time.Minute) // an open watch that gives nothing
		if r.watches.Broken() == nil || r.peers.Err() != nil {
			t.Errorf("broken: %v, cut off: %v", r.watches.Broken(), r.peers.Err())
		}
		asked := r.asked.Load()
		wait(10 * time.Minute)
		if now := r.asked.Load(); now > asked {
			t.Errorf("others were asked %d times", now-asked)
		}
	})
}

// The answer to peers is that of the watches, and for nothing else.
func TestAnswerToPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReplica(t, 0, nil)
		handler := answerPeers(r.watches, says(http.StatusTeapot))
		want := func(method, path string, status int) {
			t.Helper()
			recorder := httptest.NewRecorder()
			handler.ServeHTTP(recorder, httptest.NewRequest(method, path, http.NoBody))
			if recorder.Code != status {
				t.Errorf("%s %s: %d %s, want %d", method, path, recorder.Code, recorder.Body, status)
			}
		}
		want("GET", "/readyz", http.StatusTeapot)
		want("POST", hearingPath, http.StatusTeapot)
		want("GET", hearingPath, http.StatusServiceUnavailable) // no request was answered yet
		wait(4 * time.Minute)                                   // the probe is answered
		r.hear()
		want("GET", hearingPath, http.StatusOK)
		r.lose()
		wait(4 * time.Minute)
		want("GET", hearingPath, http.StatusServiceUnavailable)
	})
}

// Requests are refused while nothing was heard for longer than --max-staleness, whatever the
// others hear.
func TestStaleness(t *testing.T) {
	for _, most := range []time.Duration{15 * time.Minute, 0} {
		t.Run(most.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newReplica(t, most, nil)
				want := func(stale bool) {
					t.Helper()
					value := 0.0
					if stale {
						value = 1
					}
					if r.stale.Load() != stale || r.gauge(t, "iam4kube_stale") != value {
						t.Errorf("stale: %t, want %t", r.stale.Load(), stale)
					}
				}
				r.hearFor(time.Hour)
				r.hear()
				r.lose()
				wait(15*time.Minute - time.Second)
				want(false)
				wait(3 * time.Second)
				want(most > 0)
				wait(time.Hour)
				want(most > 0)
				r.reached.Store(true)
				wait(3 * time.Second)
				want(false)
			})
		})
	}
}
