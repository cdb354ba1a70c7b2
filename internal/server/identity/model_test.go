package identity

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/internal/server/waiting"
)

// The addresses of the random histories: few, so that they change hands often.
var (
	podIPv4   = []string{"10.0.0.1", "10.0.0.2", "10.0.0.3"}
	podIPv6   = []string{"fd00::1", "fd00::2"}
	nodeIPs   = []string{"10.9.9.1", "10.9.9.2"}
	addresses = slices.Concat(podIPv4, podIPv6, nodeIPs)
)

// TestRandomHistories plays 1,000 histories of a small cluster to an Index, in the order
// and with the gaps, repetitions and new lists that watches have, and compares it after
// each event with a model that knows nothing but what was told last. It also checks
// that whoever waits is woken by what concerns him and by nothing else.
//
// A history is repeated by its seed, which is in the failure.
func TestRandomHistories(t *testing.T) {
	const histories, steps = 1000, 100
	for seed := range uint64(histories) {
		h := newHistory(seed)
		for range steps {
			if err := h.step(); err != nil {
				t.Fatalf("seed %d: %v\n%s", seed, err, strings.Join(h.trail, "\n"))
			}
		}
		if err := h.end(); err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, strings.Join(h.trail, "\n"))
		}
	}
}

// model is what was told last, and the rules, as plainly as they can be said.
type model struct {
	pods     map[string]*corev1.Pod
	accounts map[string]*metav1.PartialObjectMetadata
	// remembered are the roles of ServiceAccounts that went before their pods.
	remembered map[string]string
}

func (m *model) hasEnded(p *corev1.Pod) bool {
	if p.Spec.HostNetwork || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return true
	}
	return p.DeletionTimestamp != nil && p.Status.ContainerStatuses[0].State.Terminated != nil
}

// claims are the living pods with the address.
func (m *model) claims(address string) (all, live []*corev1.Pod) {
	for _, key := range slices.Sorted(maps.Keys(m.pods)) {
		p := m.pods[key]
		if m.hasEnded(p) || !slices.Contains(p.Status.PodIPs, corev1.PodIP{IP: address}) {
			continue
		}
		all = append(all, p)
		if p.DeletionTimestamp == nil {
			live = append(live, p)
		}
	}
	return all, live
}

// says is what the Index has to say of an address: POD ROLE, POD MISSING, or MISSING.
func (m *model) says(address string) string {
	for _, p := range m.pods {
		if slices.Contains(p.Status.HostIPs, corev1.HostIP{IP: address}) {
			return "node"
		}
	}
	all, live := m.claims(address)
	var p *corev1.Pod
	switch {
	case len(all) == 0:
		return "pod"
	case len(all) == 1:
		p = all[0]
	case len(live) == 1:
		p = live[0]
	default:
		return "single-pod"
	}
	key := p.Namespace + "/" + p.Spec.ServiceAccountName
	a, exists := m.accounts[key]
	switch remembered := m.remembered[key]; {
	case exists && arnOf(a) == "":
		return string(p.UID) + " role-annotation"
	case exists && isBad(arnOf(a)):
		return string(p.UID) + " bad annotation"
	case exists:
		return string(p.UID) + " " + key + " " + arnOf(a)
	case p.DeletionTimestamp != nil && remembered != "":
		return string(p.UID) + " " + key + " " + remembered
	}
	return string(p.UID) + " service-account"
}

func arnOf(a *metav1.PartialObjectMetadata) string { return a.Annotations[role.AnnotationARN] }
func isBad(arn string) bool                        { return strings.HasPrefix(arn, "bad") }

// told brings remembered up to date after one event; before are the ServiceAccounts
// before it.
func (m *model) told(before map[string]*metav1.PartialObjectMetadata) {
	for key, a := range before {
		if _, exists := m.accounts[key]; !exists && arnOf(a) != "" && !isBad(arnOf(a)) {
			m.remembered[key] = arnOf(a)
		}
	}
	named := map[string]bool{}
	for _, p := range m.pods {
		named[p.Namespace+"/"+p.Spec.ServiceAccountName] = true
	}
	for key := range m.remembered {
		if _, exists := m.accounts[key]; exists || !named[key] {
			delete(m.remembered, key)
		}
	}
}

