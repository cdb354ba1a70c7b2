// Package identity answers who calls: claim (a source address) → Pod →
// ServiceAccount → role. It owns the indexes of pods, ServiceAccounts and nodes, and
// the rules by which an address belongs to a pod. It does not know requests or
// credentials; it tells which roles are in use, and wakes who waits for an address
// or a ServiceAccount.
package identity

import (
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"

	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/internal/server/waiting"
)

// Roles hears which roles are in use; *credentials.Cache does. The pointer is that of
// Caller.Role until Drop.
type Roles interface {
	Want(*role.Role)
	// Use says that there are pods which may ask for a role that is wanted.
	Use(*role.Role)
	Drop(*role.Role)
}

// Observer hears of pods; *podevents.Recorder does. Its methods do not block.
type Observer interface {
	// Record says what there is to say of a pod before anybody asks.
	Record(pod *Pod, d diagnosis.Diagnosis)
	// Gone says that a pod does not exist any more.
	Gone(pod *Pod)
	// RecordAccount and AccountGone are the same for a ServiceAccount.
	RecordAccount(account AccountRef, d diagnosis.Diagnosis)
	AccountGone(account AccountRef)
}

// Index knows the callers. Its methods may be called from any goroutine.
type Index struct {
	hub      *waiting.Hub
	roles    Roles
	observer Observer
	sessions role.Sessions

	stale atomic.Bool
	// version counts what was published.
	version atomic.Uint64

	// changes is held by whoever changes the index or reads all of it, from begin to
	// end: a list of a large cluster takes a second. No request needs it. Whoever holds
	// it may read everything; it is locked before mu.
	changes sync.Mutex
	// listed is set with the first full list of pods.
	listed        bool
	pods          map[types.NamespacedName]*Pod
	accounts      map[types.NamespacedName]*account
	namespaces    map[string]*namespace
	denyByDefault bool
	// forwarders are the ServiceAccounts whose pods may hand in the tokens of others.
	forwarders map[types.NamespacedName]struct{}
	// left are the accounts that lost a pod during the present change.
	left []types.NamespacedName

	// mu guards what requests read: the rest of the fields, and what an account says. It
	// is locked for atOnce pods at most, and never for reading more than one.
	mu        sync.RWMutex
	addresses map[netip.Addr][]*Pod
	// unsettled are the addresses that a list is about to change: what is known of them
	// may be true neither before nor after it.
	unsettled map[netip.Addr]struct{}
	// hosts counts the pods that name an address as their node's, by the node's name.
	hosts map[netip.Addr]map[string]hostPods
	nodes map[string]Node
	// nodesListed is set with the first full list of nodes.
	nodesListed bool
	// podCIDRs counts the nodes that have a range.
	podCIDRs map[netip.Prefix]int
}

// Config is what an Index needs. Every field is required, but those that say what leaving
// them empty means.
type Config struct {
	// Hub has those who wait for the keys that Caller names.
	Hub      *waiting.Hub
	Roles    Roles
	Observer Observer
	// Sessions is what roles have that their annotations do not say.
	Sessions role.Sessions
	// Forwarders are ServiceAccounts whose pods may hand in the tokens of others; empty: none.
	Forwarders []types.NamespacedName
	// DenyByDefault: a namespace that does not say which roles are allowed has none.
	DenyByDefault bool
	Registry      prometheus.Registerer
}

// New returns an empty Index.
func New(cfg Config) *Index {
	x := &Index{
		hub: cfg.Hub, roles: cfg.Roles, observer: cfg.Observer, sessions: cfg.Sessions, denyByDefault: cfg.DenyByDefault,
		pods:       map[types.NamespacedName]*Pod{},
		addresses:  map[netip.Addr][]*Pod{},
		hosts:      map[netip.Addr]map[string]hostPods{},
		accounts:   map[types.NamespacedName]*account{},
		nodes:      map[string]Node{},
		podCIDRs:   map[netip.Prefix]int{},
		namespaces: map[string]*namespace{},
		forwarders: map[types.NamespacedName]struct{}{},
	}
	for _, account := range cfg.Forwarders {
		x.forwarders[account] = struct{}{}
	}
	cfg.Registry.MustRegister(collector{x})
	return x
}

// change runs do with changes held and wakes the keys that it returns afterwards.
// Accounts are released at the end, so that the order of a list does not matter.
func (x *Index) change(do func() []any) {
	x.changes.Lock()
	keys := do()
	for _, account := range x.left {
		x.release(account)
	}
	x.left = nil
	x.changes.Unlock()
	for _, key := range keys {
		x.hub.Wake(key)
	}
}

// publish runs do, which changes what requests read. It needs changes.
func (x *Index) publish(do func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.version.Add(1)
	do()
}
