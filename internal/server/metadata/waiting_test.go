package metadata

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	k8smetadata "k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"github.com/iam4kube/iam4kube/internal/server/credentials"
	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
	"github.com/iam4kube/iam4kube/internal/server/identity"
	"github.com/iam4kube/iam4kube/internal/server/imdstoken"
	"github.com/iam4kube/iam4kube/internal/server/podevents"
	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/internal/server/sts"
	"github.com/iam4kube/iam4kube/internal/server/waiting"
)

// arnPrefix is that of every role here; what follows is called the role.
const arnPrefix = "arn:aws:iam::123456789012:role/"

// The tests run in bubbles of synctest, where time passes only while everybody waits: what
// a request waits is exact.

// heldSTS answers for a role once it was told how. The access key IDs name the role.
type heldSTS struct {
	// places limits the calls, unless it is nil.
	places chan struct{}

	mu       sync.Mutex
	verdicts map[string]chan *sts.Error
	calls    map[string]int
}

func (s *heldSTS) Admit(ctx context.Context) (context.Context, error) {
	if s.places != nil {
		select {
		case <-s.places:
		case <-ctx.Done():
		}
	}
	return ctx, ctx.Err()
}

func (s *heldSTS) AssumeRole(ctx context.Context, r role.Role) (*sts.Credentials, error) {
	name := strings.TrimPrefix(r.ARN, arnPrefix)
	s.mu.Lock()
	s.calls[name]++
	s.mu.Unlock()
	select {
	case failure := <-s.verdict(name):
		if failure != nil {
			return nil, failure
		}
		now := time.Now()
		return &sts.Credentials{AccessKeyID: "ASIA-" + name, Issued: now, Expiration: now.Add(r.Duration)}, nil
	case <-ctx.Done():
		return nil, &sts.Error{Kind: sts.Unavailable, Message: ctx.Err().Error()}
	}
}

func (s *heldSTS) verdict(roleName string) chan *sts.Error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.verdicts[roleName] == nil {
		s.verdicts[roleName] = make(chan *sts.Error, 1)
	}
	return s.verdicts[roleName]
}

// edge is a Server over real parts, but for the API server's events and STS's answers,
// which the test gives.
type edge struct {
	*Server
	sts      *heldSTS
	hub      *waiting.Hub
	registry *prometheus.Registry

	setPod, deletePod         func(*corev1.Pod)
	setAccount, deleteAccount func(*metav1.PartialObjectMetadata)
}

func newEdge(t *testing.T, maxWait time.Duration, hub *waiting.Hub) *edge {
	t.Helper()
	return newEdgeOver(t, &heldSTS{}, maxWait, hub)
}

func newEdgeOver(t *testing.T, held *heldSTS, maxWait time.Duration, hub *waiting.Hub) *edge {
	t.Helper()
	registry, log := prometheus.NewRegistry(), zap.NewNop()
	// Nothing is asked of these clients: the test tells what an API server would.
	config := &rest.Config{Host: "http://192.0.2.1"}
	metadataClient, err := k8smetadata.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	held.verdicts, held.calls = map[string]chan *sts.Error{}, map[string]int{}
	cache := credentials.New(held, hub, registry, log)
	events := podevents.New(nil, registry, log)
	index := identity.New(identity.Config{Hub: hub, Roles: cache, Observer: events, Sessions: role.Sessions{Duration: time.Hour}, Registry: registry})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cache.Run(ctx) // it returns no error
	}()
	t.Cleanup(func() { cancel(); <-done })
	namespaces := index.Namespaces(metadataClient)
	for _, name := range []string{"ns", "other", "others"} {
		namespaces.Sink.Set(namespaces.Keep(&metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: name}}))
	}
	pods, accounts := index.Pods(nil), index.ServiceAccounts(metadataClient)
	return &edge{
		Server: New(Config{
			Identity: index, Credentials: cache, Tokens: imdstoken.NewKeys(nil, registry, log),
			Events: events, Hub: hub, MaxWait: maxWait, IMDSv1: true, Region: "eu-west-1", AvailabilityZone: "eu-west-1a",
			Registry: registry, Log: log,
		}),
		sts: held, hub: hub, registry: registry,
		setPod:        func(p *corev1.Pod) { pods.Sink.Set(pods.Keep(p)) },
		deletePod:     func(p *corev1.Pod) { pods.Sink.Delete(pods.Keep(p)) },
		setAccount:    func(a *metav1.PartialObjectMetadata) { accounts.Sink.Set(accounts.Keep(a)) },
		deleteAccount: func(a *metav1.PartialObjectMetadata) { accounts.Sink.Delete(accounts.Keep(a)) },
	}
}

