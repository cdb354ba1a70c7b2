package identity

import (
	"cmp"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
	"github.com/iam4kube/iam4kube/internal/server/role"
)

// Claim is what a request says of who sends it.
type Claim struct {
	// Address is where the request came from, unmapped and without a zone.
	Address netip.Addr
	// Token is what a verified token says, nil without one.
	Token *Token
}

// Token is what a token of a ServiceAccount that is bound to a pod says.
type Token struct {
	Namespace, Pod    string
	PodUID            types.UID
	ServiceAccount    string
	ServiceAccountUID types.UID
	// Issued is when, in seconds of Unix time.
	Issued int64
}

func (t Token) key() types.NamespacedName {
	return types.NamespacedName{Namespace: t.Namespace, Name: t.Pod}
}

// Who is whoever makes the claim, the same for all requests of one pod: its UID if that is
// proven, else its address.
func (c Claim) Who() any {
	if c.Token != nil {
		return c.Token.PodUID
	}
	return c.Address
}

// podKey is the key in the waiting.Hub that is woken when a pod of that name changes.
type podKey types.NamespacedName

// Caller is what is known at one moment of whoever makes a claim.
type Caller struct {
	// Claim is how the caller is known.
	Claim Claim
	// Pod is nil while Missing is diagnosis.Pod or diagnosis.SinglePod.
	Pod *Pod
	// Role is the pod's role, nil while something is missing or refused.
	Role *role.Role
	// Missing is the next piece that has to appear, empty if nothing has to.
	Missing diagnosis.Piece
	// Claimants are the pods on the address while Missing is diagnosis.SinglePod.
	Claimants []*Pod
	// Refusal is why there will be no role, empty if nothing speaks against it.
	Refusal diagnosis.Refusal
	// Wrong is what is wrong with the annotations while Refusal is diagnosis.BadAnnotation,
	// and why the namespace does not allow the role Denied while it is diagnosis.NotAllowed.
	Wrong  string
	Denied *role.Role
	// version is the Index's of that moment.
	version uint64
	// Lookalike is the key of an annotation that may have been meant for the missing one
	// while Missing is diagnosis.RoleAnnotation, empty if there is none.
	Lookalike string
}

// Keys are what to watch to learn of any change to the Caller.
func (c Caller) Keys() []any {
	keys := []any{c.Claim.Address}
	if c.Claim.Token != nil {
		keys = append(keys, podKey(c.Claim.Token.key()))
	}
	if c.Pod != nil {
		keys = append(keys, c.Pod.accountKey(), namespaceKey(c.Pod.Namespace))
	}
	return keys
}

// Proof is how the caller is known: by his token or his address.
func (c Caller) Proof() string {
	if c.Claim.Token != nil {
		return "token"
	}
	return "address"
}

// Subject is the Caller as a diagnosis names him.
func (c Caller) Subject() diagnosis.Subject {
	s := diagnosis.Subject{Address: c.Claim.Address, Role: cmp.Or(c.Role, c.Denied), Why: c.Wrong, Lookalike: c.Lookalike}
	if t := c.Claim.Token; t != nil {
		s.ByToken, s.Pod, s.ServiceAccount = true, t.Namespace+"/"+t.Pod, t.ServiceAccount
	}
	if c.Pod != nil {
		s.Pod, s.ServiceAccount = c.Pod.Namespace+"/"+c.Pod.Name, c.Pod.ServiceAccount
	}
	return s
}

// Lookup answers who makes the claim.
func (x *Index) Lookup(claim Claim) Caller {
	x.mu.RLock()
	defer x.mu.RUnlock()
	caller := Caller{Claim: claim, version: x.version.Load()}
	if claim.Token != nil {
		return x.bearer(caller)
	}
	if x.stale.Load() {
		caller.Refusal = diagnosis.Stale
		return caller
	}
	if x.isNodeAddress(claim.Address) {
		caller.Refusal = diagnosis.NodeAddress
		return caller
	}
	if x.isUnsettled(claim.Address) {
		caller.Missing = diagnosis.Pod
		return caller
	}
	pods := x.addresses[claim.Address]
	caller.Pod, caller.Missing = x.owner(claim.Address, pods)
	if caller.Pod == nil {
		caller.Claimants = pods
		return caller
	}
	switch a := caller.Pod.account; {
	case !a.namespace.known:
		caller.Missing = diagnosis.Namespace
		return caller
	case a.namespace.tokensOnly:
		caller.Refusal = diagnosis.TokenRequired
		return caller
	}
	return withRole(caller)
}

