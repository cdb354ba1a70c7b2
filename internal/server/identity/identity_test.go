package identity

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
	"github.com/iam4kube/iam4kube/internal/server/role"
)

// Which addresses are a pod's, by the pod's state alone.
func TestAddressesOfOnePod(t *testing.T) {
	sidecar := func(p *corev1.Pod) {
		p.Status.InitContainerStatuses = []corev1.ContainerStatus{
			{Name: "sidecar", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}},
		}
	}
	appEnded := func(p *corev1.Pod) {
		p.Status.ContainerStatuses[0].State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}
	}
	for name, c := range map[string]struct {
		pod  *corev1.Pod
		want map[string]string
	}{
		"running":                  {pod("a", "10.0.0.1"), map[string]string{"10.0.0.1": "a", "10.0.0.2": "pod"}},
		"no address yet":           {pod("a", "", onHost("10.9.9.9")), map[string]string{"10.0.0.1": "pod", "10.9.9.9": "node"}},
		"dual stack":               {pod("a", "", withAddresses("10.0.0.1", "fd00::1")), map[string]string{"10.0.0.1": "a", "fd00::1": "a"}},
		"only the older podIP":     {pod("a", "10.0.0.1", func(p *corev1.Pod) { p.Status.PodIPs = nil }), map[string]string{"10.0.0.1": "a"}},
		"IPv6 in a long spelling":  {pod("a", "fd00:0:0:0:0:0:0:0001"), map[string]string{"fd00::1": "a"}},
		"IPv4 mapped":              {pod("a", "::ffff:10.0.0.1"), map[string]string{"10.0.0.1": "a"}},
		"garbage for an address":   {pod("a", "", withAddresses("10.0.0.1x", "10.0.0.1")), map[string]string{"10.0.0.1": "a"}},
		"hostNetwork":              {pod("a", "10.9.9.9", hostNetwork, onHost("10.9.9.9")), map[string]string{"10.9.9.9": "node"}},
		"hostNetwork, host later":  {pod("a", "10.9.9.9", hostNetwork), map[string]string{"10.9.9.9": "pod"}},
		"both addresses of a node": {pod("a", "10.0.0.1", onHost("10.9.9.9", "fd00::9")), map[string]string{"10.9.9.9": "node", "fd00::9": "node", "10.0.0.1": "a"}},
		"a node's as its own":      {pod("a", "10.9.9.9", onHost("10.9.9.9")), map[string]string{"10.9.9.9": "node"}},
		"pending":                  {pod("a", "10.0.0.1", inPhase(corev1.PodPending)), map[string]string{"10.0.0.1": "a"}},
		"phase unknown":            {pod("a", "10.0.0.1", inPhase(corev1.PodUnknown)), map[string]string{"10.0.0.1": "a"}},
		"succeeded":                {pod("a", "10.0.0.1", inPhase(corev1.PodSucceeded)), map[string]string{"10.0.0.1": "pod"}},
		"failed":                   {pod("a", "10.0.0.1", inPhase(corev1.PodFailed)), map[string]string{"10.0.0.1": "pod"}},
		"terminating":              {pod("a", "10.0.0.1", terminating), map[string]string{"10.0.0.1": "a"}},
		"terminating, sidecar":     {pod("a", "10.0.0.1", terminating, sidecar, appEnded), map[string]string{"10.0.0.1": "a"}},
		"terminating, none begun":  {pod("a", "10.0.0.1", terminating, func(p *corev1.Pod) { p.Status.ContainerStatuses = nil }), map[string]string{"10.0.0.1": "a"}},
		"terminating, all ended":   {pod("a", "10.0.0.1", terminating, sidecar, containersEnded), map[string]string{"10.0.0.1": "pod"}},
		"crashed, to be restarted": {pod("a", "10.0.0.1", containersEnded), map[string]string{"10.0.0.1": "a"}},
	} {
		t.Run(name, func(t *testing.T) {
			byEvent, byList := newWorld(), newWorld()
			byEvent.setPod(c.pod)
			byList.listPods(c.pod)
			for address, want := range c.want {
				if got := byEvent.who(address); got != want {
					t.Errorf("%s after an event: %s, want %s", address, got, want)
				}
				if got := byList.who(address); got != want {
					t.Errorf("%s after a list: %s, want %s", address, got, want)
				}
			}
			byEvent.deletePod(c.pod)
			byList.listPods()
			for _, w := range []*world{byEvent, byList} {
				if len(w.pods)+len(w.addresses)+len(w.hosts)+len(w.accounts) != 0 {
					t.Errorf("something is left of the deleted pod: %v %v %v %v", w.pods, w.addresses, w.hosts, w.accounts)
				}
				if !slices.Equal(w.seen.gone, []types.UID{"uid-a"}) {
					t.Errorf("heard of the end of %v", w.seen.gone)
				}
			}
		})
	}
}