func newHub() *waiting.Hub { return waiting.NewHub(64, 1000) }

// get sends one request and returns its answer and how long it took.
func (e *edge) get(ctx context.Context, from, path string) (*httptest.ResponseRecorder, time.Duration) {
	start := time.Now()
	request := httptest.NewRequestWithContext(ctx, http.MethodGet, "http://169.254.169.254"+path, nil)
	request.RemoteAddr = from + ":40000"
	request.RequestURI = path
	recorder := httptest.NewRecorder()
	e.ServeHTTP(recorder, request)
	return recorder, time.Since(start)
}

// began starts a request and returns, once it waits, a function that returns its answer.
func (e *edge) began(ctx context.Context, from, path string) func() (*httptest.ResponseRecorder, time.Duration) {
	var recorder *httptest.ResponseRecorder
	var took time.Duration
	done := make(chan struct{})
	go func() {
		defer close(done)
		recorder, took = e.get(ctx, from, path)
	}()
	synctest.Wait()
	return func() (*httptest.ResponseRecorder, time.Duration) {
		<-done
		return recorder, took
	}
}

// pod returns a running pod of this age whose ServiceAccount has its name.
func pod(name, address string, age time.Duration) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "ns", Name: name, UID: types.UID(name), CreationTimestamp: metav1.NewTime(time.Now().Add(-age)),
		},
		Spec:   corev1.PodSpec{ServiceAccountName: name},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: address, PodIPs: []corev1.PodIP{{IP: address}}},
	}
}

// account returns a ServiceAccount; an empty role is no annotation.
func account(name, roleName string) *metav1.PartialObjectMetadata {
	a := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}}
	if roleName != "" {
		a.Annotations = map[string]string{role.AnnotationARN: arnPrefix + roleName}
	}
	return a
}

const (
	ip   = "10.0.0.1"
	list = "/latest" + pathRoles + "/"
)

func check(t *testing.T, what string, answer *httptest.ResponseRecorder, took time.Duration, status int, after time.Duration, texts ...string) {
	t.Helper()
	if answer.Code != status || took != after {
		t.Errorf("%s: %d after %v, want %d after %v: %s", what, answer.Code, took, status, after, answer.Body)
	}
	for _, text := range texts {
		if !strings.Contains(answer.Body.String(), text) {
			t.Errorf("%s: %q does not say %q", what, answer.Body, text)
		}
	}
}

// Only a young pod waits for the annotation: an old one without a role gets its 404 at
// once, and the wait ends when the pod is a minute old. The age is the API server's to
// give, so these pods are made here.
func TestOnlyAYoungPodWaitsForTheAnnotation(t *testing.T) {
	for name, c := range map[string]struct {
		age, maxWait, want time.Duration
	}{
		"old":                       {time.Hour, 15 * time.Second, 0},
		"a minute":                  {time.Minute, 15 * time.Second, 0},
		"just under a minute":       {59 * time.Second, 15 * time.Second, time.Second},
		"turns a minute old":        {50 * time.Second, 15 * time.Second, 10 * time.Second},
		"young":                     {10 * time.Second, 15 * time.Second, 15 * time.Second},
		"new, very long wait":       {0, time.Hour, time.Minute},
		"from a clock that is fast": {-30 * time.Second, time.Hour, 90 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := newEdge(t, c.maxWait, newHub())
				e.setAccount(account("a", ""))
				e.setPod(pod("a", ip, c.age))
				for _, path := range []string{list, list + "any"} {
					e.setPod(pod("b", ip, 0)) // forget the age of the last request
					e.deletePod(pod("b", ip, 0))
					e.deletePod(pod("a", ip, 0))
					e.setPod(pod("a", ip, c.age))
					answer, took := e.get(t.Context(), ip, path)
					check(t, path, answer, took, http.StatusNotFound, c.want, "missing role-annotation", "source address "+ip, "ns/a", role.AnnotationARN)
				}
			})
		})
	}
}

