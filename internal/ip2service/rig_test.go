//go:build !podonly

package ip2service

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/iam4kube/iam4kube/internal/ip2service/backends"
	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
)

// fakeKernel is a dataPath that one program watches, and fails when the test says so,
// before or after the effect, which the real one does not. What the real one does with
// routes is tested in test/rules.
type fakeKernel struct {
	// changed is told of each change, also of those by Sync, once Watch has set it.
	changed func()

	mu    sync.Mutex
	there *routes.Routes // nil: nothing
	// rival changes what is there after each change by Sync, as a program that watches too.
	rival         func()
	before, after error
	syncs         []time.Time
	counters      map[routes.Family]routes.Counters
	broken        error // what Counters and Remove fail with
	watch         error // what Watch fails with
}

// Sync implements dataPath.
func (k *fakeKernel) Sync(want routes.Routes) (changed bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.syncs = append(k.syncs, time.Now())
	if k.before != nil {
		return false, k.before
	}
	if want.Unknown && k.there != nil {
		want.New, want.Live = k.there.New, k.there.Live
	}
	want.Unknown = false // it is of no effect any more
	if k.there == nil || !k.there.Equal(want) {
		k.there, changed = &want, true
		k.changed()
		if k.rival != nil {
			k.rival()
			k.changed()
		}
	}
	return changed && k.after == nil, k.after
}

// Watch implements dataPath.
func (k *fakeKernel) Watch(ctx context.Context, changed func()) error {
	k.mu.Lock()
	err := k.watch
	if err == nil {
		k.changed = changed
	}
	k.mu.Unlock()
	if err != nil {
		return err
	}
	changed()
	<-ctx.Done()
	return nil
}

// Counters implements dataPath.
func (k *fakeKernel) Counters() (map[routes.Family]routes.Counters, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.broken != nil {
		return nil, k.broken
	}
	return k.counters, nil
}

// Remove implements dataPath.
func (k *fakeKernel) Remove() (removed bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.broken != nil {
		return false, k.broken
	}
	removed, k.there = k.there != nil, nil
	return removed, nil
}

// flush is what somebody else does, without a word if nobody is told.
func (k *fakeKernel) flush(told bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.there = nil
	if told {
		k.changed()
	}
}

// spoilGuard takes the guard away and leaves the endpoints.
func (k *fakeKernel) spoilGuard() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.there = &routes.Routes{New: k.there.New, Live: k.there.Live}
	k.changed()
}

// setRival lets another program want something else, or no more.
func (k *fakeKernel) setRival(change func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.rival = change
}

// fail makes Sync fail from now on; nil ends it.
func (k *fakeKernel) fail(before, after error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.before, k.after = before, after
}

// failWatch makes Watch fail from now on; nil ends it.
func (k *fakeKernel) failWatch(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.watch = err
}

func (k *fakeKernel) text() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return text(k.there)
}

// takeSyncs are the times of the calls since it was last called.
func (k *fakeKernel) takeSyncs() []time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	taken := k.syncs
	k.syncs = nil
	return taken
}

func text(there *routes.Routes) string {
	if there == nil {
		return ""
	}
	return fmt.Sprintf("%+v", *there)
}

// fakeMachine is a node with all that a real one cannot be made to have.
type fakeMachine struct {
	mu           sync.Mutex
	err          error
	owns, has    []netip.Addr
	unserved     map[routes.Family]error
	beside       []string
	sourceRoutes bool
}

func (m *fakeMachine) change(change func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
}

func (m *fakeMachine) look() (machine, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &fakeMachine{owns: m.owns, has: m.has, unserved: m.unserved, beside: m.beside, sourceRoutes: m.sourceRoutes}, m.err
}

// Owns implements machine.
func (m *fakeMachine) Owns(a netip.Addr) bool { return slices.Contains(m.owns, a) }

// Has implements machine.
func (m *fakeMachine) Has(a netip.Addr) bool { return slices.Contains(m.has, a) }

// Unserved implements machine.
func (m *fakeMachine) Unserved(family routes.Family) error { return m.unserved[family] }

// BPF implements machine.
func (m *fakeMachine) Beside() []string { return m.beside }