// Unchanged reports whether Lookup would answer the same now. It says no also where something
// has changed that is nothing to this Caller.
func (x *Index) Unchanged(c Caller) bool { return x.version.Load() == c.version }

// withRole adds what the pod's ServiceAccount says. It needs Index.mu.
func withRole(caller Caller) Caller {
	a := caller.Pod.account
	switch {
	case a.exists && a.wrong != "":
		caller.Refusal, caller.Wrong = diagnosis.BadAnnotation, a.wrong
	case a.said != nil && (a.exists || caller.Pod.Terminating):
		switch {
		case a.role != nil:
			caller.Role = a.role
		case !a.namespace.known:
			caller.Missing = diagnosis.Namespace
		default:
			caller.Refusal, caller.Wrong, caller.Denied = diagnosis.NotAllowed, a.namespace.why(), a.said
		}
	case !a.exists:
		caller.Missing = diagnosis.ServiceAccount
	default:
		caller.Missing, caller.Lookalike = diagnosis.RoleAnnotation, a.lookalike
		if a.lookalike == "" && caller.Pod.NamesRole {
			caller.Lookalike = role.PodAnnotation
		}
	}
	return caller
}

// bearer answers whose token it is. The token's pod and ServiceAccount have to be those that
// live now, by their UIDs: what is not known yet may still come, unless the one that has the
// name now was made after the token. It needs mu.
func (x *Index) bearer(caller Caller) Caller {
	t := caller.Claim.Token
	p := x.pods[t.key()]
	switch {
	case p == nil:
		caller.Missing = diagnosis.Pod
		return caller
	case p.UID != t.PodUID:
		caller.Missing = diagnosis.Pod
		if p.Created > t.Issued {
			caller.Missing, caller.Refusal = "", diagnosis.PodGone
		}
		return caller
	case p.Ended, p.Static, p.ServiceAccount != t.ServiceAccount:
		caller.Refusal = diagnosis.PodGone
		return caller
	case x.isUnsettled(caller.Claim.Address): // it may be another pod's in a moment
		caller.Missing = diagnosis.Pod
		return caller
	case x.contradicts(caller.Claim.Address, p):
		if len(p.Addresses) == 0 { // none is told yet: it may be the one, and its last owner gone
			caller.Missing = diagnosis.Pod
			return caller
		}
		caller.Refusal = diagnosis.OtherPod
		return caller
	}
	caller.Pod = p
	if a := p.account; a.uid != t.ServiceAccountUID {
		caller.Missing = diagnosis.ServiceAccount
		if a.exists && a.created > t.Issued {
			caller.Missing, caller.Refusal = "", diagnosis.AccountGone
		}
		return caller
	}
	return withRole(caller)
}

// contradicts says that the address is other pods', and not that of one which may hand in the
// tokens of others: whoever has the token has stolen it. It needs mu.
func (x *Index) contradicts(a netip.Addr, p *Pod) bool {
	pods := x.addresses[a]
	if len(pods) == 0 || x.isNodeAddress(a) || slices.Contains(pods, p) {
		return false
	}
	owner, _ := x.owner(a, pods)
	if owner == nil { // whose of them it is cannot be told
		return true
	}
	_, forwards := x.forwarders[owner.accountKey()]
	return !forwards
}

// isUnsettled says that a list is about to change whose address it is. It needs mu.
func (x *Index) isUnsettled(a netip.Addr) bool {
	_, ok := x.unsettled[a]
	return ok
}