// An annotation that comes just before the pod is a minute old still counts, and then
// the credentials may take as long as MaxWait allows.
func TestAnnotationInTheLastSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEdge(t, 5*time.Minute, newHub())
		e.setAccount(account("a", ""))
		e.setPod(pod("a", ip, 0))
		answer := e.began(t.Context(), ip, list+"one")
		time.AfterFunc(59*time.Second, func() { e.setAccount(account("a", "one")) })
		time.AfterFunc(2*time.Minute, func() { e.sts.verdict("one") <- nil })
		got, took := answer()
		check(t, "credentials", got, took, http.StatusOK, 2*time.Minute, "ASIA-one")
	})
}

// When nothing appears, the wait ends after MaxWait with an answer that names the piece
// and the source address; what does not need the piece does not wait for it.
func TestWaitEndsAfterMaxWait(t *testing.T) {
	const most = 15 * time.Second
	unavailable := &sts.Error{Kind: sts.Unavailable, Message: "STS did not answer in time"}
	identityRefused := &sts.Error{Kind: sts.Identity, Code: "InvalidClientTokenId", Message: "STS refuses the server's own AWS credentials"}
	states := map[string]struct {
		prepare func(e *edge)
		status  int
		piece   diagnosis.Piece
		says    string
		// atOnce are the endpoints that need less.
		atOnce []string
	}{
		"no pod":             {func(*edge) {}, http.StatusServiceUnavailable, diagnosis.Pod, "masquerade", nil},
		"pod without status": {func(e *edge) { e.setPod(pod("a", "", 0)) }, http.StatusServiceUnavailable, diagnosis.Pod, "masquerade", nil},
		"two pods": {
			func(e *edge) { e.setPod(pod("a", ip, 0)); e.setPod(pod("b", ip, 0)) },
			http.StatusServiceUnavailable, diagnosis.SinglePod, "more than one live pod", nil,
		},
		"no ServiceAccount": {
			func(e *edge) { e.setPod(pod("a", ip, 0)) },
			http.StatusServiceUnavailable, diagnosis.ServiceAccount, "ServiceAccount a of pod ns/a",
			[]string{"zone", "region", "document"},
		},
		"no annotation": {
			func(e *edge) { e.setPod(pod("a", ip, 0)); e.setAccount(account("a", "")) },
			http.StatusNotFound, diagnosis.RoleAnnotation, role.AnnotationARN,
			[]string{"zone", "region", "document", "ready"},
		},
		"no answer of STS": {
			func(e *edge) { e.setPod(pod("a", ip, 0)); e.setAccount(account("a", "one")) },
			http.StatusServiceUnavailable, diagnosis.Credentials, "STS has not answered yet",
			[]string{"zone", "region", "document", "role", "info"},
		},
		"STS unavailable": {
			func(e *edge) {
				e.setPod(pod("a", ip, 0))
				e.setAccount(account("a", "one"))
				e.sts.verdict("one") <- unavailable
			},
			http.StatusServiceUnavailable, diagnosis.Credentials, unavailable.Message,
			[]string{"zone", "region", "document", "role", "info"},
		},
		"STS refuses the server": {
			func(e *edge) {
				e.setPod(pod("a", ip, 0))
				e.setAccount(account("a", "one"))
				e.sts.verdict("one") <- identityRefused
			},
			http.StatusServiceUnavailable, diagnosis.Credentials, identityRefused.Message,
			[]string{"zone", "region", "document", "role", "info"},
		},
	}
	paths := map[string]string{
		"role": list, "credentials": list + "one", "ready": pathReady + "?wait=1h", "zone": "/latest/meta-data/placement/availability-zone",
		"region": "/2009-04-04/meta-data/placement/region", "document": "/latest/dynamic/instance-identity/document", "info": "/latest/meta-data/iam/info",
	}
	for name, state := range states {
		for endpoint, path := range paths {
			t.Run(name+"/"+endpoint, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					e := newEdge(t, most, newHub())
					state.prepare(e)
					got, took := e.get(t.Context(), ip, path)
					for _, free := range state.atOnce {
						if free == endpoint && endpoint == "ready" {
							check(t, endpoint, got, took, state.status, 0, "missing "+string(state.piece))
							return
						}
						if free == endpoint {
							check(t, endpoint, got, took, http.StatusOK, 0)
							return
						}
					}
					check(t, endpoint, got, took, state.status, most, "missing "+string(state.piece), "source address "+ip, state.says)
					if e.hub.Len() != 0 {
						t.Errorf("%d still wait", e.hub.Len())
					}
				})
			})
		}
	}
}