// SourceRoutes implements machine.
func (m *fakeMachine) SourceRoutes() bool { return m.sourceRoutes }

// intercept is what the flags say by default.
var intercept = []netip.AddrPort{netip.AddrPortFrom(routes.MetadataIPv4, 80), netip.AddrPortFrom(routes.MetadataIPv6, 80)}

// rig is a reconciler on the fakes.
type rig struct {
	*reconciler
	kernel   *fakeKernel
	machine  *fakeMachine
	logs     *observer.ObservedLogs
	registry *prometheus.Registry
}

func newRig() *rig {
	b := &rig{kernel: &fakeKernel{}, machine: &fakeMachine{}, registry: prometheus.NewRegistry()}
	core, logs := observer.New(zapcore.DebugLevel)
	b.logs = logs
	b.reconciler = newReconciler(Config{Intercept: intercept, ServiceTargetPort: "http"}, b.kernel, b.machine.look, newMetrics(b.registry), zap.New(core))
	b.kernel.changed = b.Trigger
	return b
}

// startRig is a rig in a bubble that works until the test ends, and has nothing to do now.
func startRig(t *testing.T) *rig {
	t.Helper()
	return startRigWith(t, func(*rig) {})
}

// startRigWith changes it before.
func startRigWith(t *testing.T, change func(*rig)) *rig {
	t.Helper()
	b := newRig()
	change(b)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- b.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	synctest.Wait()
	return b
}

// advance lets simulated time pass, and then everything that is due happen.
func advance(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // costs no real time
	synctest.Wait()
}

// Endpoints of the tests.
const (
	one, two, six = "10.0.0.1:8080", "10.0.0.2:8080", "[fd00::1]:8080"
)

// list makes these, of the form "STATE ADDRESS", the endpoints, and waits until what
// follows has happened.
func (b *rig) list(endpoints ...string) {
	slice := backends.Slice{Name: "s"}
	for _, e := range endpoints {
		state, address, _ := strings.Cut(e, " ")
		slice.Endpoints = append(slice.Endpoints, backends.Endpoint{
			Address: netip.MustParseAddrPort(address), State: backends.State(state), Node: "n",
		})
	}
	b.set.Replace([]backends.Slice{slice})
	synctest.Wait()
}

// routed is the text of the routes that lead to the new endpoints and let the live ones be.
func routed(fresh, live []string) string {
	parse := func(all []string) (addresses []netip.AddrPort) {
		for _, a := range all {
			addresses = append(addresses, netip.MustParseAddrPort(a))
		}
		return addresses
	}
	return text(&routes.Routes{Hooks: routes.Node, Intercept: intercept, New: parse(fresh), Live: parse(live)})
}

func (b *rig) wantRules(t *testing.T, fresh, live []string) {
	t.Helper()
	if have := b.kernel.text(); have != routed(fresh, live) {
		t.Errorf("want new connections to %v and old ones of %v, have\n%s", fresh, live, have)
	}
}

func (b *rig) wantErr(t *testing.T, want error) {
	t.Helper()
	if err := b.Err(); !errors.Is(err, want) {
		t.Errorf("Err: %v, want %v", err, want)
	}
}

// takeLogs are the messages that were logged since it was last called.
func (b *rig) takeLogs() (messages []string) {
	for _, e := range b.logs.TakeAll() {
		messages = append(messages, e.Message)
	}
	return messages
}

// count is how often a message is among them.
func count(messages []string, part string) (n int) {
	for _, m := range messages {
		if strings.Contains(m, part) {
			n++
		}
	}
	return n
}

// metric is the value of a counter or gauge, or the count of a histogram, with this label.
func (b *rig) metric(t *testing.T, name, label string) float64 {
	t.Helper()
	return metric(t, b.registry, name, label)
}

func metric(t *testing.T, registry prometheus.Gatherer, name string, labels ...string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			have := make([]string, len(labels))
			for i, label := range labels {
				if label != "" {
					have[i] = m.GetLabel()[i].GetValue()
				}
			}
			if slices.Equal(have, labels) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	t.Fatalf("no series %s %s", name, labels)
	return 0
}
