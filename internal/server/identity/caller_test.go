package identity

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
	"github.com/iam4kube/iam4kube/internal/server/role"
)

// What to wait for and what to say follow from the Caller alone.
func TestCallerNamesItsKeysAndSubject(t *testing.T) {
	const ip = "10.0.0.1"
	address, key := netip.MustParseAddr(ip), types.NamespacedName{Namespace: "ns", Name: "a"}
	w := newWorld()
	check := func(what string, keys []any, subject diagnosis.Subject) {
		t.Helper()
		c := w.Lookup(from(ip))
		if got := c.Keys(); !slices.Equal(got, keys) {
			t.Errorf("%s: keys %v, want %v", what, got, keys)
		}
		if got := c.Subject(); got != subject {
			t.Errorf("%s: %+v, want %+v", what, got, subject)
		}
	}
	check("nobody", []any{address}, diagnosis.Subject{Address: address})
	w.setPod(pod("a", ip))
	known := diagnosis.Subject{Address: address, Pod: "ns/a", ServiceAccount: "a"}
	check("a pod", []any{address, key, namespaceKey("ns")}, known)
	w.setAccount(serviceAccount("a", "white space"))
	wrong := known
	wrong.Why = `annotation iam.amazonaws.com/roleArn has the value "arn:aws:iam::123456789012:role/white space", want the ARN of an IAM role, such as arn:aws:iam::123456789012:role/NAME`
	check("a wrong annotation", []any{address, key, namespaceKey("ns")}, wrong)
	w.setAccount(serviceAccount("a", "one"))
	known.Role = w.Lookup(from(ip)).Role
	check("a role", []any{address, key, namespaceKey("ns")}, known)
	if known.Role == nil || known.Role.Name() != "one" {
		t.Errorf("role %v", known.Role)
	}
	w.setPod(pod("b", ip))
	check("two pods", []any{address}, diagnosis.Subject{Address: address})
}