// Events that do not help neither end the wait nor prolong it.
func TestUselessEventsDoNotProlongTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEdge(t, 15*time.Second, newHub())
		e.setPod(pod("a", ip, 0))
		answer := e.began(t.Context(), ip, list)
		ticker := time.NewTicker(300 * time.Millisecond)
		defer ticker.Stop()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() {
			for n := 0; ; n++ {
				select {
				case <-ticker.C:
					p := pod("a", ip, 0)
					p.Spec.NodeName = fmt.Sprint(n)
					e.setPod(p)
				case <-ctx.Done():
					return
				}
			}
		}()
		got, took := answer()
		check(t, "role", got, took, http.StatusServiceUnavailable, 15*time.Second, "missing service-account")
	})
}

// A request that waits for one pod's credentials never gets them for another: not when
// the address changes hands, not when the annotation changes, not when the pod goes.
func TestWhatChangesDuringTheWaitCounts(t *testing.T) {
	for name, c := range map[string]struct {
		path   string
		change func(e *edge)
		status int
		says   string
	}{
		"new pod on the address": {
			list + "one", func(e *edge) { e.deletePod(pod("a", ip, 0)); e.setPod(pod("b", ip, 0)) },
			http.StatusOK, "ASIA-b/one",
		},
		"new pod with a role of another name": {
			list + "one", func(e *edge) {
				e.setAccount(account("b", "two"))
				e.deletePod(pod("a", ip, 0))
				e.setPod(pod("b", ip, 0))
			},
			http.StatusNotFound, "is not the role of this pod",
		},
		"old pod terminates": {
			list + "one", func(e *edge) {
				ending := pod("a", ip, 0)
				ending.DeletionTimestamp = &metav1.Time{Time: time.Now()}
				e.setPod(ending)
				e.setPod(pod("b", ip, 0))
			},
			http.StatusOK, "ASIA-b/one",
		},
		"same name, new pod, new account": {
			list + "one", func(e *edge) {
				p := pod("a", ip, 0)
				p.UID, p.Spec.ServiceAccountName = "new", "b"
				e.setPod(p)
			},
			http.StatusOK, "ASIA-b/one",
		},
		"pod goes":           {list + "one", func(e *edge) { e.deletePod(pod("a", ip, 0)) }, http.StatusServiceUnavailable, "missing pod"},
		"second pod comes":   {list + "one", func(e *edge) { e.setPod(pod("b", ip, 0)) }, http.StatusServiceUnavailable, "missing single-pod"},
		"annotation changes": {list + "one", func(e *edge) { e.setAccount(account("a", "new/one")) }, http.StatusOK, "ASIA-new/one"},
		"annotation changes the role's name": {
			list + "one", func(e *edge) { e.setAccount(account("a", "three")) },
			http.StatusNotFound, "is not the role of this pod",
		},
		"annotation goes":     {list + "one", func(e *edge) { e.setAccount(account("a", "")) }, http.StatusNotFound, "missing role-annotation"},
		"ServiceAccount goes": {list + "one", func(e *edge) { e.deleteAccount(account("a", "")) }, http.StatusServiceUnavailable, "missing service-account"},
		"annotation breaks":   {list + "one", func(e *edge) { e.setAccount(account("a", "white space")) }, http.StatusNotFound, role.AnnotationARN},
		"address is a node's": {
			list + "one", func(e *edge) {
				p := pod("c", "10.0.0.3", 0)
				p.Status.HostIPs = []corev1.HostIP{{IP: ip}}
				e.setPod(p)
				e.setPod(pod("a", ip, time.Second)) // any event
				e.setAccount(account("a", "one"))
			},
			http.StatusForbidden, "is a node's",
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := newEdge(t, 15*time.Second, newHub())
				e.setAccount(account("a", "one"))
				e.setAccount(account("b", "b/one"))
				e.setPod(pod("a", ip, 0))
				answer := e.began(t.Context(), ip, c.path)
				c.change(e)
				for _, roleName := range []string{"one", "b/one", "new/one", "two", "three"} {
					e.sts.verdict(roleName) <- nil
				}
				got, _ := answer()
				if got.Code != c.status || !strings.Contains(got.Body.String(), c.says) {
					t.Errorf("%d %s, want %d and %q", got.Code, got.Body, c.status, c.says)
				}
			})
		})
	}
}

