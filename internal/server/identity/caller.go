package identity

import (
	"net/netip"

	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
	"github.com/iam4kube/iam4kube/internal/server/role"
)

// Claim is what a request says of who sends it. It is comparable: requests with equal
// claims are one caller's.
type Claim struct {
	// Address is where the request came from, unmapped and without a zone.
	Address netip.Addr
}

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
	// Wrong is what is wrong with the annotations while Refusal is diagnosis.BadAnnotation.
	Wrong string
}

// Keys are what to watch to learn of any change to the Caller.
func (c Caller) Keys() []any {
	if c.Pod == nil {
		return []any{c.Claim.Address}
	}
	return []any{c.Claim.Address, c.Pod.accountKey()}
}

// Subject is the Caller as a diagnosis names him.
func (c Caller) Subject() diagnosis.Subject {
	s := diagnosis.Subject{Address: c.Claim.Address, Role: c.Role, Why: c.Wrong}
	if c.Pod != nil {
		s.Pod, s.ServiceAccount = c.Pod.Namespace+"/"+c.Pod.Name, c.Pod.ServiceAccount
	}
	return s
}

// Lookup answers who makes the claim.
func (x *Index) Lookup(claim Claim) Caller {
	x.mu.RLock()
	defer x.mu.RUnlock()
	caller := Caller{Claim: claim}
	if x.stale.Load() {
		caller.Refusal = diagnosis.Stale
		return caller
	}
	if x.isNodeAddress(claim.Address) {
		caller.Refusal = diagnosis.NodeAddress
		return caller
	}
	if _, ok := x.unsettled[claim.Address]; ok {
		caller.Missing = diagnosis.Pod
		return caller
	}
	pods := x.addresses[claim.Address]
	caller.Pod, caller.Missing = x.owner(claim.Address, pods)
	if caller.Pod == nil {
		caller.Claimants = pods
		return caller
	}
	a := caller.Pod.account
	switch {
	case a.exists && a.wrong != "":
		caller.Refusal, caller.Wrong = diagnosis.BadAnnotation, a.wrong
	case a.role != nil && (a.exists || caller.Pod.Terminating):
		caller.Role = a.role
	case !a.exists:
		caller.Missing = diagnosis.ServiceAccount
	default:
		caller.Missing = diagnosis.RoleAnnotation
	}
	return caller
}
