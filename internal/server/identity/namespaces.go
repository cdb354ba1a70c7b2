package identity

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
	"github.com/iam4kube/iam4kube/internal/server/role"
)

const (
	// LabelIdentity of a namespace says that its pods are known by tokens alone. Its value is "token". One
	// that is misspelled does not open what was meant to be closed, so the server takes any.
	LabelIdentity = "iam4kube.io/identity"
	// LabelToken of a namespace says that its pods get tokens.
	LabelToken   = "iam4kube.io/token"
	tokenEnabled = "enabled"
)

// Namespace is what is kept of a Kubernetes Namespace.
type Namespace struct {
	Name string
	// TokensOnly: source addresses decide nothing about its pods.
	TokensOnly bool
	// Tokens: its pods get tokens when they are made.
	Tokens bool
	// Allowed are the roles that its ServiceAccounts may have, nil if nobody has said.
	Allowed *role.Allowed
}

// namespaceKey is the key in the waiting.Hub that is woken when a namespace changes.
type namespaceKey string

// namespace is the state of a Namespace that exists or that accounts are in.
type namespace struct {
	// exists is false before it is seen and after it is deleted, known only before it is
	// seen: pods outlive their namespace by a moment.
	exists, known bool
	tokensOnly    bool
	// tokens is that of Namespace, guarded by Index.changes.
	tokens bool
	// allowed is that of Namespace.
	allowed *role.Allowed
	// accounts is how many hold it, guarded by Index.changes and not by Index.mu.
	accounts int
}

// keepNamespace takes the label, and the annotation of the same name: whoever sets either
// wants it closed.
func keepNamespace(n *metav1.PartialObjectMetadata) *Namespace {
	_, label := n.Labels[LabelIdentity]
	_, annotation := n.Annotations[LabelIdentity]
	kept := &Namespace{Name: shared(n.Name), TokensOnly: label || annotation, Tokens: n.Labels[LabelToken] == tokenEnabled}
	if allowed, ok := n.Annotations[role.AnnotationAllowed]; ok {
		kept.Allowed = role.ParseAllowed(allowed)
	}
	return kept
}

// namespaceOf returns the namespace of that name, which is the same one until
// releaseNamespace. It needs changes.
func (x *Index) namespaceOf(name string) *namespace {
	n := x.namespaces[name]
	if n == nil {
		n = &namespace{}
		x.namespaces[name] = n
	}
	return n
}

// releaseNamespace forgets one that neither exists nor has accounts. It needs changes.
func (x *Index) releaseNamespace(name string) {
	if n := x.namespaces[name]; n != nil && !n.exists && n.accounts == 0 {
		delete(x.namespaces, name)
	}
}

// setNamespaces takes over what is said of the namespaces, for the roles in use too. It goes through
// the accounts once, because there are thousands of either. It needs changes.
func (x *Index) setNamespaces(all ...*Namespace) {
	said := make(map[*namespace]struct{}, len(all))
	for _, n := range all {
		kept := x.namespaceOf(n.Name)
		kept.tokens = n.Tokens
		x.publish(func() {
			kept.exists, kept.known, kept.tokensOnly, kept.allowed = true, true, n.TokensOnly, n.Allowed
		})
		said[kept] = struct{}{}
	}
	for key, a := range x.accounts {
		if _, ok := said[a.namespace]; !ok || a.said == nil {
			continue
		}
		before := a.role
		x.publishAccount(a, a.exists, a.said, a.wrong)
		if before != nil {
			x.reportNotAllowed(key, a)
		}
	}
}

// allows reports whether accounts of the namespace may have the role: not before it is
// known. It needs changes.
func (x *Index) allows(n *namespace, r *role.Role) bool {
	switch {
	case !n.known:
		return false
	case n.allowed == nil:
		return !x.denyByDefault
	}
	return n.allowed.Allows(r.ARN)
}

// reportNotAllowed tells an account and its pods that it may not have the role that it names,
// unless it may. It needs changes.
func (x *Index) reportNotAllowed(key types.NamespacedName, a *account) {
	if a.said == nil || a.role != nil || !a.namespace.known {
		return
	}
	d := diagnosis.Subject{ServiceAccount: key.Name, Role: a.said, Why: a.namespace.why()}.Refused(diagnosis.NotAllowed)
	if a.exists {
		x.observer.RecordAccount(AccountRef{key, a.uid}, d)
	}
	x.reportPods(a, d)
}

// why is what the namespace says of its roles.
func (n *namespace) why() string {
	switch {
	case n.allowed == nil:
		return "it has no annotation " + role.AnnotationAllowed + ", and the server runs with --roles-by-default=deny"
	case n.allowed.Wrong() != "":
		return "no pattern of its annotation " + role.AnnotationAllowed + " matches; " + n.allowed.Wrong()
	}
	return "no pattern of its annotation " + role.AnnotationAllowed + " matches"
}

// removeNamespace needs changes.
func (x *Index) removeNamespace(name string) {
	if n := x.namespaces[name]; n != nil {
		n.exists = false
		x.releaseNamespace(name)
	}
}

type namespaceSink struct{ *Index }

func (s namespaceSink) Set(n *Namespace) {
	s.change(func() []any {
		s.setNamespaces(n)
		return []any{namespaceKey(n.Name)}
	})
}

func (s namespaceSink) Delete(n *Namespace) {
	s.change(func() []any {
		s.removeNamespace(n.Name)
		return []any{namespaceKey(n.Name)}
	})
}

func (s namespaceSink) Replace(namespaces []*Namespace) {
	s.change(func() (keys []any) {
		present := make(map[string]struct{}, len(namespaces))
		for _, n := range namespaces {
			present[n.Name] = struct{}{}
			keys = append(keys, namespaceKey(n.Name))
		}
		s.setNamespaces(namespaces...)
		for name := range s.namespaces {
			if _, ok := present[name]; !ok {
				s.removeNamespace(name)
			}
		}
		return keys
	})
}