// Of thousands of requests that wait for different pods, one pod's event makes one look
// again, once. (The race detector allows 8,128 goroutines.)
func TestOneEventMakesOneLook(t *testing.T) {
	const others = 5000
	synctest.Test(t, func(t *testing.T) {
		e := newEdge(t, time.Hour, waiting.NewHub(64, 16384))
		e.setAccount(account("a", "one"))
		var looks atomic.Int64
		ctx, leave := context.WithCancel(t.Context())
		var requests sync.WaitGroup
		begin := func(from netip.Addr) {
			claim := identity.Claim{Address: from}
			requests.Go(func() {
				e.await(ctx, time.Hour, func() view {
					looks.Add(1)
					return e.roleView(claim)
				})
			})
		}
		for i := range others {
			begin(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}))
		}
		begin(netip.MustParseAddr(ip))
		synctest.Wait()
		looks.Store(0)
		e.setPod(pod("a", ip, 0))
		synctest.Wait()
		if n := looks.Load(); n != 1 || e.hub.Len() != others {
			t.Errorf("%d looks, %d requests go on waiting, want 1 and %d", n, e.hub.Len(), others)
		}
		leave()
		requests.Wait()
		if n := looks.Load(); n != 1 || e.hub.Len() != 0 {
			t.Errorf("after all clients left: %d looks, %d waiters", n, e.hub.Len())
		}
	})
}

// What happens after a request has looked and before it watches wakes nobody, and is not
// missed all the same.
func TestEventsBetweenLookAndWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEdge(t, 15*time.Second, newHub())
		claim, start := identity.Claim{Address: netip.MustParseAddr(ip)}, time.Now()
		events := []func(){
			func() { e.setPod(pod("a", ip, 0)) },
			func() { e.setAccount(account("a", "")) },
			func() { e.setAccount(account("a", "one")) },
		}
		got := e.await(t.Context(), 15*time.Second, func() view {
			v := e.roleView(claim)
			if len(events) > 0 && v.answer == nil {
				events[0]()
				events = events[1:]
			}
			return v
		})
		if took := time.Since(start); got.status != http.StatusOK || string(got.body) != "one" || took != 0 {
			t.Errorf("%d %s after %v", got.status, got.body, took)
		}
	})
}

// Another role's name is answered as soon as the pod's own is known: nothing that STS
// says would change it.
func TestOtherRoleIsRefusedWithoutSTS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEdge(t, 15*time.Second, newHub())
		e.setAccount(account("a", "one"))
		e.setPod(pod("a", ip, 0))
		got, took := e.get(t.Context(), ip, list+"two")
		check(t, "another role", got, took, http.StatusNotFound, 0, "is not the role of this pod")
	})
}

// A client that goes away leaves nothing of its wait.
func TestClientGoesAway(t *testing.T) {
	for _, prepare := range []func(e *edge){
		func(*edge) {},
		func(e *edge) { e.setPod(pod("a", ip, 0)) },
		func(e *edge) { e.setPod(pod("a", ip, 0)); e.setAccount(account("a", "")) },
		func(e *edge) { e.setPod(pod("a", ip, 0)); e.setAccount(account("a", "one")) },
	} {
		synctest.Test(t, func(t *testing.T) {
			e := newEdge(t, time.Hour, newHub())
			prepare(e)
			ctx, leave := context.WithCancel(t.Context())
			answer := e.began(ctx, ip, list+"one")
			if e.hub.Len() != 1 || e.waitingNow(t) != 1 {
				t.Fatalf("%d waiters, gauge %v", e.hub.Len(), e.waitingNow(t))
			}
			leave()
			got, took := answer()
			if got.Code != statusClientClosed || took != 0 || e.hub.Len() != 0 || e.waitingNow(t) != 0 {
				t.Errorf("%d after %v, %d waiters, gauge %v", got.Code, took, e.hub.Len(), e.waitingNow(t))
			}
			for _, key := range []any{ip, role.Role{}} {
				if e.hub.Waited(key) {
					t.Errorf("%v is still waited for", key)
				}
			}
		})
	}
}

