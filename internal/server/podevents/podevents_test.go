package podevents

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/iam4kube/iam4kube/internal/kube"
	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
	"github.com/iam4kube/iam4kube/internal/server/identity"
)

// store keeps events as the API server does, as far as a Recorder asks for it, and counts
// the requests. What a real API server makes of them is tested against one elsewhere; here
// the clock is simulated.
type store struct {
	kube.Events
	mu      sync.Mutex
	objects map[string]*corev1.Event
	order   []string
	// requests are all that arrived.
	requests int
	// before is called with each request's number, and may fail it.
	before func(context.Context, int) error
}

func (s *store) in(string) kube.Events { return s }

func (s *store) begin(ctx context.Context) error {
	s.mu.Lock()
	s.requests++
	n, before := s.requests, s.before
	s.mu.Unlock()
	if before == nil {
		return nil
	}
	return before(ctx, n)
}

var resource = schema.GroupResource{Resource: "events"}

func (s *store) Create(ctx context.Context, e *corev1.Event, _ metav1.CreateOptions) (*corev1.Event, error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.objects[e.Name] != nil {
		return nil, apierrors.NewAlreadyExists(resource, e.Name)
	}
	s.objects[e.Name] = e.DeepCopy()
	s.order = append(s.order, e.InvolvedObject.Name)
	return e, nil
}

func (s *store) Get(ctx context.Context, name string, _ metav1.GetOptions) (*corev1.Event, error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.objects[name] == nil {
		return nil, apierrors.NewNotFound(resource, name)
	}
	return s.objects[name].DeepCopy(), nil
}

func (s *store) Update(ctx context.Context, e *corev1.Event, _ metav1.UpdateOptions) (*corev1.Event, error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects[e.Name] = e.DeepCopy()
	return e, nil
}

func (s *store) breakBy(before func(context.Context, int) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before = before
}

// seen is how many requests arrived and in which order pods got their events.
func (s *store) seen() (requests int, order []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests, s.order
}

// only is the only event in the store.
func (s *store) only(t *testing.T) *corev1.Event {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.objects) != 1 {
		t.Fatalf("%d events: %v", len(s.objects), s.objects)
	}
	for _, e := range s.objects {
		return e.DeepCopy()
	}
	return nil
}

// recorder is a Recorder that writes into a store.
type recorder struct {
	*Recorder
	store    *store
	registry *prometheus.Registry
}

func newRecorder() recorder {
	r := recorder{store: &store{objects: map[string]*corev1.Event{}}, registry: prometheus.NewRegistry()}
	r.Recorder = New(r.store.in, r.registry, zap.NewNop())
	return r
}

// run runs the Recorder until the test ends; call it in a bubble.
func (r recorder) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func (r recorder) count(t *testing.T, outcome string) int {
	t.Helper()
	families, err := r.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range families[0].GetMetric() {
		if m.GetLabel()[0].GetValue() == outcome {
			return int(m.GetCounter().GetValue())
		}
	}
	t.Fatalf("no outcome %q", outcome)
	return 0
}

func pod(name string) *identity.Pod {
	return &identity.Pod{Namespace: "ns", Name: name, UID: types.UID("uid-" + name), Life: &identity.Life{Announced: true}}
}

func say(reason diagnosis.Reason, text string) diagnosis.Diagnosis {
	return diagnosis.Diagnosis{Reason: reason, Text: text}
}

// elapse lets the simulated time pass.
func elapse(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // the bubble's clock
	synctest.Wait()
}

func TestFloodIsHeldAtTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRecorder()
		r.run(t)
		synctest.Wait()
		const pods = 5000
		requests := 100_000
		for i := range requests {
			r.Record(pod(fmt.Sprint("p", i%pods)), say(diagnosis.RoleDenied, "denied"))
		}
		synctest.Wait()
		if n, _ := r.store.seen(); n != burst {
			t.Errorf("%d writes at once, want %d", n, burst)
		}
		elapse(time.Minute)
		if n, _ := r.store.seen(); n != burst+60*perSecond {
			t.Errorf("%d writes in a minute, want %d", n, burst+60*perSecond)
		}
		// What the writer took meanwhile depends on how goroutines were scheduled.
		dropped := r.count(t, "dropped")
		if dropped > pods-queueLength || dropped < pods-queueLength-burst-1 {
			t.Errorf("%d dropped", dropped)
		}
		elapse(time.Hour)
		requests, _ = r.store.seen()
		if written := r.count(t, "written"); written+dropped != pods || r.count(t, "failed") != 0 || requests != written {
			t.Errorf("%d written, %d dropped, %d requests", written, dropped, requests)
		}
	})
}

func TestRecordNeverBlocks(t *testing.T) {
	r := newRecorder() // nobody writes
	for i := range 3 * queueLength {
		r.Record(pod(fmt.Sprint("p", i)), say(diagnosis.Serving, ""))
		r.Record(pod(fmt.Sprint("p", i)), say(diagnosis.RoleDenied, ""))
	}
	if n := r.count(t, "dropped"); n != 4*queueLength {
		t.Errorf("%d dropped", n)
	}
}

func TestFailuresGoFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRecorder()
		for i := range queueLength {
			r.Record(pod(fmt.Sprint("good", i)), say(diagnosis.Serving, ""))
		}
		for i := range 3 {
			r.Record(pod(fmt.Sprint("bad", i)), say(diagnosis.RoleDenied, ""))
		}
		r.run(t)
		synctest.Wait()
		_, order := r.store.seen()
		if got := fmt.Sprint(order[:4]); got != "[bad0 bad1 bad2 good0]" {
			t.Errorf("written in the order %s", got)
		}
		r.Record(pod("late"), say(diagnosis.RoleMissing, ""))
		elapse(time.Second)
		if _, order = r.store.seen(); !slices.Contains(order[burst:burst+2], "late") {
			t.Errorf("then %v", order[burst:])
		}
	})
}

// TestFailureThatLasts: a request every second for half an hour; a message that changes is
// the one to be seen.
func TestFailureThatLasts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRecorder()
		r.run(t)
		p, start := pod("p"), time.Now()
		for i := range 30 * 60 {
			r.Record(p, say(diagnosis.RoleDenied, fmt.Sprint("denied at ", i)))
			elapse(time.Second)
		}
		e := r.store.only(t)
		last := e.LastTimestamp.Sub(start).Round(time.Minute)
		if e.Count != 3 || !e.FirstTimestamp.Time.Equal(start) || last != 20*time.Minute || e.Message != "denied at 1200" {
			t.Errorf("count %d, last %v, %s", e.Count, last, e.Message)
		}
		if n, _ := r.store.seen(); n != 1+2*3 { // create; then create, get, update
			t.Errorf("%d requests", n)
		}
		r.Record(p, say(diagnosis.RoleMissing, "another reason is news at once"))
		synctest.Wait()
		if _, order := r.store.seen(); len(order) != 2 {
			t.Errorf("%v", order)
		}
	})
}

func TestSuccessIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRecorder()
		r.run(t)
		old := pod("old")
		old.Life.Announced = false
		for range 100 {
			r.Record(old, say(diagnosis.Serving, "served"))
			r.Record(pod("young"), say(diagnosis.Serving, "served"))
			elapse(time.Hour)
		}
		requests, _ := r.store.seen()
		if e := r.store.only(t); e.Count != 1 || e.InvolvedObject.Name != "young" || requests != 1 {
			t.Errorf("%+v after %d requests", e, requests)
		}
		// Another replica has told it already.
		other := New(r.store.in, prometheus.NewRegistry(), zap.NewNop())
		other.write(t.Context(), event{reference("Pod", "ns", "young", "uid-young"), say(diagnosis.Serving, "served"), time.Now()})
		requests, _ = r.store.seen()
		if e := r.store.only(t); e.Count != 1 || requests != 2 {
			t.Errorf("%+v after %d requests", e, requests)
		}
	})
}

// TestWriteThatFails: before its effect, after it, or without an answer. It is counted, it
// is not repeated, and the next one comes in its time.
func TestWriteThatFails(t *testing.T) {
	for name, c := range map[string]struct {
		before func(context.Context, int) error
		takes  time.Duration
	}{
		"refused":   {func(context.Context, int) error { return errors.New("no") }, 0},
		"no answer": {func(ctx context.Context, _ int) error { <-ctx.Done(); return ctx.Err() }, writeTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRecorder()
				r.store.breakBy(c.before)
				r.run(t)
				r.Record(pod("p"), say(diagnosis.RoleDenied, "denied"))
				elapse(c.takes)
				r.store.breakBy(nil)
				for range 5 {
					r.Record(pod("p"), say(diagnosis.RoleDenied, "denied"))
				}
				synctest.Wait()
				if n, _ := r.store.seen(); r.count(t, "failed") != 1 || n != 1 {
					t.Errorf("%d failed, %d requests", r.count(t, "failed"), n)
				}
				r.Record(pod("q"), say(diagnosis.RoleDenied, "denied"))
				elapse(repeatAfter)
				r.Record(pod("p"), say(diagnosis.RoleDenied, "denied"))
				synctest.Wait()
				if _, order := r.store.seen(); r.count(t, "written") != 2 || len(order) != 2 {
					t.Errorf("%d written: %v", r.count(t, "written"), order)
				}
			})
		})
	}
}

// TestCountThatFails: the event is there, but gone or locked a moment later.
func TestCountThatFails(t *testing.T) {
	r := newRecorder()
	e := event{reference("Pod", "ns", "p", "uid-p"), say(diagnosis.RoleDenied, "denied"), time.Now()}
	r.write(t.Context(), e)
	r.store.breakBy(func(_ context.Context, request int) error {
		if request == 3 { // create, create, get
			clear(r.store.objects)
		}
		return nil
	})
	r.write(t.Context(), e)
	if r.count(t, "failed") != 1 || r.count(t, "written") != 1 {
		t.Errorf("%d failed, %d written", r.count(t, "failed"), r.count(t, "written"))
	}
}