// inUse are the roles that somebody may ask for.
func (m *model) inUse() map[string]bool {
	roles := map[string]bool{}
	for key, a := range m.accounts {
		if arn := arnOf(a); arn != "" && !isBad(arn) {
			roles[key+" "+arn] = true
		}
	}
	for key, arn := range m.remembered {
		roles[key+" "+arn] = true
	}
	return roles
}

// history is a random life of a cluster as an Index hears of it.
type history struct {
	rand    *rand.Rand
	cluster *cluster
	index   *world
	model   *model
	// podsTold and accountsTold are how much of the cluster's events was delivered.
	podsTold, accountsTold int
	// stale: an event was delivered late, so the Index may be wrong until the next list.
	stale bool
	trail []string
}

func newHistory(seed uint64) *history {
	r := rand.New(rand.NewPCG(seed, 0))
	return &history{
		rand: r, cluster: newCluster(r, seed%5 == 0), index: newWorld(),
		model: &model{map[string]*corev1.Pod{}, map[string]*metav1.PartialObjectMetadata{}, map[string]string{}},
	}
}

// step lets something happen in the cluster, or lets the Index hear of it.
func (h *history) step() error {
	switch n := h.rand.IntN(100); {
	case n < 40:
		h.cluster.change()
		return nil
	case n < 65 && h.podsTold < len(h.cluster.podEvents):
		h.podsTold++
		return h.tellPod("", h.cluster.podEvents[h.podsTold-1])
	case n < 85 && h.accountsTold < len(h.cluster.accountEvents):
		h.accountsTold++
		return h.tellAccount("", h.cluster.accountEvents[h.accountsTold-1])
	case n < 88 && h.podsTold > 0:
		return h.tellPod("again: ", h.cluster.podEvents[h.podsTold-1])
	case n < 90 && h.accountsTold > 0:
		return h.tellAccount("again: ", h.cluster.accountEvents[h.accountsTold-1])
	case n < 92 && h.podsTold > 0:
		h.stale = true
		return h.tellPod("stale: ", h.cluster.podEvents[h.rand.IntN(h.podsTold)])
	case n < 94 && h.accountsTold > 0:
		h.stale = true
		return h.tellAccount("stale: ", h.cluster.accountEvents[h.rand.IntN(h.accountsTold)])
	case n < 97:
		return h.relist()
	}
	return h.catchUp()
}

// catchUp delivers everything and compares with what is true.
func (h *history) catchUp() error {
	for ; h.podsTold < len(h.cluster.podEvents); h.podsTold++ {
		if err := h.tellPod("", h.cluster.podEvents[h.podsTold]); err != nil {
			return err
		}
	}
	for ; h.accountsTold < len(h.cluster.accountEvents); h.accountsTold++ {
		if err := h.tellAccount("", h.cluster.accountEvents[h.accountsTold]); err != nil {
			return err
		}
	}
	if h.stale {
		return nil
	}
	for _, address := range addresses {
		c := h.index.Lookup(from(address))
		if owner := h.cluster.owner(address); c.Pod != nil && c.Pod.UID != owner.UID && !h.cluster.conflicts {
			return fmt.Errorf("%s belongs to %s, the index says %s", address, owner.UID, c.Pod.UID)
		}
		if c.Pod == nil {
			continue
		}
		a := h.cluster.accounts[c.Pod.Namespace+"/"+c.Pod.ServiceAccount]
		if c.Role != nil && (a == nil && !c.Pod.Terminating || a != nil && c.Role.ARN != arnOf(a)) {
			return fmt.Errorf("pod %s has %s, its ServiceAccount says %v", c.Pod.UID, c.Role.ARN, a)
		}
	}
	return nil
}

func (h *history) tellPod(how string, e event[*corev1.Pod]) error {
	key := e.object.Namespace + "/" + e.object.Name
	related := append(addressesOf(e.object), addressesOf(h.model.pods[key])...)
	return h.tell(how+e.String(), func(address string, _ *Pod) bool { return slices.Contains(related, address) }, func() {
		if e.deleted {
			delete(h.model.pods, key)
			h.index.deletePod(e.object)
			return
		}
		h.model.pods[key] = e.object
		h.index.setPod(e.object)
	})
}