// Two pods that claim one address: the only one that is not terminating has it, and
// nobody while that cannot be told.
func TestTwoPodsOnOneAddress(t *testing.T) {
	const ip = "10.0.0.1"
	a, b, c := pod("a", ip), pod("b", ip), pod("c", ip)
	for name, tc := range map[string]struct {
		pods []*corev1.Pod
		want string
	}{
		"both live":               {[]*corev1.Pod{a, b}, "single-pod"},
		"one terminating":         {[]*corev1.Pod{with(a, terminating), b}, "b"},
		"both terminating":        {[]*corev1.Pod{with(a, terminating), with(b, terminating)}, "single-pod"},
		"one ended":               {[]*corev1.Pod{with(a, terminating, containersEnded), b}, "b"},
		"one ended, one ending":   {[]*corev1.Pod{with(a, inPhase(corev1.PodFailed)), with(b, terminating)}, "b"},
		"two live of three":       {[]*corev1.Pod{with(a, terminating), b, c}, "single-pod"},
		"one live of three":       {[]*corev1.Pod{with(a, terminating), b, with(c, terminating)}, "b"},
		"hostNetwork and a pod":   {[]*corev1.Pod{with(a, hostNetwork), b}, "b"},
		"a node's address":        {[]*corev1.Pod{with(a, onHost(ip)), b}, "node"},
		"by the second address":   {[]*corev1.Pod{with(a, withAddresses("fd00::1", ip)), b}, "single-pod"},
		"other spelling":          {[]*corev1.Pod{with(a, withAddresses("::ffff:"+ip)), b}, "single-pod"},
		"the same pod twice":      {[]*corev1.Pod{a, a, with(a, terminating)}, "a"},
		"same name, new life":     {[]*corev1.Pod{a, with(a, uid("other"))}, "a"},
		"same name, other tenant": {[]*corev1.Pod{a, with(a, func(p *corev1.Pod) { p.Namespace = "other"; p.UID = "other" })}, "single-pod"},
	} {
		t.Run(name, func(t *testing.T) {
			for order := range permutations(len(tc.pods)) {
				w := newWorld()
				for _, i := range order {
					w.setPod(tc.pods[i])
				}
				if name != "the same pod twice" && name != "same name, new life" { // a list names a pod once
					listed := newWorld()
					listed.listPods(tc.pods...)
					if got := listed.who(ip); got != tc.want {
						t.Errorf("listed: %s, want %s", got, tc.want)
					}
				}
				if got := w.who(ip); got != tc.want {
					t.Errorf("order %v: %s, want %s", order, got, tc.want)
				}
			}
		})
	}
}