// waitingNow is what iam4kube_waiting_requests says.
func (e *edge) waitingNow(t *testing.T) (sum float64) {
	t.Helper()
	families, err := e.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "iam4kube_waiting_requests" {
			continue
		}
		for _, m := range f.GetMetric() {
			sum += m.GetGauge().GetValue()
		}
	}
	return sum
}

// Requests over a limit get 429 at once, which says which limit; those that wait go on
// waiting, and what needs no wait is answered as ever.
func TestWaitersAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEdge(t, 15*time.Second, waiting.NewHub(2, 6)) // 3 for unknown addresses, 3 for pods
		e.setAccount(account("warm", "one"))
		e.setPod(pod("warm", "10.0.0.9", 0))
		e.sts.verdict("one") <- nil
		synctest.Wait()
		e.setPod(pod("a", "10.0.1.1", 0))
		e.setPod(pod("b", "10.0.1.2", 0))
		unknown := []func() (*httptest.ResponseRecorder, time.Duration){
			e.began(t.Context(), ip, list), e.began(t.Context(), ip, list), e.began(t.Context(), "10.0.0.2", list),
		}
		known := []func() (*httptest.ResponseRecorder, time.Duration){
			e.began(t.Context(), "10.0.1.1", list), e.began(t.Context(), "10.0.1.1", list), e.began(t.Context(), "10.0.1.2", list),
		}
		for from, says := range map[string]string{
			ip:         "requests of this address are waiting",
			"10.0.0.2": "addresses that are no pod's are waiting",
			"10.0.1.2": "the pod's namespace are waiting",
		} {
			got, took := e.get(t.Context(), from, list)
			check(t, "one too many", got, took, http.StatusTooManyRequests, 0, says)
			if got.Header().Get("Retry-After") == "" {
				t.Error("no Retry-After")
			}
		}
		got, took := e.get(t.Context(), "10.0.0.9", list+"one")
		check(t, "warm", got, took, http.StatusOK, 0, "ASIA-one")
		for _, answer := range unknown {
			got, took := answer()
			check(t, "the ones before", got, took, http.StatusServiceUnavailable, 15*time.Second, "missing pod")
		}
		for _, answer := range known {
			got, took := answer()
			check(t, "the ones before", got, took, http.StatusServiceUnavailable, 15*time.Second, "missing service-account")
		}
		got, took = e.get(t.Context(), ip, list)
		check(t, "room again", got, took, http.StatusServiceUnavailable, 15*time.Second)
	})
}

// 256 addresses that are no pod's ask as often as they can, and so do the pods of a
// namespace: those of others wait and are answered, whether they are known already or not.
func TestOthersWaitDuringAFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEdge(t, time.Hour, waiting.NewHub(64, 1024))
		flood, stop := context.WithCancel(t.Context())
		var requests sync.WaitGroup
		statuses := make([]int, 0, 2*256*64)
		var mu sync.Mutex
		ask := func(from string) {
			requests.Go(func() {
				got, _ := e.get(flood, from, list)
				mu.Lock()
				defer mu.Unlock()
				statuses = append(statuses, got.Code)
			})
		}
		for i := range 256 {
			e.setPod(pod(fmt.Sprint("hostile-", i), fmt.Sprint("10.2.0.", i), 0)) // without a ServiceAccount
			for range 16 {
				ask(fmt.Sprint("10.1.0.", i))
				ask(fmt.Sprint("10.2.0.", i))
			}
			synctest.Wait() // goroutines are limited with the race detector
		}
		inNamespace := func(p *corev1.Pod) *corev1.Pod { p.Namespace = "others"; return p }
		e.setPod(inNamespace(pod("known", "10.0.0.1", 0)))
		known, late := e.began(t.Context(), "10.0.0.1", list), e.began(t.Context(), "10.0.0.2", list)
		e.setPod(inNamespace(pod("late", "10.0.0.2", 0)))
		for _, name := range []string{"known", "late"} {
			a := account(name, name)
			a.Namespace = "others"
			e.setAccount(a)
		}
		for name, answer := range map[string]func() (*httptest.ResponseRecorder, time.Duration){"known": known, "late": late} {
			got, took := answer()
			check(t, name, got, took, http.StatusOK, 0, name)
		}
		stop()
		requests.Wait()
		refused := len(slices.DeleteFunc(statuses, func(status int) bool { return status != http.StatusTooManyRequests }))
		if least := 2*256*16 - 1024; refused < least {
			t.Errorf("%d were refused, want %d at least", refused, least)
		}
		if e.hub.Len() != 0 {
			t.Errorf("%d still wait", e.hub.Len())
		}
	})
}