// What a token proves counts, whatever the address, unless that is another pod's.
func TestBearer(t *testing.T) {
	const ip, other, unknown, node = "10.0.0.1", "10.0.0.2", "10.0.0.3", "192.0.2.1"
	age := func(seconds int64) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.CreationTimestamp = metav1.Unix(seconds, 0) }
	}
	made := func(name string, seconds int64, accountUID types.UID) *metav1.PartialObjectMetadata {
		a := serviceAccount(name, "one")
		a.UID, a.CreationTimestamp = accountUID, metav1.Unix(seconds, 0)
		return a
	}
	good := &Token{Namespace: "ns", Pod: "a", PodUID: "uid-a", ServiceAccount: "a", ServiceAccountUID: "account", Issued: 100}
	token := func(change func(*Token)) *Token { t := *good; change(&t); return &t }
	for _, tc := range []struct {
		name  string
		world func(*world)
		token *Token
		from  string
		want  string
	}{
		{"its own address", nil, good, ip, "one"},
		{"an address that is no pod's", nil, good, unknown, "one"},
		{"a node's address", nil, good, node, "one"},
		{"another pod's address", nil, good, other, "other-pod"},
		{"an address of both", func(w *world) {
			w.setPod(pod("b", other, onHost(node)))
			w.setPod(with(pod("a", other, onHost(node)), age(50)))
		}, good, other, "one"},
		{"a forwarder's address", func(w *world) { w.forwarders[types.NamespacedName{Namespace: "ns", Name: "b"}] = struct{}{} }, good, other, "one"},
		{"an address of a forwarder and another", func(w *world) {
			w.forwarders[types.NamespacedName{Namespace: "ns", Name: "b"}] = struct{}{}
			w.setPod(pod("c", other, onHost(node)))
		}, good, other, "other-pod"},
		{"another pod's address, and its own is not known yet", func(w *world) { w.setPod(with(pod("a", ""), age(50))) }, good, other, "pod"},
		{"a node's address, and its own is not known yet", func(w *world) { w.setPod(with(pod("a", ""), age(50))) }, good, node, "one"},
		{"an address that a list is about to change", func(w *world) { w.unsettled = map[netip.Addr]struct{}{netip.MustParseAddr(unknown): {}} }, good, unknown, "pod"},
		{"a pod with hostNetwork", func(w *world) { w.setPod(with(pod("a", node, hostNetwork, onHost(node)), age(50))) }, good, node, "one"},
		{"nothing known", func(w *world) { w.deletePod(pod("a", ip)) }, good, ip, "pod"},
		{"another pod of the name, older than the token", nil, token(func(t *Token) { t.PodUID = "uid-new" }), ip, "pod"},
		{"another pod of the name, newer than the token", func(w *world) { w.setPod(with(pod("a", ip), uid("uid-new"), age(101))) }, good, ip, "pod-gone"},
		{"another namespace's pod", nil, token(func(t *Token) { t.Namespace = "other" }), ip, "pod"},
		{"another ServiceAccount's name", nil, token(func(t *Token) { t.ServiceAccount = "b" }), ip, "pod-gone"},
		{"ended", func(w *world) { w.setPod(with(pod("a", ip), inPhase(corev1.PodFailed), age(50))) }, good, ip, "pod-gone"},
		{"terminating", func(w *world) { w.setPod(with(pod("a", ip), terminating, age(50))) }, good, ip, "one"},
		{"terminating, and its account has gone", func(w *world) {
			w.setPod(with(pod("a", ip), terminating, age(50)))
			w.deleteAccount(made("a", 50, "account"))
		}, good, ip, "one"},
		{"without its account", func(w *world) { w.deleteAccount(made("a", 50, "account")) }, good, ip, "service-account"},
		{"its account made anew", func(w *world) { w.setAccount(made("a", 101, "account-new")) }, good, ip, "service-account-gone"},
		{"an account that is not seen yet", nil, token(func(t *Token) { t.ServiceAccountUID = "account-new" }), ip, "service-account"},
		{"in a namespace of tokens", func(w *world) { namespaceSink{w.Index}.Set(&Namespace{Name: "ns", TokensOnly: true}) }, good, ip, "one"},
		{"no token in a namespace of tokens", func(w *world) { namespaceSink{w.Index}.Set(&Namespace{Name: "ns", TokensOnly: true}) }, nil, ip, "token-required"},
		{"no token", nil, nil, ip, "one"},
		{"its token, and nothing was heard for long", func(w *world) { w.SetStale(true) }, good, ip, "one"},
		{"no token, and nothing was heard for long", func(w *world) { w.SetStale(true) }, nil, ip, "stale"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld()
			w.setPod(with(pod("a", ip), onHost(node), age(50)))
			w.setPod(pod("b", other, onHost(node)))
			w.setAccount(made("a", 50, "account"))
			w.setAccount(made("b", 50, "account-b"))
			if tc.world != nil {
				tc.world(w)
			}
			c := w.Lookup(Claim{Address: netip.MustParseAddr(tc.from), Token: tc.token})
			got := string(c.Missing) + string(c.Refusal)
			if c.Role != nil {
				got += c.Role.Name()
			}
			if got != tc.want || c.Role != nil && c.Pod.Name != "a" {
				t.Errorf("got %q of %+v, want %q", got, c.Pod, tc.want)
			}
		})
	}
}