// An address goes from a pod to the next, and the events of the two pods come in
// every order that keeps each pod's own order. From the moment that the new pod is
// known, nobody is taken for the old one.
func TestAddressIsHandedOverInEveryOrder(t *testing.T) {
	const ip = "10.0.0.1"
	a, b := pod("a", ip), pod("b", "")
	type event struct {
		name string
		do   func(*world)
	}
	set := func(name string, p *corev1.Pod) event {
		return event{name, func(w *world) { w.setPod(p) }}
	}
	newPod := []event{set("b is created", b), set("b gets the address", with(b, withAddresses(ip)))}
	oldPod := map[string][]event{
		"graceful": {
			set("a terminates", with(a, terminating)),
			set("a's containers end", with(a, terminating, containersEnded)),
			{"a is deleted", func(w *world) { w.deletePod(with(a, terminating, containersEnded)) }},
		},
		"forced":            {{"a is deleted", func(w *world) { w.deletePod(a) }}},
		"completed":         {{"a succeeds", func(w *world) { w.deletePod(with(a, inPhase(corev1.PodSucceeded))) }}}, // leaves the selection
		"evicted":           {{"a fails", func(w *world) { w.deletePod(with(a, inPhase(corev1.PodFailed))) }}},
		"loses its address": {set("a loses its address", with(a, func(p *corev1.Pod) { p.Status.PodIP, p.Status.PodIPs = "", nil }))},
		"graceful, reported twice": {
			set("a terminates", with(a, terminating)), set("a terminates", with(a, terminating)),
			{"a is deleted", func(w *world) { w.deletePod(with(a, terminating)) }},
			{"a is deleted", func(w *world) { w.deletePod(with(a, terminating)) }},
		},
	}
	for name, ends := range oldPod {
		t.Run(name, func(t *testing.T) {
			for order := range interleavings(len(ends), len(newPod)) {
				w, old, next := newWorld(), 0, 0
				w.setPod(a)
				trail := ""
				for _, first := range order {
					e := newPod[min(next, len(newPod)-1)]
					if first {
						e = ends[old]
						old++
					} else {
						next++
					}
					e.do(w)
					trail += e.name + "; "
					known := next == len(newPod)
					got := w.who(ip)
					if got == "b" && !known || known && got == "a" {
						t.Fatalf("%s: the address is %s's", trail, got)
					}
				}
				if got := w.who(ip); got != "b" {
					t.Errorf("%s: the address is %s's, want b's", trail, got)
				}
			}
		})
	}
}

// A deletion that nobody saw shows only in that the next full list lacks the pod:
// what informers call DeletedFinalStateUnknown.
func TestDeletionIsMissingInTheNextList(t *testing.T) {
	const ip = "10.0.0.1"
	a, b := pod("a", ip), pod("b", ip)
	for name, before := range map[string][]*corev1.Pod{
		"only a known":                 {a},
		"both known":                   {a, b},
		"a terminating, both known":    {with(a, terminating), b},
		"another life of the new name": {a, with(b, uid("earlier"))},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.setAccount(serviceAccount("a", "role-a"))
			w.setAccount(serviceAccount("b", "role-b"))
			for _, p := range before {
				w.setPod(p)
			}
			w.listPods(b)
			if got := w.has(ip); got != "role-b" {
				t.Errorf("the address has %s, want role-b", got)
			}
			w.listPods()
			if got := w.has(ip); got != "pod" {
				t.Errorf("the address has %s, want nobody", got)
			}
		})
	}
	t.Run("a new pod of the same name on another address", func(t *testing.T) {
		w := newWorld()
		w.setPod(a)
		w.listPods(with(a, uid("new"), withAddresses("10.0.0.2")))
		if w.who(ip) != "pod" || w.who("10.0.0.2") != "a" {
			t.Errorf("old address: %s, new one: %s", w.who(ip), w.who("10.0.0.2"))
		}
	})
}

// A deletion that does not fit the pod that is known leaves nobody: a watch does not
// send such a thing, and what is not understood must not be served.
func TestDeletionOfAnotherLifeLeavesNobody(t *testing.T) {
	w, a := newWorld(), pod("a", "10.0.0.1")
	w.setPod(a)
	w.deletePod(with(a, uid("new"), withAddresses("10.0.0.2")))
	if w.who("10.0.0.1") != "pod" || w.who("10.0.0.2") != "pod" {
		t.Errorf("old address: %s, new one: %s", w.who("10.0.0.1"), w.who("10.0.0.2"))
	}
}