// A request that waits for its pod waits in the places of the pod's namespace once that is
// known, and ends when its place is given to somebody else.
func TestPlacesChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEdge(t, 15*time.Second, waiting.NewHub(3, 4)) // 2 for unknown addresses, 2 for pods
		first, second := e.began(t.Context(), ip, list), e.began(t.Context(), ip, list)
		if got, _ := e.get(t.Context(), ip, list); got.Code != http.StatusTooManyRequests {
			t.Errorf("%d %s", got.Code, got.Body)
		}
		e.setPod(pod("a", ip, 0))
		synctest.Wait()
		third := e.began(t.Context(), "10.0.0.2", list)
		time.Sleep(time.Second) //nolint:forbidigo // the bubble's clock
		e.setPod(pod("b", "10.0.0.2", 0))
		got, took := third()
		check(t, "third of its namespace", got, took, http.StatusTooManyRequests, time.Second, "the pod's namespace are waiting")
		elsewhere := pod("c", "10.0.0.3", 0)
		elsewhere.Namespace = "other"
		e.setPod(elsewhere)
		other := e.began(t.Context(), "10.0.0.3", list)
		ended := map[int]int{}
		for _, answer := range []func() (*httptest.ResponseRecorder, time.Duration){first, second, other} {
			got, took := answer()
			ended[got.Code]++
			if got.Code == http.StatusTooManyRequests {
				check(t, "displaced", got, took, http.StatusTooManyRequests, time.Second, "the pod's namespace are waiting")
				continue
			}
			check(t, "stays", got, took, http.StatusServiceUnavailable, 15*time.Second, "missing service-account")
		}
		if ended[http.StatusTooManyRequests] != 1 {
			t.Errorf("%v, want one that lost its place", ended)
		}
	})
}

