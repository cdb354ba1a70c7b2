//go:build !podonly

package ip2service

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/iam4kube/iam4kube/internal/ip2service/backends"
	"github.com/iam4kube/iam4kube/internal/ip2service/host"
	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
	"github.com/iam4kube/iam4kube/internal/logging"
)

const (
	// resync is how often the kernel is read although nothing is known to have changed.
	resync = 30 * time.Second
	// firstRetry is doubled with each failure in a row, up to lastRetry. Nobody tells when
	// the owner of a table has ended and taken it along, and until then pods are without
	// a guard.
	firstRetry, lastRetry = 20 * time.Millisecond, 500 * time.Millisecond
	// linger is how long the connections of an endpoint may go on after it has vanished
	// from the slices. A packet can be past the NAT of the old rules when the new ones
	// come, and would be refused by their guard.
	linger = 25 * time.Millisecond
	// patience is the number of repairs in a row, each within fight of the last one,
	// after which the next one has to wait: somebody else wants other rules, and two
	// programs shall not use up a processor over it.
	patience, fight, truce = 5, time.Second, 500 * time.Millisecond
	// staleRetry is how often is asked whether the API server was heard again.
	staleRetry = time.Second
)

var (
	errNotSynced = errors.New("the first list of EndpointSlices has not arrived")
	errStale     = errors.New("nothing was heard from the API server for longer than --max-staleness: pods' requests are rejected, because the servers' addresses may have other owners")
)

// machine is what is known of the host.
type machine interface {
	Owns(netip.Addr) bool
	Has(netip.Addr) bool
	Unserved(routes.Family) error
	Beside() []string
	SourceRoutes() bool
}

func lookAtHost() (machine, error) { return host.Look() }

// reconciler keeps the kernel's rules what endpoints and flags say.
type reconciler struct {
	cfg     Config
	kernel  dataPath
	look    func() (machine, error)
	set     *backends.Set
	log     *zap.Logger
	metrics *metrics
	// silence is how long nothing was heard from the API server since the first list.
	silence func() time.Duration
	started time.Time
	// doubted says that an endpoint may be somebody else.
	doubted func(netip.AddrPort) bool
	// netfilter says whether nothing but netfilter catches what pods send.
	netfilter func() bool
	// due has an entry when there may be something to do.
	due chan struct{}
	// inSync is closed when the rules of known endpoints are in for the first time.
	inSync chan struct{}

	// Of the last run, for the one goroutine of Run.
	applied  *routes.Routes // nil: unknown what is in the kernel
	live     []netip.AddrPort
	leaving  map[netip.AddrPort]time.Time // when they left
	bypassed bool
	failures int
	repairs  int
	repaired time.Time
	told     told

	mu  sync.Mutex
	err error
}

// told is what the log already says.
type told struct {
	endpoints    []backends.Endpoint
	noPort       []string
	beside       []string
	taken        []netip.Addr
	stale        bool
	sourceRoutes bool
	err          string
}

func newReconciler(cfg Config, kernel dataPath, look func() (machine, error), m *metrics, log *zap.Logger) *reconciler {
	r := &reconciler{
		cfg: cfg, kernel: kernel, look: look, log: log, metrics: m,
		due: make(chan struct{}, 1), inSync: make(chan struct{}), leaving: map[netip.AddrPort]time.Time{}, err: errNotSynced,
	}
	r.set = &backends.Set{Changed: r.Trigger}
	r.doubted = func(netip.AddrPort) bool { return false }
	r.netfilter = func() bool { return true }
	r.silence, r.started = func() time.Duration { return 0 }, time.Now()
	return r
}

// Trigger makes Run look again.
func (r *reconciler) Trigger() {
	select {
	case r.due <- struct{}{}:
	default:
	}
}