// What the annotations say, and the two cases in which a ServiceAccount that does not
// exist matters: a pod that terminates keeps its role, any other has none.
func TestRoleOfThePod(t *testing.T) {
	const ip = "10.0.0.1"
	w, a := newWorld(), pod("a", ip)
	step := func(what, has string, inUse ...string) {
		t.Helper()
		if got := w.has(ip); got != has {
			t.Errorf("%s: the pod has %s, want %s", what, got, has)
		}
		w.want(t, inUse...)
	}
	w.setPod(a)
	step("no ServiceAccount", "service-account")
	w.setAccount(serviceAccount("a", ""))
	step("no annotation", "role-annotation")
	w.setAccount(serviceAccount("a", "one"))
	step("annotation", "one", "one")
	w.setAccount(serviceAccount("a", "two"))
	step("annotation changed", "two", "two")
	bad := serviceAccount("a", "two")
	bad.Annotations[role.AnnotationDuration] = "1h"
	w.setAccount(bad)
	step("a wrong annotation leaves no role", `annotation iam.amazonaws.com/roleSessionDuration has the value "1h", want whole seconds from 900 to 43200`)
	w.setAccount(serviceAccount("a", ""))
	step("annotation removed", "role-annotation")
	w.setAccount(serviceAccount("a", "three"))
	w.setPod(with(a, terminating))
	step("terminating", "three", "three")
	w.deleteAccount(serviceAccount("a", "three"))
	step("the ServiceAccount goes first", "three", "three")
	b := pod("b", "10.0.0.2", func(p *corev1.Pod) { p.Spec.ServiceAccountName = "a" })
	w.setPod(b)
	if got := w.has("10.0.0.2"); got != "service-account" {
		t.Errorf("a pod that does not terminate has %s of a deleted ServiceAccount", got)
	}
	w.listAccounts()
	step("and in a list", "three", "three")
	w.setPod(with(a, terminating, containersEnded))
	step("the containers have ended", "pod", "three")
	w.deletePod(a)
	w.deletePod(b)
	step("the last pod is gone", "pod")
	w.setPod(with(a, terminating))
	step("nothing is remembered", "service-account")
	w.setAccount(serviceAccount("a", "four"))
	w.deleteAccount(serviceAccount("a", "four"))
	w.setAccount(serviceAccount("a", ""))
	step("created anew without the annotation", "role-annotation")
}

// Without a name, a pod's ServiceAccount is the namespace's default.
func TestDefaultServiceAccount(t *testing.T) {
	w := newWorld()
	w.setPod(pod("a", "10.0.0.1", func(p *corev1.Pod) { p.Spec.ServiceAccountName = "" }))
	w.setAccount(serviceAccount("default", "one"))
	if got := w.has("10.0.0.1"); got != "one" {
		t.Errorf("the pod has %s", got)
	}
	other := serviceAccount("default", "two")
	other.Namespace = "other"
	w.setAccount(other)
	if got := w.has("10.0.0.1"); got != "one" {
		t.Errorf("the pod has %s after a namesake in another namespace came", got)
	}
}

// A kubelet may create a mirror pod in any namespace; it gets no role by that.
func TestStaticPodHasNoRole(t *testing.T) {
	w := newWorld()
	w.setPod(pod("a", "10.0.0.1", func(p *corev1.Pod) {
		p.Spec.ServiceAccountName = ""
		p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "hash"}
	}))
	w.setAccount(serviceAccount("default", "one"))
	if got := w.has("10.0.0.1"); got == "one" {
		t.Errorf("the pod has %s", got)
	}
}

// hostNetwork, static and ended are three facts, each of which alone keeps an address from
// being the pod's.
func TestAddressesThatAreNotThePods(t *testing.T) {
	static := func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "hash"} }
	for name, c := range map[string]struct {
		pod  *corev1.Pod
		want [3]bool // hostNetwork, static, ended
	}{
		"running":     {pod("a", "10.0.0.1"), [3]bool{}},
		"hostNetwork": {pod("a", "10.0.0.1", hostNetwork), [3]bool{true, false, false}},
		"static":      {pod("a", "10.0.0.1", static), [3]bool{false, true, false}},
		"ended":       {pod("a", "10.0.0.1", inPhase(corev1.PodFailed)), [3]bool{false, false, true}},
		"all":         {pod("a", "10.0.0.1", hostNetwork, static, inPhase(corev1.PodFailed)), [3]bool{true, true, true}},
	} {
		kept := keepPod(c.pod)
		if got := [3]bool{kept.HostNetwork, kept.Static, kept.Ended}; got != c.want || kept.hasOwnAddresses() != (c.want == [3]bool{}) {
			t.Errorf("%s: hostNetwork, static, ended: %v; own addresses: %v", name, got, kept.hasOwnAddresses())
		}
		if running := keepPod(pod("a", "10.0.0.1")); kept.same(running) != (name == "running") {
			t.Errorf("%s is the same as running", name)
		}
	}
}

