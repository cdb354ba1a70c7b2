package identity

import (
	"iter"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/types"
)

// atOnce is how many pods are filed while requests wait: 0.1 ms.
const atOnce = 64

// transition is a pod that appears, in which case before is nil, changes, or goes, in
// which case after is nil.
type transition struct{ before, after *Pod }

// addresses are all that a transition may matter to, some more than once.
func (t transition) addresses() iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		for _, p := range []*Pod{t.before, t.after} {
			if p == nil {
				continue
			}
			for _, all := range []iter.Seq[netip.Addr]{slices.Values(p.Addresses), p.Host.Addresses()} {
				for a := range all {
					if !yield(a) {
						return
					}
				}
			}
		}
	}
}

func (t transition) key() types.NamespacedName {
	if t.after != nil {
		return t.after.key()
	}
	return t.before.key()
}

// set is the transition to this state of a pod, if it is one. It needs changes.
func (x *Index) set(p *Pod) []transition {
	before := x.pods[p.key()]
	if before != nil && before.same(p) {
		return nil
	}
	return []transition{{before, p}}
}

// replace are the transitions to these pods and no others. Those that go come last, so
// that an account which gets others is not without pods in between. It needs changes.
func (x *Index) replace(pods []*Pod) (all []transition) {
	present := make(map[types.NamespacedName]struct{}, len(pods))
	for _, p := range pods {
		if _, twice := present[p.key()]; !twice {
			present[p.key()] = struct{}{}
			all = append(all, x.set(p)...)
		}
	}
	for key, p := range x.pods {
		if _, ok := present[key]; !ok {
			all = append(all, transition{before: p})
		}
	}
	return all
}

// apply files the transitions. What takes more than one step is no state that the
// cluster was ever in, such as an address that a new pod has and no longer its last
// owner, but still the one before: nobody is known there until the last step. It needs
// changes.
func (x *Index) apply(all []transition) {
	if len(all) > atOnce {
		unsettled := make(map[netip.Addr]struct{}, len(all))
		for _, t := range all {
			for a := range t.addresses() {
				unsettled[a] = struct{}{}
			}
		}
		x.publish(func() { x.unsettled = unsettled })
		defer x.publish(func() { x.unsettled = nil })
	}
	for some := range slices.Chunk(all, atOnce) {
		x.publish(func() {
			for _, t := range some {
				x.file(t)
			}
		})
		for _, t := range some {
			x.tell(t)
		}
	}
}

// file puts a pod's state in place of its earlier one. It needs mu and changes.
func (x *Index) file(t transition) {
	before, after := t.before, t.after
	// Added before the old state is removed, so that the count of a node never touches
	// 0 in between.
	if after != nil {
		after.Life = x.lifeOf(t)
		x.add(after)
		x.pods[after.key()] = after
	}
	if before != nil {
		x.remove(before)
	}
	if after == nil {
		delete(x.pods, before.key())
	}
}

func (x *Index) lifeOf(t transition) *Life {
	if t.before != nil && t.before.UID == t.after.UID {
		return t.before.Life
	}
	return &Life{Announced: x.listed}
}

func (x *Index) add(p *Pod) {
	for a := range p.Host.Addresses() {
		if x.hosts[a] == nil {
			x.hosts[a] = map[string]hostPods{}
		}
		x.hosts[a][p.Host.Name()] = x.hosts[a][p.Host.Name()].plus(p, 1)
	}
	p.account = x.accountOf(p.accountKey())
	p.account.add(p)
	if !p.hasOwnAddresses() {
		return
	}
	for _, a := range p.Addresses {
		x.addresses[a] = append(x.addresses[a], p)
	}
}

func (x *Index) remove(p *Pod) {
	for a := range p.Host.Addresses() {
		if left := x.hosts[a][p.Host.Name()].plus(p, -1); left != (hostPods{}) {
			x.hosts[a][p.Host.Name()] = left
		} else {
			delete(x.hosts[a], p.Host.Name())
		}
		if len(x.hosts[a]) == 0 {
			delete(x.hosts, a)
		}
	}
	p.account.remove(p)
	x.left = append(x.left, p.accountKey())
	if !p.hasOwnAddresses() {
		return
	}
	for _, a := range p.Addresses {
		if left := without(x.addresses[a], p); len(left) > 0 {
			x.addresses[a] = left
		} else {
			delete(x.addresses, a)
		}
	}
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

// tell lets the observer know of a transition that was filed. It needs changes.
func (x *Index) tell(t transition) {
	isNew := t.before == nil || t.after != nil && t.before.UID != t.after.UID
	if t.before != nil && (isNew || t.after == nil) {
		x.observer.Gone(t.before)
	}
	p := t.after
	if p == nil || !isNew {
		return
	}
	x.use(p.account)
	if p.account.wrong != "" && p.hasOwnAddresses() {
		x.observer.Record(p, badAnnotation(p.ServiceAccount, p.account.wrong))
	}
	x.reportHostNetwork(p)
}
