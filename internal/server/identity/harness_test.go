package identity

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/internal/server/waiting"
)

// wanted is a Roles that knows which roles are in use, and which of them by pods, and panics
// where the cache would lose count.
type wanted map[*role.Role]bool

func (w wanted) Want(r *role.Role) {
	if _, ok := w[r]; ok {
		panic(fmt.Sprintf("wanted twice: %v", r))
	}
	w[r] = false
}

func (w wanted) Use(r *role.Role) {
	if used, ok := w[r]; !ok || used {
		panic(fmt.Sprintf("used, but not wanted or twice: %v", r))
	}
	w[r] = true
}

func (w wanted) Drop(r *role.Role) {
	if _, ok := w[r]; !ok {
		panic(fmt.Sprintf("dropped, but not wanted: %v", r))
	}
	delete(w, r)
}

// observed is an Observer that keeps what it hears.
type observed struct {
	bad []string
	// accounts are what was told of ServiceAccounts, or that one is gone.
	accounts []string
	gone     []types.UID
}

func (o *observed) Record(p *Pod, _ diagnosis.Diagnosis) { o.bad = append(o.bad, p.Name) }
func (o *observed) RecordAccount(a AccountRef, d diagnosis.Diagnosis) {
	o.accounts = append(o.accounts, fmt.Sprintf("%s %s %s", a.Name, a.UID, d.Reason))
}

func (o *observed) AccountGone(a AccountRef) {
	o.accounts = append(o.accounts, fmt.Sprintf("%s %s gone", a.Name, a.UID))
}
func (o *observed) Gone(p *Pod) { o.gone = append(o.gone, p.UID) }

// world is an Index with everything around it.
type world struct {
	*Index
	hub    *waiting.Hub
	wanted wanted
	seen   *observed
}

func newWorld() *world {
	w := &world{hub: waiting.NewHub(1000, 1000), wanted: wanted{}, seen: &observed{}}
	w.Index = New(Config{Hub: w.hub, Roles: w.wanted, Observer: w.seen, Sessions: role.Sessions{Duration: time.Hour}, Registry: prometheus.NewRegistry()})
	return w
}

// sees makes the namespace known. The order of namespaces and others is a test's of its own.
func (w *world) sees(namespace string) {
	if n := w.namespaces[namespace]; n == nil || !n.known {
		namespaceSink{w.Index}.Set(&Namespace{Name: namespace})
	}
}

func (w *world) setPod(p *corev1.Pod) {
	w.sees(p.Namespace)
	podSink{w.Index}.Set(w.known(keepPod(p.DeepCopy())))
}
func (w *world) deletePod(p *corev1.Pod) { podSink{w.Index}.Delete(w.known(keepPod(p.DeepCopy()))) }

func (w *world) listPods(pods ...*corev1.Pod) {
	var kept []*Pod
	for _, p := range pods {
		w.sees(p.Namespace)
		kept = append(kept, w.known(keepPod(p.DeepCopy())))
	}
	podSink{w.Index}.Replace(kept)
}

func (w *world) setAccount(a *metav1.PartialObjectMetadata) {
	w.sees(a.Namespace)
	accountSink{w.Index}.Set(w.keepServiceAccount(a))
}

func (w *world) deleteAccount(a *metav1.PartialObjectMetadata) {
	accountSink{w.Index}.Delete(w.keepServiceAccount(a))
}

func (w *world) listAccounts(accounts ...*metav1.PartialObjectMetadata) {
	var kept []*ServiceAccount
	for _, a := range accounts {
		w.sees(a.Namespace)
		kept = append(kept, w.keepServiceAccount(a))
	}
	accountSink{w.Index}.Replace(kept)
}

// from is the claim of a request from the address.
func from(address string) Claim { return Claim{Address: netip.MustParseAddr(address)} }

// who is the name of the pod on the address, or the missing piece, or "node".
func (w *world) who(address string) string {
	c := w.Lookup(from(address))
	switch {
	case c.Pod != nil:
		return c.Pod.Name
	case c.Refusal != "":
		return "node"
	}
	return string(c.Missing)
}

// has is the name of the role on the address, or the missing piece, or the error.
func (w *world) has(address string) string {
	c := w.Lookup(from(address))
	switch {
	case c.Role != nil:
		return c.Role.Name()
	case c.Refusal == diagnosis.BadAnnotation:
		return c.Wrong
	case c.Refusal != "":
		return string(c.Refusal)
	}
	return string(c.Missing)
}

// pod returns a running pod in namespace ns whose ServiceAccount has its name, as
// the kubelet reports it, changed by each change.
func pod(name, address string, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("uid-" + name)},
		Spec:       corev1.PodSpec{ServiceAccountName: name, NodeName: "node"},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning,
			ContainerStatuses: []corev1.ContainerStatus{
				{Name: "app", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}},
			},
		},
	}
	if address != "" {
		withAddresses(address)(p)
	}
	return with(p, change...)
}

// with returns a copy, changed.
func with(p *corev1.Pod, change ...func(*corev1.Pod)) *corev1.Pod {
	p = p.DeepCopy()
	for _, c := range change {
		c(p)
	}
	return p
}

func withAddresses(addresses ...string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Status.PodIP, p.Status.PodIPs = addresses[0], nil
		for _, a := range addresses {
			p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: a})
		}
	}
}

func onHost(addresses ...string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Status.HostIP, p.Status.HostIPs = addresses[0], nil
		for _, a := range addresses {
			p.Status.HostIPs = append(p.Status.HostIPs, corev1.HostIP{IP: a})
		}
	}
}

func hostNetwork(p *corev1.Pod) { p.Spec.HostNetwork = true }

func inPhase(phase corev1.PodPhase) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Status.Phase = phase }
}

func terminating(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)} }

// containersEnded is a status in which every container has terminated.
func containersEnded(p *corev1.Pod) {
	for _, all := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses} {
		for i := range all {
			all[i].State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}
		}
	}
}

// uid makes it a pod of its own under a name that another had.
func uid(u string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.UID = types.UID(u) }
}

// serviceAccount returns a ServiceAccount in namespace ns; a role without a slash becomes
// an ARN.
func serviceAccount(name, roleName string) *metav1.PartialObjectMetadata {
	a := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}}
	if roleName != "" {
		a.Annotations = map[string]string{role.AnnotationARN: "arn:aws:iam::123456789012:role/" + roleName}
	}
	return a
}

func (w *world) want(t *testing.T, roles ...string) {
	t.Helper()
	have := make([]string, 0, len(w.wanted))
	for r := range w.wanted {
		have = append(have, r.Name())
	}
	slices.Sort(have)
	if !slices.Equal(have, roles) {
		t.Errorf("roles in use: %v, want %v", have, roles)
	}
}
