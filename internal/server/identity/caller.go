package identity

import (
	"net/netip"

	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/internal/server/waiting"
)

// Claim is what a request says of who sends it. It is comparable: requests with equal
// claims are one caller's.
type Claim struct {
	// Address is where the request came from, unmapped and without a zone.
	Address netip.Addr
}

// Refusal names why a caller has no role, whatever may appear.
type Refusal string

const (
	// NodeAddress: the source address is a node's, that of a hostNetwork pod or of a
	// pod whose traffic is masqueraded on its way. Whose request it is cannot be told.
	NodeAddress Refusal = "node-address"
	// BadAnnotation: what the ServiceAccount's annotations say is wrong.
	BadAnnotation Refusal = "bad-annotation"
)

// Caller is what is known at one moment of whoever makes a claim.
type Caller struct {
	// Claim is how the caller is known.
	Claim Claim
	// Pod is nil while Missing is waiting.Pod or waiting.SinglePod.
	Pod *Pod
	// Role is the pod's role, nil while something is missing or refused.
	Role *role.Role
	// Missing is the next piece that has to appear, empty if nothing has to.
	Missing waiting.Piece
	// Claimants are the pods on the address while Missing is waiting.SinglePod.
	Claimants []*Pod
	// Refusal is why there will be no role, empty if nothing speaks against it.
	Refusal Refusal
	// Wrong is what is wrong with the annotations while Refusal is BadAnnotation.
	Wrong string
}

// Keys are what to watch to learn of any change to the Caller.
func (c Caller) Keys() []any {
	if c.Pod == nil {
		return []any{c.Claim.Address}
	}
	return []any{c.Claim.Address, c.Pod.account()}
}

// Lookup answers who makes the claim.
func (x *Index) Lookup(claim Claim) Caller {
	x.mu.RLock()
	defer x.mu.RUnlock()
	caller := Caller{Claim: claim}
	if x.hosts[claim.Address] > 0 {
		caller.Refusal = NodeAddress
		return caller
	}
	pods := x.addresses[claim.Address]
	caller.Pod, caller.Missing = onlyLive(pods)
	if caller.Pod == nil {
		caller.Claimants = pods
		return caller
	}
	a := x.accounts[caller.Pod.account()]
	switch {
	case a.exists && a.wrong != "":
		caller.Refusal, caller.Wrong = BadAnnotation, a.wrong
	case a.role != nil && (a.exists || caller.Pod.Terminating):
		caller.Role = a.role
	case !a.exists:
		caller.Missing = waiting.ServiceAccount
	default:
		caller.Missing = waiting.RoleAnnotation
	}
	return caller
}

// onlyLive picks the pod that an address belongs to: the only one, or the only
// one that is not terminating.
func onlyLive(pods []*Pod) (*Pod, waiting.Piece) {
	switch len(pods) {
	case 0:
		return nil, waiting.Pod
	case 1:
		return pods[0], ""
	}
	var live *Pod
	for _, p := range pods {
		if p.Terminating {
			continue
		}
		if live != nil {
			return nil, waiting.SinglePod
		}
		live = p
	}
	if live == nil {
		return nil, waiting.SinglePod
	}
	return live, ""
}
