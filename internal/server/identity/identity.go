// Package identity answers who calls: claim (a source address) → Pod →
// ServiceAccount → role. It owns the indexes of pods, ServiceAccounts and nodes, and
// the rules by which an address belongs to a pod. It does not know requests or
// credentials; it tells which roles are in use, and wakes who waits for an address
// or a ServiceAccount.
package identity

import (
	"net/netip"
	"sync"
	"time"

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
	Drop(*role.Role)
}

// Observer hears of pods; *podevents.Recorder does. Its methods do not block.
type Observer interface {
	// Record says what there is to say of a pod before anybody asks.
	Record(pod *Pod, d diagnosis.Diagnosis)
	// Gone says that a pod does not exist any more.
	Gone(pod *Pod)
}

// Index knows the callers. Its methods may be called from any goroutine.
type Index struct {
	hub             *waiting.Hub
	roles           Roles
	observer        Observer
	defaultDuration time.Duration

	mu sync.RWMutex
	// listed is set with the first full list of pods.
	listed    bool
	pods      map[types.NamespacedName]*Pod
	addresses map[netip.Addr][]*Pod
	// hosts counts the pods that name an address as their node's, by the node's name.
	hosts    map[netip.Addr]map[string]int
	accounts map[types.NamespacedName]*account
	nodes    map[string]Node
	// podCIDRs counts the nodes that have a range.
	podCIDRs map[netip.Prefix]int
	// left are the accounts that lost a pod during the present change.
	left []types.NamespacedName
}

// New returns an empty Index. Waiters of hub wait for the keys that Caller names.
func New(hub *waiting.Hub, roles Roles, observer Observer, defaultDuration time.Duration, registry prometheus.Registerer) *Index {
	x := &Index{
		hub: hub, roles: roles, observer: observer, defaultDuration: defaultDuration,
		pods:      map[types.NamespacedName]*Pod{},
		addresses: map[netip.Addr][]*Pod{},
		hosts:     map[netip.Addr]map[string]int{},
		accounts:  map[types.NamespacedName]*account{},
		nodes:     map[string]Node{},
		podCIDRs:  map[netip.Prefix]int{},
	}
	registry.MustRegister(collector{x})
	return x
}

// setPod files a pod, in place of its earlier state if there is one. The caller
// holds mu and wakes the keys that are returned after releasing it.
func (x *Index) setPod(p *Pod) []any {
	old := x.pods[p.key()]
	switch {
	case old != nil && old.UID == p.UID && old.same(p):
		return nil
	case old != nil && old.UID == p.UID:
		p.Life = old.Life
	default:
		p.Life = &Life{Announced: x.listed}
	}
	// Added before the old state is removed, so that the count of a node never touches
	// 0 in between.
	keys := x.file(p)
	if old != nil {
		keys = append(keys, x.unfile(old)...)
		if old.UID != p.UID {
			x.observer.Gone(old)
		}
	}
	x.pods[p.key()] = p
	if a := p.account; a.exists && a.wrong != "" && p.hasOwnAddresses() && (old == nil || old.UID != p.UID) {
		x.observer.Record(p, badAnnotation(p.ServiceAccount, a.wrong))
	}
	return keys
}

// removePod needs mu, like setPod.
func (x *Index) removePod(key types.NamespacedName) []any {
	old := x.pods[key]
	if old == nil {
		return nil
	}
	delete(x.pods, key)
	x.observer.Gone(old)
	return x.unfile(old)
}

func (x *Index) file(p *Pod) []any {
	keys := make([]any, 0, 4)
	for _, a := range p.HostAddresses {
		if x.hosts[a] == nil {
			x.hosts[a] = map[string]int{}
		}
		if x.hosts[a][p.Node]++; x.hosts[a][p.Node] == 1 {
			keys = append(keys, a) // who waits for a pod there waits in vain
		}
	}
	p.account = x.accountOf(p.accountKey())
	p.account.pods++
	if !p.hasOwnAddresses() {
		return keys
	}
	for _, a := range p.Addresses {
		x.addresses[a] = append(x.addresses[a], p)
		keys = append(keys, a)
	}
	return keys
}

func (x *Index) unfile(p *Pod) []any {
	for _, a := range p.HostAddresses {
		if x.hosts[a][p.Node]--; x.hosts[a][p.Node] == 0 {
			delete(x.hosts[a], p.Node)
		}
		if len(x.hosts[a]) == 0 {
			delete(x.hosts, a)
		}
	}
	p.account.pods--
	x.left = append(x.left, p.accountKey())
	if !p.hasOwnAddresses() {
		return nil
	}
	keys := make([]any, 0, 4)
	for _, a := range p.Addresses {
		if left := without(x.addresses[a], p); len(left) > 0 {
			x.addresses[a] = left
		} else {
			delete(x.addresses, a)
		}
		keys = append(keys, a)
	}
	return keys
}

// without returns a new slice: readers may hold the old one.
func without(pods []*Pod, p *Pod) []*Pod {
	var left []*Pod
	for _, other := range pods {
		if other != p {
			left = append(left, other)
		}
	}
	return left
}