func (h *history) tellAccount(how string, e event[*metav1.PartialObjectMetadata]) error {
	key := e.object.Namespace + "/" + e.object.Name
	related := func(_ string, p *Pod) bool { return p != nil && p.Namespace+"/"+p.ServiceAccount == key }
	return h.tell(how+e.String(), related, func() {
		if e.deleted {
			delete(h.model.accounts, key)
			h.index.deleteAccount(e.object)
			return
		}
		h.model.accounts[key] = e.object
		h.index.setAccount(e.object)
	})
}

// relist is a watch that starts anew: events in between are never told.
func (h *history) relist() error {
	h.podsTold, h.accountsTold, h.stale = len(h.cluster.podEvents), len(h.cluster.accountEvents), false
	listed := h.cluster.selected()
	everyone := func(string, *Pod) bool { return true }
	err := h.tell(fmt.Sprintf("list of pods: %v", slices.Sorted(maps.Keys(listed))), everyone, func() {
		h.model.pods = listed
		h.index.listPods(slices.Collect(maps.Values(listed))...)
	})
	if err != nil {
		return err
	}
	return h.tell("list of accounts", everyone, func() {
		h.model.accounts = maps.Clone(h.cluster.accounts)
		h.index.listAccounts(slices.Collect(maps.Values(h.cluster.accounts))...)
	})
}

// tell delivers one event while somebody waits on every address.
func (h *history) tell(what string, related func(address string, p *Pod) bool, deliver func()) error {
	h.trail = append(h.trail, what)
	before := maps.Clone(h.model.accounts)
	said, waiters, callers := map[string]string{}, map[string]*waiting.Waiter{}, map[string]Caller{}
	defer func() {
		for _, waiter := range waiters {
			waiter.Leave()
		}
	}()
	for _, address := range addresses {
		waiter, err := h.index.hub.Join(from(address), "")
		if err != nil {
			return err
		}
		callers[address] = h.index.Lookup(from(address))
		said[address], waiters[address] = h.says(address), waiter
		waiter.Watch(callers[address].Keys()...)
	}
	deliver()
	h.model.told(before)
	for _, address := range addresses {
		got := h.says(address)
		if want := h.model.says(address); got != want {
			return fmt.Errorf("%s: the index says %q, the model %q", address, got, want)
		}
		woken := len(waiters[address].C) > 0
		// Nobody waits on a node's address: that is refused at once.
		if got != said[address] && said[address] != "node" && !woken {
			return fmt.Errorf("%s went from %q to %q and woke nobody", address, said[address], got)
		}
		if woken && !related(address, callers[address].Pod) {
			return fmt.Errorf("%s was woken by what does not concern it", address)
		}
	}
	inUse := map[string]bool{}
	for r := range h.index.wanted {
		inUse[r.Namespace+"/"+r.ServiceAccount+" "+r.ARN] = true
	}
	if want := h.model.inUse(); !maps.Equal(inUse, want) {
		return fmt.Errorf("roles in use: %v, want %v", inUse, want)
	}
	return nil
}

// says is the Index's word in the model's form.
func (h *history) says(address string) string {
	c := h.index.Lookup(from(address))
	switch {
	case c.Refusal == diagnosis.NodeAddress:
		return "node"
	case c.Pod == nil:
		return string(c.Missing)
	case c.Refusal == diagnosis.BadAnnotation:
		return string(c.Pod.UID) + " bad annotation"
	case c.Role != nil:
		return string(c.Pod.UID) + " " + c.Role.Namespace + "/" + c.Role.ServiceAccount + " " + c.Role.ARN
	}
	return string(c.Pod.UID) + " " + string(c.Missing)
}

// end checks that an empty cluster leaves nothing behind.
func (h *history) end() error {
	h.index.listPods()
	h.index.listAccounts()
	x := h.index
	if left := len(x.pods) + len(x.addresses) + len(x.hosts) + len(x.accounts) + len(x.wanted) + x.hub.Len(); left != 0 {
		return fmt.Errorf("something is left: %v %v %v %v %v", x.pods, x.addresses, x.hosts, x.accounts, x.wanted)
	}
	return nil
}