// A list of ServiceAccounts takes those away that it lacks, and keeps the others.
func TestServiceAccountsAreListed(t *testing.T) {
	w := newWorld()
	w.setPod(pod("a", "10.0.0.1"))
	w.setPod(pod("b", "10.0.0.2"))
	w.listAccounts(serviceAccount("a", "one"), serviceAccount("b", "two"), serviceAccount("c", "three"))
	w.want(t, "one", "three", "two")
	w.listAccounts(serviceAccount("b", "four"))
	w.want(t, "four", "one") // a's pod may terminate later
	if w.has("10.0.0.1") != "service-account" || w.has("10.0.0.2") != "four" {
		t.Errorf("have %s and %s", w.has("10.0.0.1"), w.has("10.0.0.2"))
	}
}

func TestNodeOf(t *testing.T) {
	w := newWorld()
	w.setPod(pod("a", "10.0.0.1"))
	p := w.Lookup(from("10.0.0.1")).Pod
	node := func(name, zone string) *Node {
		return keepNode(&corev1.Node{ObjectMeta: metav1.ObjectMeta{
			Name: name, Labels: map[string]string{corev1.LabelTopologyZone: zone, corev1.LabelTopologyRegion: "region-of-" + zone},
		}})
	}
	sink := nodeSink{w.Index}
	if got := w.NodeOf(p); got != (Node{}) {
		t.Errorf("unknown node: %v", got)
	}
	sink.Set(node("node", "z1"))
	sink.Set(node("other", "z2"))
	if got := w.NodeOf(p); got != (Node{Name: "node", Zone: "z1", Region: "region-of-z1"}) {
		t.Errorf("got %v", got)
	}
	sink.Replace([]*Node{node("node", "z3")})
	if got := w.NodeOf(p); got.Zone != "z3" || len(w.nodes) != 1 {
		t.Errorf("after a list: %v of %v", got, w.nodes)
	}
	sink.Delete(node("node", "z3"))
	if got := w.NodeOf(p); got != (Node{}) {
		t.Errorf("deleted node: %v", got)
	}
}

// Only pods that appear after the first full list are new to this server.
func TestAnnounced(t *testing.T) {
	w := newWorld()
	w.listPods(pod("old", "10.0.0.1"))
	w.setPod(pod("new", "10.0.0.2"))
	w.listPods(pod("old", "10.0.0.1"), pod("new", "10.0.0.2"), pod("missed", "10.0.0.3"))
	for address, want := range map[string]bool{"10.0.0.1": false, "10.0.0.2": true, "10.0.0.3": true} {
		if got := w.Lookup(from(address)).Pod.Life.Announced; got != want {
			t.Errorf("%s: announced %v, want %v", address, got, want)
		}
	}
	before := w.Lookup(from("10.0.0.2")).Pod.Life
	w.setPod(pod("new", "10.0.0.2", terminating))
	if w.Lookup(from("10.0.0.2")).Pod.Life != before {
		t.Error("a new state of a pod is not another pod")
	}
}

// A request that waits on an address learns at once that it is a node's: the first pod
// of a new node may be seen after the first request of its hostNetwork pods.
func TestNodeAddressWakes(t *testing.T) {
	w, claim := newWorld(), from("10.9.9.9")
	waiter, err := w.hub.Join(claim, "")
	if err != nil {
		t.Fatal(err)
	}
	defer waiter.Leave()
	c := w.Lookup(claim)
	if c.Missing != diagnosis.Pod {
		t.Fatalf("got %+v", c)
	}
	waiter.Watch(c.Keys()...)
	w.setPod(pod("a", "10.0.0.1", onHost("10.9.9.9")))
	select {
	case <-waiter.C:
	default:
		t.Error("nobody was woken")
	}
}
