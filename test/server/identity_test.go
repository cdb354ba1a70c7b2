package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/fakests"
)

// setStatus replaces the status of the workload's pod, as its kubelet would.
func (w workload) setStatus(t testing.TB, status corev1.PodStatus) {
	t.Helper()
	pod, err := env.Client.CoreV1().Pods(w.Namespace).Get(t.Context(), w.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := env.SetPodStatus(t.Context(), pod, status); err != nil {
		t.Fatal(err)
	}
}

// run gives the pod its address.
func (w workload) run(t testing.TB) {
	t.Helper()
	w.setStatus(t, controlplane.RunningStatus([]string{w.from.String()}, nil))
}

// end reports that the pod's container has terminated.
func (w workload) end(t testing.TB, phase corev1.PodPhase) {
	t.Helper()
	status := controlplane.RunningStatus([]string{w.from.String()}, nil)
	status.Phase = phase
	status.ContainerStatuses[0].Ready = false
	status.ContainerStatuses[0].State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
		ContainerID: status.ContainerStatuses[0].ContainerID,
	}}
	w.setStatus(t, status)
}

// terminate asks for the pod's deletion; it stays until remove, which is the kubelet's
// part. The pod has to be on a node.
func (w workload) terminate(t testing.TB) {
	t.Helper()
	if err := env.DeletePod(t.Context(), w.Namespace, w.Name, time.Hour); err != nil {
		t.Fatal(err)
	}
}

func (w workload) remove(t testing.TB) {
	t.Helper()
	if err := env.DeletePod(t.Context(), w.Namespace, w.Name, 0); err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
}