// What an init container asks: /iam4kube/ready.
func TestReady(t *testing.T) {
	young := func(e *edge) { e.setPod(pod("a", ip, 0)) }
	for name, c := range map[string]struct {
		prepare func(e *edge)
		query   string
		status  int
		after   time.Duration
		says    string
	}{
		"credentials in memory": {func(e *edge) { young(e); e.setAccount(account("a", "one")); e.sts.verdict("one") <- nil }, "?wait=5s", 204, 0, ""},
		"and without waiting":   {func(e *edge) { young(e); e.setAccount(account("a", "one")); e.sts.verdict("one") <- nil }, "", 204, 0, ""},
		"no role":               {func(e *edge) { young(e); e.setAccount(account("a", "")) }, "?wait=5s", 404, 0, "missing role-annotation"},
		"bad annotation":        {func(e *edge) { young(e); e.setAccount(account("a", "white space")) }, "?wait=5s", 404, 0, role.AnnotationARN},
		"denied": {func(e *edge) {
			young(e)
			e.setAccount(account("a", "one"))
			e.sts.verdict("one") <- &sts.Error{Kind: sts.Denied, Code: "AccessDenied", Message: "not authorized"}
		}, "?wait=5s", 403, 0, "AccessDenied: not authorized"},
		"no pod":               {func(*edge) {}, "?wait=5s", 503, 5 * time.Second, "missing pod"},
		"no account":           {young, "?wait=1500ms", 503, 1500 * time.Millisecond, "missing service-account"},
		"no credentials":       {func(e *edge) { young(e); e.setAccount(account("a", "one")) }, "?wait=5s", 503, 5 * time.Second, "missing credentials"},
		"longer than MaxWait":  {func(*edge) {}, "?wait=100h", 503, 15 * time.Second, "missing pod"},
		"no time":              {func(*edge) {}, "?wait=0s", 503, 0, "missing pod"},
		"no wait":              {func(*edge) {}, "", 503, 0, "missing pod"},
		"no unit":              {func(*edge) {}, "?wait=5", 400, 0, "wait must be a duration"},
		"not a duration":       {func(*edge) {}, "?wait=soon", 400, 0, "wait must be a duration"},
		"empty":                {func(*edge) {}, "?wait=", 400, 0, "wait must be a duration"},
		"negative":             {func(*edge) {}, "?wait=-1s", 400, 0, "wait must be a duration"},
		"longer than int64":    {func(*edge) {}, "?wait=10000000h", 400, 0, "wait must be a duration"},
		"not a query":          {func(*edge) {}, "?wait=%zz", 400, 0, "query"},
		"a node's address":     {func(e *edge) { p := pod("a", "10.0.0.2", 0); p.Status.HostIP = ip; e.setPod(p) }, "?wait=5s", 403, 0, "is a node's"},
		"credentials, no more": {func(e *edge) { young(e); e.setAccount(account("a", "one")); e.sts.verdict("one") <- nil }, "?wait=5s&x=y", 204, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := newEdge(t, 15*time.Second, newHub())
				c.prepare(e)
				synctest.Wait()
				got, took := e.get(t.Context(), ip, pathReady+c.query)
				check(t, "ready", got, took, c.status, c.after, c.says)
				if c.status == http.StatusNoContent && got.Body.Len() != 0 {
					t.Errorf("204 with a body: %q", got.Body)
				}
				if source := got.Header().Get("X-Iam4kube-Source-Ip"); source != ip {
					t.Errorf("X-Iam4kube-Source-Ip is %q", source)
				}
				wantPod := ""
				if e.cfg.Identity.Lookup(identity.Claim{Address: netip.MustParseAddr(ip)}).Pod != nil && c.status != http.StatusBadRequest {
					wantPod = "ns/a"
				}
				if pod := got.Header().Get("X-Iam4kube-Pod"); pod != wantPod {
					t.Errorf("X-Iam4kube-Pod is %q, want %q", pod, wantPod)
				}
				if strings.Contains(got.Body.String(), "ASIA") {
					t.Errorf("credentials: %s", got.Body)
				}
			})
		})
	}
}

// That a pod has no role is told to its init container and to nobody else: many need none. A
// pod that asks for one, or whose annotation is wrong, is another matter.
func TestProbeOfAPodWithoutARoleIsNoFailure(t *testing.T) {
	for _, c := range []struct {
		arn, path string
		lines     int
	}{
		{"", pathReady + "?wait=5s", 0},
		{"", list, 1},
		{"white space", pathReady + "?wait=5s", 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			e := newEdge(t, 15*time.Second, newHub())
			core, logs := observer.New(zap.InfoLevel)
			e.cfg.Log = zap.New(core)
			e.setPod(pod("a", ip, 0))
			e.setAccount(account("a", c.arn))
			if got, _ := e.get(t.Context(), ip, c.path); got.Code != http.StatusNotFound {
				t.Errorf("%s: %d %s", c.path, got.Code, got.Body)
			}
			// With each line goes an event.
			if lines := logs.All(); len(lines) != c.lines {
				t.Errorf("%s, annotation %q: %v", c.path, c.arn, lines)
			}
		})
	}
}

// Many requests that come and go for one role make one call to STS.
func TestRetriesJoinTheCallUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEdge(t, 15*time.Second, newHub())
		e.setAccount(account("a", "one"))
		e.setPod(pod("a", ip, 0))
		for range 20 {
			ctx, leave := context.WithTimeout(t.Context(), 100*time.Millisecond)
			if got, _ := e.get(ctx, ip, list+"one"); got.Code != statusClientClosed {
				t.Errorf("%d %s", got.Code, got.Body)
			}
			leave()
		}
		answer := e.began(t.Context(), ip, list+"one")
		e.sts.verdict("one") <- nil
		got, took := answer()
		check(t, "the last", got, took, http.StatusOK, 0, "ASIA-one")
		if e.sts.calls["one"] != 1 {
			t.Errorf("%d calls", e.sts.calls["one"])
		}
	})
}