func TestNothingStaysOfAPodThatIsGone(t *testing.T) {
	r := newRecorder()
	for i := range 10 {
		p := pod(fmt.Sprint("p", i))
		r.Record(p, say(diagnosis.RoleDenied, "denied"))
		r.Record(p, say(diagnosis.RoleMissing, "none"))
		r.Gone(p)
	}
	if len(r.told) != 0 {
		t.Errorf("%v", r.told)
	}
}

func TestObject(t *testing.T) {
	at := time.Date(2030, 1, 2, 3, 4, 5, 6, time.UTC)
	const name253 = 253
	long := pod(strings.Repeat("a", 235) + ".b-" + strings.Repeat("c", name253-238))
	for _, c := range []struct {
		pod     *identity.Pod
		message string
	}{
		{pod("p"), "short"},
		{long, strings.Repeat("ä", 513)},       // 1026 bytes
		{long, "x" + strings.Repeat("ä", 512)}, // the limit is inside of a character
	} {
		o := event{reference("Pod", c.pod.Namespace, c.pod.Name, c.pod.UID), say(diagnosis.RoleDenied, c.message), at}.object()
		if len(o.Name) > maxName || len(o.Message) > maxMessage || !utf8.ValidString(o.Message) || !strings.HasPrefix(c.message, o.Message) {
			t.Errorf("%d, %d: %+v", len(o.Name), len(o.Message), o)
		}
		if stem := o.Name[:strings.LastIndexByte(o.Name, '.')]; strings.HasSuffix(stem, ".") || strings.HasSuffix(stem, "-") || !strings.HasPrefix(c.pod.Name, stem) {
			t.Errorf("name %s", o.Name)
		}
		if o.InvolvedObject.Name != c.pod.Name || o.InvolvedObject.UID != c.pod.UID || o.Type != corev1.EventTypeWarning ||
			o.Count != 1 || !o.FirstTimestamp.Time.Equal(at) || o.Source.Component == "" {
			t.Errorf("%+v", o)
		}
	}
	names := map[string]bool{}
	for _, p := range []*identity.Pod{pod("p"), {Name: "p", UID: "another"}} {
		for _, reason := range []diagnosis.Reason{diagnosis.Serving, diagnosis.RoleDenied} {
			names[event{reference("Pod", p.Namespace, p.Name, p.UID), diagnosis.Diagnosis{Reason: reason}, at}.object().Name] = true
		}
	}
	if len(names) != 4 {
		t.Errorf("names: %v", names)
	}
}

// A namespace whose pods fail by the thousands fills neither the queue nor the time of the
// writer: the events of others are written as if each namespace had its own.
func TestNamespaceCannotFillTheQueue(t *testing.T) {
	inNamespace := func(namespace, name string) *identity.Pod {
		p := pod(namespace + "-" + name)
		p.Namespace = namespace
		return p
	}
	for name, before := range map[string]bool{"others come before": true, "others come after": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRecorder()
				others := func() {
					for i := range 20 {
						for _, namespace := range []string{"a", "b"} {
							r.Record(inNamespace(namespace, fmt.Sprint(i)), say(diagnosis.RoleDenied, ""))
						}
					}
				}
				flood := func() {
					for i := range 3 * queueLength {
						r.Record(inNamespace("hostile", fmt.Sprint(i)), say(diagnosis.RoleMissing, ""))
					}
				}
				if before {
					others()
				}
				flood()
				if !before {
					others()
				}
				if n := r.count(t, "dropped"); n != 2*queueLength+40 {
					t.Errorf("%d dropped", n)
				}
				r.run(t)
				elapse(time.Duration(3*20-burst) * time.Second / perSecond)
				_, order := r.store.seen()
				written := map[string]int{}
				for _, pod := range order {
					namespace, _, _ := strings.Cut(pod, "-")
					written[namespace]++
				}
				if written["a"] != 20 || written["b"] != 20 || written["hostile"] != 20 {
					t.Errorf("written by namespace: %v", written)
				}
				elapse(time.Hour)
				if n := r.count(t, "written"); n != queueLength {
					t.Errorf("%d written", n)
				}
			})
		})
	}
}

// Events come and go in any order: none is lost, none counted twice, and no namespace is
// left without its turn.
func TestQueueInAnyOrder(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	q := queue{namespaces: map[string][]event{}}
	waiting := 0
	for i := range 200_000 {
		if random.IntN(3) == 0 {
			if _, ok := q.pop(); ok != (waiting > 0) {
				t.Fatalf("%v with %d waiting", ok, waiting)
			}
			waiting = max(0, waiting-1)
			continue
		}
		p := pod("p")
		p.Namespace = fmt.Sprint(min(random.IntN(i/100+1), random.IntN(3000)))
		if q.push(event{about: reference("Pod", p.Namespace, p.Name, p.UID)}) {
			waiting++
		}
		if len(q.turns) != len(q.namespaces) || q.length != waiting || waiting > queueLength {
			t.Fatalf("%d turns of %d namespaces, %d events, want %d", len(q.turns), len(q.namespaces), q.length, waiting)
		}
	}
	for _, events := range q.namespaces {
		if waiting -= len(events); len(events) == 0 {
			t.Error("a namespace without events")
		}
	}
	if waiting != 0 {
		t.Errorf("%d events too few", waiting)
	}
}
