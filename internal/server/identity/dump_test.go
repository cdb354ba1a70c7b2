package identity

import (
	"slices"
	"testing"

	"github.com/iam4kube/iam4kube/internal/server/role"
)

// What an operator sees of a namespace: what is wrong in it, and what it may have.
func TestDumpNamespaces(t *testing.T) {
	w := newWorld()
	w.setPod(pod("a", "10.0.0.1"))
	w.setPod(pod("b", "10.0.0.2"))
	w.setAccount(serviceAccount("a", "one"))
	wrong := serviceAccount("b", "two")
	wrong.Annotations[role.AnnotationARN] = "nonsense"
	w.setAccount(wrong)
	want := func(namespaces ...NamespaceState) {
		t.Helper()
		if got := w.DumpNamespaces(); !slices.Equal(got, namespaces) {
			t.Errorf("got %+v, want %+v", got, namespaces)
		}
	}
	want(NamespaceState{Name: "ns", Pods: 2, Invalid: 1, May: "any"})
	namespaceSink{w.Index}.Set(&Namespace{Name: "ns", Allowed: role.ParseAllowed("arn:aws:iam::123456789012:role/other"), TokensOnly: true, Tokens: true})
	want(NamespaceState{Name: "ns", Pods: 2, Invalid: 1, NotAllowed: 1, TokensOnly: true, Tokens: true, May: "listed"})
	w.denyByDefault = true
	namespaceSink{w.Index}.Set(&Namespace{Name: "an-empty-one"})
	want(NamespaceState{Name: "an-empty-one", May: "none"}, NamespaceState{Name: "ns", Pods: 2, Invalid: 1, NotAllowed: 1, TokensOnly: true, Tokens: true, May: "listed"})
	namespaceSink{w.Index}.Delete(&Namespace{Name: "ns"})
	want(NamespaceState{Name: "an-empty-one", May: "none"})
}