func (w workload) removeAccount(t testing.TB) {
	t.Helper()
	if err := env.Client.CoreV1().ServiceAccounts(w.Namespace).Delete(t.Context(), w.ServiceAccount, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

// appPath is that of the credentials of every role that newTenant makes.
const appPath = rolesPath + "app"

// newTenant describes a workload on a node whose role is called app, like that of the
// other tenants, so that a request does not tell whose role it means.
func newTenant(namespace, name string) workload {
	w := newWorkload(namespace, name)
	w.Node = "node-of-" + namespace
	w.arn = env.NewRole(func(r *fakests.Role) {
		r.ARN = fmt.Sprintf("arn:aws:iam::%s:role/%s/%s/app", environment.Account, namespace, name)
	})
	return w
}

// at gives the workload the address of another.
func (w workload) at(other workload) workload {
	w.from, w.IPs = other.from, other.IPs
	return w
}

// quick returns a server whose requests wait a short time, so that a refusal comes soon.
func quick(t *testing.T) *environment.Server {
	t.Helper()
	cfg := env.Config(t)
	cfg.MaxWait = 200 * time.Millisecond
	return env.Start(t, cfg)
}

// holder is who is served on an address: the name of the ServiceAccount whose
// credentials come from there, or the missing piece, or "node".
func holder(ctx context.Context, t *testing.T, s *environment.Server, client *http.Client) string {
	t.Helper()
	r := fetch(ctx, s, client, appPath)
	if r.err != nil {
		t.Fatal(r.err)
	}
	return holderIn(t, r.StatusCode, r.body)
}

func holderIn(t *testing.T, status int, body string) string {
	t.Helper()
	if status == http.StatusForbidden {
		return "node"
	}
	if piece, ok := strings.CutPrefix(body, "iam4kube: missing "); ok {
		piece, _, _ = strings.Cut(piece, ":")
		return piece
	}
	if status != http.StatusOK {
		t.Fatalf("%d %s", status, body)
	}
	arn, session := owner(t, body)
	_, account, _ := strings.Cut(session, "@")
	if name := strings.Split(arn, "/"); name[len(name)-2] != account {
		return account + " with the role of " + name[len(name)-2]
	}
	return account
}

// expectHolder asks until the address is served as wanted.
func expectHolder(t *testing.T, s *environment.Server, from netip.Addr, want string) {
	t.Helper()
	client := s.Client(t, from)
	environment.Eventually(t, patience, func() error {
		if got := holder(t.Context(), t, s, client); got != want {
			return fmt.Errorf("%s is %s's, want %s's", from, got, want)
		}
		return nil
	})
}

// barrier returns when the server has seen every event up to now: a new ServiceAccount
// and a new pod come after them in the same watches.
func barrier(t testing.TB, s *environment.Server, namespace string) {
	t.Helper()
	from := env.Address()
	name := "barrier-" + strings.ReplaceAll(from.String(), ".", "-")
	err := env.CreateServiceAccount(t.Context(), controlplane.ServiceAccount{Namespace: namespace, Name: name})
	if err != nil {
		t.Fatal(err)
	}
	_, err = env.CreatePod(t.Context(), controlplane.Pod{Namespace: namespace, Name: name, ServiceAccount: name, IPs: []string{from.String()}})
	if err != nil {
		t.Fatal(err)
	}
	client := s.Client(t, from)
	environment.Eventually(t, patience, func() error {
		r := fetch(t.Context(), s, client, "/iam4kube/ready")
		if r.err == nil && !strings.Contains(r.body, "missing role-annotation") {
			return errors.New(r.body)
		}
		return r.err
	})
}

// checkHolder says who is served on the address now; the server has seen everything.
func checkHolder(t *testing.T, s *environment.Server, from netip.Addr, want, when string) {
	t.Helper()
	if got := holder(t.Context(), t, s, s.Client(t, from)); got != want {
		t.Errorf("%s: %s is %s's, want %s's", when, from, got, want)
	}
}

// Requests from a node's address are refused at once, whichever pod they come from; the
// pods on the node with addresses of their own are served.
func TestHostNetwork(t *testing.T) {
	namespace := newNamespace(t, "host-network")
	host, own := newTenant(namespace, "host"), newTenant(namespace, "own")
	host.HostNetwork, host.HostIPs = true, host.IPs
	own.HostIPs = host.IPs
	// A node that does not exist has no address.
	if err := env.CreateNode(t.Context(), controlplane.Node{Name: host.Node}); err != nil {
		t.Fatal(err)
	}
	s := env.Start(t, env.Config(t)) // with the long wait
	host.createAccount(t, host.annotations())

	early := ask(t.Context(), t, s, host.from, host.path())
	awaitWaiting(t, s, diagnosis.Pod, 1)
	host.createPod(t)
	own.create(t)
	for _, r := range []reply{receive(t, early), receive(t, ask(t.Context(), t, s, host.from, rolesPath))} {
		if r.StatusCode != http.StatusForbidden || !strings.Contains(r.body, "masqueraded") || !strings.Contains(r.body, "hostNetwork") ||
			!strings.Contains(r.body, host.from.String()) || r.at.Sub(r.sent) > env.Config(t).MaxWait/2 {
			t.Errorf("%d after %v: %s", r.StatusCode, r.at.Sub(r.sent), r.body)
		}
	}
	expectHolder(t, s, own.from, "own")
	own.remove(t)
	host.remove(t)
	barrier(t, s, namespace)
	checkHolder(t, quick(t), host.from, "pod", "the node has no pods any more")
}

// A pod that has ended has no address any more, although its status still names it.
func TestEndedPods(t *testing.T) {
	namespace := newNamespace(t, "ended")
	s := quick(t)
	for _, phase := range []corev1.PodPhase{corev1.PodSucceeded, corev1.PodFailed} {
		w := newTenant(namespace, strings.ToLower(string(phase))).create(t)
		expectHolder(t, s, w.from, w.ServiceAccount)
		w.end(t, phase)
		barrier(t, s, namespace)
		checkHolder(t, s, w.from, "pod", string(phase))
		next := newTenant(namespace, w.Name+"-next").at(w).create(t)
		expectHolder(t, s, w.from, next.ServiceAccount)
	}
}

// A terminating pod is served until its containers have terminated, also when its
// ServiceAccount is deleted first, as with a namespace.
func TestTerminatingPod(t *testing.T) {
	namespace := newNamespace(t, "terminating")
	w := newTenant(namespace, "app").create(t)
	next := newTenant(namespace, "next")
	next.ServiceAccount = "app"
	s := quick(t)
	expectHolder(t, s, w.from, "app")
	w.terminate(t)
	barrier(t, s, namespace)
	checkHolder(t, s, w.from, "app", "terminating")
	w.removeAccount(t)
	next.createPod(t)
	barrier(t, s, namespace)
	checkHolder(t, s, w.from, "app", "its ServiceAccount went first")
	checkHolder(t, s, next.from, "service-account", "a pod that does not terminate, without its ServiceAccount")
	w.end(t, corev1.PodRunning)
	barrier(t, s, namespace)
	checkHolder(t, s, w.from, "pod", "its containers have terminated")
	w.remove(t)
	next.remove(t)
	barrier(t, s, namespace)
	w.createPod(t)
	barrier(t, s, namespace)
	checkHolder(t, s, w.from, "service-account", "a new pod of the deleted ServiceAccount")
}

// A pod that is deleted without a grace period has no address from then on.
func TestForcedDeletion(t *testing.T) {
	namespace := newNamespace(t, "forced")
	w := newTenant(namespace, "app").create(t)
	s := quick(t)
	expectHolder(t, s, w.from, "app")
	w.remove(t)
	barrier(t, s, namespace)
	checkHolder(t, s, w.from, "pod", "deleted without a grace period")
}

// Two live pods with one address: their requests wait, are served once one of them is
// terminating or gone, and are refused otherwise.
func TestTwoPodsWithOneAddress(t *testing.T) {
	namespace := newNamespace(t, "shared")
	s := env.Start(t, env.Config(t)) // with the long wait
	impatient := quick(t)
	for name, resolve := range map[string]func(workload, testing.TB){"removed": workload.remove, "terminating": workload.terminate} {
		a := newTenant(namespace, "a-"+name)
		b := newTenant(namespace, "b-"+name).at(a)
		a.create(t)
		b.create(t)
		barrier(t, impatient, namespace)
		checkHolder(t, impatient, a.from, "single-pod", "two live pods")
		waits := ask(t.Context(), t, s, a.from, appPath)
		awaitWaiting(t, s, diagnosis.SinglePod, 1)
		resolve(b, t)
		checkOwner(t, receive(t, waits), a)
		expectHolder(t, impatient, a.from, a.ServiceAccount)
	}
}

// An address goes from a pod to the next while the events of the two come in every order
// that keeps each pod's own. Once the new pod is known to have the address, and once the
// old one is known to have ended, nobody is taken for the old one.
func TestAddressIsHandedOverInEveryOrder(t *testing.T) {
	namespace := newNamespace(t, "handed-over")
	s := quick(t)
	orders := mergings([]string{"terminates", "ends", "goes"}, []string{"created", "address"})
	var before, after []workload
	for i := range orders {
		a := newTenant(namespace, fmt.Sprintf("before-%d", i)).create(t)
		b := newTenant(namespace, fmt.Sprintf("after-%d", i)).at(a)
		b.createAccount(t, b.annotations())
		b.IPs = nil
		before, after = append(before, a), append(after, b)
	}
	for _, w := range before {
		expectHolder(t, s, w.from, w.ServiceAccount)
	}
	for step := range orders[0] {
		for i, order := range orders {
			switch order[step] {
			case "terminates":
				before[i].terminate(t)
			case "ends":
				before[i].end(t, corev1.PodRunning)
			case "goes":
				before[i].remove(t)
			case "created":
				after[i].createPod(t)
			case "address":
				after[i].run(t)
			}
		}
		barrier(t, s, namespace)
		for i, order := range orders {
			told := order[:step+1]
			// Without the first event of its end, the old pod looks as alive as the new one.
			want := before[i].ServiceAccount
			switch {
			case slices.Contains(told, "address") && slices.Contains(told, "terminates"):
				want = after[i].ServiceAccount
			case slices.Contains(told, "address"):
				want = "single-pod"
			case slices.Contains(told, "ends"):
				want = "pod"
			}
			checkHolder(t, s, before[i].from, want, strings.Join(told, ", "))
		}
	}
}

// The address changes hands while a request waits for the credentials of the old pod:
// it gets the new pod's, or none.
func TestAddressChangesHandsDuringTheWait(t *testing.T) {
	namespace := newNamespace(t, "during")
	a := newTenant(namespace, "a")
	b := newTenant(namespace, "b").at(a)
	c := newTenant(namespace, "c")
	b.createAccount(t, b.annotations())
	cfg := env.Config(t)
	cfg.MaxWait = 4 * time.Second
	s := env.Start(t, cfg)
	s.WaitReady(t)
	for _, w := range []workload{a, c} {
		setFault(t, w, fakests.Fault{Delay: 2 * time.Second})
		w.create(t)
	}
	changes, goes := ask(t.Context(), t, s, a.from, appPath), ask(t.Context(), t, s, c.from, appPath)
	awaitWaiting(t, s, diagnosis.Credentials, 2)
	a.remove(t)
	c.remove(t)
	b.createPod(t)
	checkOwner(t, receive(t, changes), b)
	if r := receive(t, goes); r.StatusCode != http.StatusServiceUnavailable || !strings.Contains(r.body, "missing pod") {
		t.Errorf("the pod is gone: %d %s", r.StatusCode, r.body)
	}
}

// A dual-stack pod is served by both of its addresses.
func TestDualStackPod(t *testing.T) {
	namespace := newNamespace(t, "dual-stack")
	w := newTenant(namespace, "app")
	w.IPs = append(w.IPs, netip.IPv6Loopback().String())
	w.create(t)
	cfg := env.Config(t)
	cfg.ListenOn = "[::]:0"
	s := env.Start(t, cfg)
	s.WaitReady(t)
	port := netip.MustParseAddrPort(s.Address).Port()
	for from, to := range map[netip.Addr]netip.Addr{
		w.from:               netip.AddrFrom4([4]byte{127, 0, 0, 1}),
		netip.IPv6Loopback(): netip.IPv6Loopback(),
	} {
		s.Address = netip.AddrPortFrom(to, port).String()
		r := receive(t, ask(t.Context(), t, s, from, appPath))
		checkOwner(t, r, w)
		r = receive(t, ask(t.Context(), t, s, from, "/iam4kube/ready"))
		if source := r.Header.Get("X-Iam4kube-Source-Ip"); r.StatusCode != http.StatusNoContent || source != from.String() {
			t.Errorf("from %s: %d, seen as %q", from, r.StatusCode, source)
		}
	}
	w.remove(t)
}

// Two ServiceAccounts swap their roles, while their pods ask all the time. Within a
// second of the event the new role is in force, and from its first answer on no request
// gets credentials of the old one, although STS takes its time for the new one.
func TestRolesAreSwapped(t *testing.T) {
	namespace := newNamespace(t, "swapped")
	tenants := []workload{newTenant(namespace, "a").create(t), newTenant(namespace, "b").create(t)}
	s := env.Start(t, env.Config(t))
	s.WaitReady(t)
	seen := watchNamespace(t, namespace)
	clients := make([]*asking, len(tenants))
	for i, w := range tenants {
		clients[i] = startAsking(t, s, w.from)
		clients[i].waitFor(t, 3)
	}
	for _, w := range tenants {
		setFault(t, w, fakests.Fault{Delay: 300 * time.Millisecond})
	}
	newARN := map[string]string{"a": tenants[1].arn, "b": tenants[0].arn}
	for _, w := range tenants {
		w.annotate(t, newARN[w.Name])
	}
	for i, w := range tenants {
		at := seen.wait(t, func(e watch.Event) bool { return annotated(w, newARN[w.Name])(e) }).at
		clients[i].waitUntil(t, at.Add(time.Second))
		replies := clients[i].stop()
		first := slices.IndexFunc(replies, func(r reply) bool { arn, _ := owner(t, r.body); return arn == newARN[w.Name] })
		if first < 0 {
			t.Fatalf("%s: the new role never came", w.Name)
		}
		for n, r := range replies {
			arn, session := owner(t, r.body)
			if session != namespace+"@"+w.Name || arn != w.arn && arn != newARN[w.Name] {
				t.Errorf("%s got %s for %s", w.Name, arn, session)
			}
			if arn == w.arn && (n > first || r.sent.After(at.Add(time.Second))) {
				t.Errorf("%s got its old role in request %d, sent %v after the event; the new one came first in request %d", w.Name, n, r.sent.Sub(at), first)
			}
		}
	}
}

// asking is one client that asks for its credentials again and again, one request after
// the other.
type asking struct {
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	replies []reply
	err     error
}

func startAsking(t testing.TB, s *environment.Server, from netip.Addr) *asking {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	a := &asking{cancel: cancel, done: make(chan struct{})}
	client := s.Client(t, from)
	go func() {
		defer close(a.done)
		for ctx.Err() == nil {
			r := fetch(ctx, s, client, appPath)
			if ctx.Err() != nil {
				return
			}
			if r.err == nil && r.StatusCode != http.StatusOK {
				r.err = errors.New(r.body)
			}
			a.mu.Lock()
			a.replies = append(a.replies, r)
			a.err = errors.Join(a.err, r.err)
			a.mu.Unlock()
		}
	}()
	t.Cleanup(func() { a.stop() })
	return a
}

func (a *asking) snapshot() ([]reply, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.replies), a.err
}

// waitFor returns after so many answers.
func (a *asking) waitFor(t testing.TB, n int) {
	t.Helper()
	environment.Eventually(t, patience, func() error {
		replies, err := a.snapshot()
		if err == nil && len(replies) < n {
			err = fmt.Errorf("%d answers, want %d", len(replies), n)
		}
		return err
	})
}

// waitUntil returns after the answer to a request that was sent after this moment.
func (a *asking) waitUntil(t testing.TB, moment time.Time) {
	t.Helper()
	environment.Eventually(t, patience, func() error {
		replies, err := a.snapshot()
		if err == nil && !replies[len(replies)-1].sent.After(moment) {
			err = errors.New("no request was sent late enough")
		}
		return err
	})
}

func (a *asking) stop() []reply {
	a.cancel()
	<-a.done
	replies, _ := a.snapshot()
	return replies
}
