package identity

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// event is what a watch delivers.
type event[T metav1.Object] struct {
	object  T
	deleted bool
}

func (e event[T]) String() string {
	what := "set"
	if e.deleted {
		what = "delete"
	}
	s := fmt.Sprintf("%s %s/%s", what, e.object.GetNamespace(), e.object.GetName())
	switch o := any(e.object).(type) {
	case *corev1.Pod:
		s += fmt.Sprintf(" %s %v of %s", o.UID, addressesOf(o), o.Spec.ServiceAccountName)
		for attribute, has := range map[string]bool{
			"hostNetwork": o.Spec.HostNetwork, "terminating": o.DeletionTimestamp != nil, "ended": o.Status.ContainerStatuses[0].State.Terminated != nil,
		} {
			if has {
				s += " " + attribute
			}
		}
	case *metav1.PartialObjectMetadata:
		s += " " + arnOf(o)
	}
	return s
}

// addressesOf are all that are in the pod's status; none for nil.
func addressesOf(p *corev1.Pod) []string {
	var all []string
	if p == nil {
		return nil
	}
	for _, ip := range p.Status.PodIPs {
		all = append(all, ip.IP)
	}
	for _, ip := range p.Status.HostIPs {
		all = append(all, ip.IP)
	}
	return all
}

// cluster is what is true: objects, and the events of their changes.
type cluster struct {
	rand *rand.Rand
	// conflicts lets an address be given to two living pods, as broken networks do.
	conflicts     bool
	pods          map[string]*corev1.Pod
	accounts      map[string]*metav1.PartialObjectMetadata
	podEvents     []event[*corev1.Pod]
	accountEvents []event[*metav1.PartialObjectMetadata]
	// assigned counts the addresses given out; since is when each pod got its own.
	assigned int
	since    map[types.UID]int
	uids     int
}

func newCluster(r *rand.Rand, conflicts bool) *cluster {
	return &cluster{
		rand: r, conflicts: conflicts,
		pods: map[string]*corev1.Pod{}, accounts: map[string]*metav1.PartialObjectMetadata{}, since: map[types.UID]int{},
	}
}

// selected are the pods that the API server shows.
func (c *cluster) selected() map[string]*corev1.Pod {
	all := maps.Clone(c.pods)
	maps.DeleteFunc(all, func(_ string, p *corev1.Pod) bool {
		return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
	})
	return all
}

// owner is the pod that has the address: the last to get it of those that live.
func (c *cluster) owner(address string) *corev1.Pod {
	all, _ := (&model{pods: c.selected()}).claims(address)
	owner := &corev1.Pod{}
	for _, p := range all {
		if owner.UID == "" || c.since[p.UID] > c.since[owner.UID] {
			owner = p
		}
	}
	return owner
}

// change lets something random happen.
func (c *cluster) change() {
	if c.rand.IntN(4) == 0 {
		c.changeAccount()
		return
	}
	key := fmt.Sprintf("n%d/p%d", c.rand.IntN(2), c.rand.IntN(3))
	p := c.pods[key]
	if p == nil {
		c.create(key)
		return
	}
	p = p.DeepCopy()
	switch n := c.rand.IntN(10); {
	case len(p.Status.PodIPs) == 0:
		c.assign(p)
	case p.DeletionTimestamp == nil && n < 5:
		terminating(p)
		c.set(p, false)
	case p.DeletionTimestamp != nil && n < 5:
		containersEnded(p)
		c.set(p, false)
	case n < 7 && c.selected()[key] != nil:
		p.Status.Phase = []corev1.PodPhase{corev1.PodSucceeded, corev1.PodFailed}[c.rand.IntN(2)]
		c.set(p, true) // for a watch with a field selector it is deleted
	case n < 9:
		shown := c.selected()[key] != nil
		delete(c.pods, key)
		if shown {
			c.podEvents = append(c.podEvents, event[*corev1.Pod]{p, true})
		}
	}
}

func (c *cluster) set(p *corev1.Pod, deleted bool) {
	c.pods[p.Namespace+"/"+p.Name] = p
	c.podEvents = append(c.podEvents, event[*corev1.Pod]{p, deleted})
}

func (c *cluster) create(key string) {
	namespace, name, _ := strings.Cut(key, "/")
	c.uids++
	p := pod(name, "", uid(fmt.Sprintf("uid-%d", c.uids)))
	p.Namespace = namespace
	p.Spec.ServiceAccountName = fmt.Sprintf("s%d", c.rand.IntN(2))
	p.Spec.HostNetwork = c.rand.IntN(8) == 0
	c.set(p, false)
}

// assign gives the pod its addresses: only those that no pod has, or whose pods are known
// to be terminating.
func (c *cluster) assign(p *corev1.Pod) {
	host := nodeIPs[c.rand.IntN(len(nodeIPs))]
	if c.rand.IntN(20) == 0 {
		onHost(host)(p) // some histories have a node whose address is told late
	}
	var mine []string
	for _, family := range [][]string{podIPv4, podIPv6} {
		address := family[c.rand.IntN(len(family))]
		_, live := (&model{pods: c.selected()}).claims(address)
		if len(live) == 0 || c.conflicts && c.rand.IntN(3) == 0 {
			mine = append(mine, address)
		}
	}
	if len(mine) == 2 {
		mine = [][]string{mine, {mine[1], mine[0]}, mine[:1]}[c.rand.IntN(3)]
	}
	if p.Spec.HostNetwork {
		onHost(host)(p)
		mine = []string{host}
	}
	if len(mine) == 0 {
		return
	}
	withAddresses(mine...)(p)
	c.assigned++
	c.since[p.UID] = c.assigned
	c.set(p, false)
}

func (c *cluster) changeAccount() {
	key := fmt.Sprintf("n%d/s%d", c.rand.IntN(2), c.rand.IntN(2))
	if a := c.accounts[key]; a != nil && c.rand.IntN(4) == 0 {
		delete(c.accounts, key)
		c.accountEvents = append(c.accountEvents, event[*metav1.PartialObjectMetadata]{a, true})
		return
	}
	namespace, name, _ := strings.Cut(key, "/")
	roleName := []string{"", "bad", "one", "two", "three"}[c.rand.IntN(5)]
	a := serviceAccount(name, roleName)
	if a.Namespace = namespace; roleName == "bad" {
		a.Annotations = map[string]string{"iam.amazonaws.com/roleArn": fmt.Sprintf("bad %d", c.rand.IntN(3))}
	}
	c.accounts[key] = a
	c.accountEvents = append(c.accountEvents, event[*metav1.PartialObjectMetadata]{a, false})
}