// A namespace's list of roles decides what is fetched and what is handed out, from the moment
// of its change.
func TestAllowedRoles(t *testing.T) {
	const ip = "10.0.0.1"
	w := newWorld()
	set := func(annotation string) {
		namespaceSink{w.Index}.Set(&Namespace{Name: "ns", Allowed: role.ParseAllowed(annotation)})
	}
	w.setPod(pod("a", ip))
	w.setAccount(serviceAccount("a", "team/one"))
	for _, tc := range []struct{ annotation, has string }{
		{"arn:aws:iam::123456789012:role/team/*", "one"},
		{"arn:aws:iam::123456789012:role/other/*", "not-allowed"},
		{"arn:aws:iam::123456789012:role/other/*, arn:aws:iam::123456789012:role/team/one", "one"},
		{"", "not-allowed"},
		{"garbage", "not-allowed"},
		{"*", "one"},
	} {
		set(tc.annotation)
		if got := w.has(ip); got != tc.has {
			t.Errorf("%q: %s, want %s", tc.annotation, got, tc.has)
		}
		if wanted := len(w.wanted); (wanted == 1) != (tc.has == "one") {
			t.Errorf("%q: %d roles are fetched", tc.annotation, wanted)
		}
	}
	set("")
	c := w.Lookup(from(ip))
	if text := c.Subject().Refused(c.Refusal).Text; !strings.Contains(text, "role/team/one") || !strings.Contains(text, role.AnnotationAllowed) {
		t.Error(text)
	}
	// No annotation: the server's default.
	namespaceSink{w.Index}.Set(&Namespace{Name: "ns"})
	if got := w.has(ip); got != "one" {
		t.Error(got)
	}
	w.denyByDefault = true
	namespaceSink{w.Index}.Set(&Namespace{Name: "ns"})
	if got := w.has(ip); got != "not-allowed" || len(w.wanted) != 0 {
		t.Error(got, w.wanted)
	}
	// What the account says meanwhile counts once it is allowed.
	w.setAccount(serviceAccount("a", "team/two"))
	if got := w.has(ip); got != "not-allowed" {
		t.Error(got)
	}
	set("arn:aws:iam::123456789012:role/team/two")
	if got := w.has(ip); got != "two" {
		t.Error(got)
	}
	w.setPod(with(pod("a", ip), terminating))
	w.deleteAccount(serviceAccount("a", "team/two"))
	if got := w.has(ip); got != "two" {
		t.Error("its account has gone:", got)
	}
	set("")
	if got := w.has(ip); got != "not-allowed" {
		t.Error("its account has gone:", got)
	}
}

// Pods of a namespace that is not known yet wait for it, because it may want tokens.
// Whoever sets label or annotation wants the namespace closed, also if the value is not the one that is documented.
func TestWhatClosesANamespace(t *testing.T) {
	for _, value := range []string{"token", "Token", "tokens", "true", ""} {
		said := map[string]string{LabelIdentity: value}
		for where, o := range map[string]metav1.ObjectMeta{"label": {Labels: said}, "annotation": {Annotations: said}} {
			if !keepNamespace(&metav1.PartialObjectMetadata{ObjectMeta: o}).TokensOnly {
				t.Errorf("open with the %s %q", where, value)
			}
		}
	}
	if keepNamespace(&metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{LabelToken: tokenEnabled}}}).TokensOnly {
		t.Error("closed by nobody")
	}
}

func TestNamespaceComesLast(t *testing.T) {
	w := newWorld()
	podSink{w.Index}.Set(keepPod(pod("a", "10.0.0.1")))
	accountSink{w.Index}.Set(w.keepServiceAccount(serviceAccount("a", "one")))
	if len(w.wanted) != 0 {
		t.Error("a role is fetched that may not be allowed")
	}
	if got := w.has("10.0.0.1"); got != "namespace" {
		t.Errorf("got %s", got)
	}
	waiter, err := w.hub.Join("somebody", "")
	if err != nil {
		t.Fatal(err)
	}
	defer waiter.Leave()
	waiter.Watch(w.Lookup(from("10.0.0.1")).Keys()...)
	namespaceSink{w.Index}.Set(keepNamespace(&metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: "ns", Labels: map[string]string{LabelIdentity: "token"}}}))
	select {
	case <-waiter.C:
	default:
		t.Error("nobody was woken")
	}
	if got := w.has("10.0.0.1"); got != "token-required" {
		t.Errorf("got %s", got)
	}
	namespaceSink{w.Index}.Replace([]*Namespace{{Name: "ns"}})
	if got := w.has("10.0.0.1"); got != "one" {
		t.Errorf("got %s", got)
	}
	// Deleted, it is kept for its last pods, and forgotten with them.
	namespaceSink{w.Index}.Replace(nil)
	if got := w.has("10.0.0.1"); got != "one" {
		t.Errorf("got %s", got)
	}
	w.deleteAccount(serviceAccount("a", "one"))
	w.deletePod(pod("a", "10.0.0.1"))
	if len(w.namespaces) != 0 {
		t.Errorf("kept: %v", w.namespaces)
	}
}