// Err is why the kernel's rules are not known to be what they should be, or why they do
// not help the pods of this node; nil if all is well.
func (r *reconciler) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// Run works until ctx ends. It leaves the rules where they are.
func (r *reconciler) Run(ctx context.Context) error {
	for {
		pause, patient := r.reconcile()
		timer := time.NewTimer(pause)
		due := r.due
		if patient {
			due = nil
		}
		select {
		case <-due:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		timer.Stop()
	}
}

// reconcile makes the rules so, and says when to look again, or earlier unless patient.
func (r *reconciler) reconcile() (pause time.Duration, patient bool) {
	now := time.Now()
	host, err := r.look()
	if err != nil {
		// Endpoints cannot be judged, so those of before stay. The guard has to be in.
		r.applied = nil
		_, syncErr := r.sync(r.routes(r.cfg.intercept(nobody), nil, nil, false))
		return r.failed(errors.Join(err, syncErr)), false
	}
	endpoints, known := r.set.Endpoints()
	stale := r.stale(known)
	if stale {
		endpoints = nil
	}
	backends.Mark(endpoints, backends.Unproven, r.doubted)
	// Traffic to a node's address is masqueraded on its way, so that a server there could
	// not know which pod asks.
	backends.Mark(endpoints, backends.Refused, func(e netip.AddrPort) bool {
		return host.Owns(e.Addr()) || slices.ContainsFunc(r.cfg.Intercept, func(i netip.AddrPort) bool { return i.Addr() == e.Addr() })
	})
	led := r.cfg.intercept(host.Has)
	r.metrics.observe(endpoints, r.beside(host), stale)
	r.tell(endpoints, host, led.taken, stale)

	fresh, live := backends.Select(endpoints)
	live, next := r.leave(live, now)
	r.bypassed = len(host.Beside()) > 0
	want := r.routes(led, fresh, live, known || stale)
	foreign := r.applied != nil && r.applied.Equal(want)
	changed, err := r.sync(want)
	if err != nil {
		r.applied = nil
		return r.failed(err), false
	}
	r.applied, r.failures = &want, 0
	r.metrics.synced(now)
	if known && !closed(r.inSync) {
		close(r.inSync)
	}
	r.judge(known, stale, host, led.taken, live)
	if changed && foreign && r.repair(now) {
		return truce, true
	}
	if stale {
		next = min(next, staleRetry)
	}
	return next, false
}

// beside are the interfaces that packets of pods may take past netfilter, where that matters.
func (r *reconciler) beside(host machine) []string {
	if !r.netfilter() {
		return nil
	}
	return host.Beside()
}

// stale says that nothing was heard for so long, or never since the start, that the
// endpoints, of this run or of an earlier one, may be somebody else.
func (r *reconciler) stale(known bool) bool {
	silence := r.silence()
	if !known {
		silence = time.Since(r.started)
	}
	return r.cfg.MaxStaleness > 0 && silence > r.cfg.MaxStaleness
}

func (r *reconciler) sync(want routes.Routes) (changed bool, err error) {
	start := time.Now()
	changed, err = r.kernel.Sync(want)
	if changed || err != nil {
		r.metrics.applied(err, time.Since(start))
	}
	return changed, err
}

func (r *reconciler) routes(i interception, fresh, live []netip.AddrPort, known bool) routes.Routes {
	return routes.Routes{Hooks: routes.Node, Intercept: i.pods, Host: i.host, KeepMetadata: r.cfg.KeepMetadata, DNS: r.cfg.AllowDNS, Bypassed: r.bypassed, New: fresh, Live: live, Unknown: !known}
}

// leave adds to the live endpoints those that left a moment ago, and says when the first
// of them has to go.
func (r *reconciler) leave(live []netip.AddrPort, now time.Time) (all []netip.AddrPort, next time.Duration) {
	next = resync
	for _, e := range r.live {
		if !slices.Contains(live, e) {
			r.leaving[e] = now
		}
	}
	r.live = slices.Clone(live)
	for e, since := range r.leaving {
		left := linger - now.Sub(since)
		if left <= 0 || slices.Contains(live, e) {
			delete(r.leaving, e)
			continue
		}
		all, next = append(all, e), min(next, left)
	}
	all = append(all, live...)
	slices.SortFunc(all, netip.AddrPort.Compare)
	return all, next
}

func (r *reconciler) failed(err error) (pause time.Duration) {
	r.setErr(err)
	if text := err.Error(); text != r.told.err {
		r.told.err = text
		r.log.Error("could not bring the rules into the kernel", zap.Error(err))
	}
	pause = min(lastRetry, firstRetry<<min(r.failures, 20))
	r.failures++
	return pause/2 + rand.N(pause) // so that not all nodes come at once
}

// judge says whether pods are served, now that the rules are in.
func (r *reconciler) judge(known, stale bool, host machine, taken []netip.Addr, live []netip.AddrPort) {
	r.told.err = ""
	err := errNotSynced
	switch {
	case stale:
		err = errStale
	case known:
		err = nil
		for _, family := range routes.Families {
			concerned := r.netfilter() && (family == routes.IPv4 || slices.ContainsFunc(live, func(e netip.AddrPort) bool { return routes.FamilyOf(e.Addr()) == family }))
			if concerned {
				err = errors.Join(err, host.Unserved(family))
			}
		}
		for _, a := range taken {
			err = errors.Join(err, takenError{a})
		}
	}
	r.setErr(err)
}

func (r *reconciler) setErr(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
}

// repair tells of rules that somebody else had changed, and says whether the next repair
// should wait.
func (r *reconciler) repair(now time.Time) (patient bool) {
	r.metrics.repairs.Inc()
	r.log.Warn("somebody changed the rules, changed them back")
	if now.Sub(r.repaired) > fight {
		r.repairs = 0
	}
	r.repairs, r.repaired = r.repairs+1, now
	return r.repairs > patience
}

// tell logs what has changed.
func (r *reconciler) tell(endpoints []backends.Endpoint, host machine, taken []netip.Addr, stale bool) {
	for _, a := range taken {
		if !slices.Contains(r.told.taken, a) {
			r.log.Error("address not led to the servers", zap.Stringer(logging.Address, a), zap.Error(takenError{a}))
		}
	}
	r.told.taken = taken
	if stale != r.told.stale {
		if r.told.stale = stale; stale {
			r.log.Error("nothing was heard from the API server for longer than --max-staleness: what pods ask is rejected")
		} else {
			r.log.Info("the API server was heard again: what pods ask is led to the endpoints")
		}
	}
	if !slices.Equal(endpoints, r.told.endpoints) {
		for _, e := range endpoints {
			if e.State == backends.Refused && !slices.Contains(r.told.endpoints, e) {
				r.log.Warn("endpoint refused: it is an address of this node, so the server there is on the host's network and would see the node's address instead of the pod's; run the server without hostNetwork",
					zap.Stringer(logging.Address, e.Address), zap.String(logging.Node, e.Node))
			}
		}
		r.log.Info("endpoints", zap.Any(logging.Endpoints, byState(endpoints)))
		r.told.endpoints = endpoints
	}
	if noPort := r.set.NoPort(); !slices.Equal(noPort, r.told.noPort) {
		r.told.noPort = noPort
		if len(noPort) > 0 {
			r.log.Warn("EndpointSlices without the port of --service-target-port are ignored",
				zap.Strings(logging.Slices, noPort), zap.String(logging.Port, r.cfg.ServiceTargetPort))
		}
	}
	if beside := r.beside(host); !slices.Equal(beside, r.told.beside) {
		r.told.beside = beside
		if len(beside) > 0 {
			r.log.Warn("packets of pods may go past netfilter, and so past our rules, to the metadata service of the node, by BPF programs or Open vSwitch: use legacy host routing (Cilium: bpf.hostLegacyRouting=true) or inject ip2service into the pods",
				zap.Strings(logging.Interfaces, beside))
		}
	}
	if accepts := host.SourceRoutes(); accepts != r.told.sourceRoutes {
		r.told.sourceRoutes = accepts
		if accepts {
			r.log.Warn("this node accepts source routes, so a pod that sends with another pod's address can have the answers: sysctl -w net.ipv4.conf.all.accept_source_route=0")
		}
	}
}

func byState(endpoints []backends.Endpoint) map[backends.State][]string {
	m := map[backends.State][]string{}
	for _, e := range endpoints {
		m[e.State] = append(m[e.State], e.Address.String())
	}
	return m
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
