package identity

import (
	"cmp"
	"net/netip"
	"slices"
)

// PodState is a pod in a dump.
type PodState struct {
	Namespace, Name, ServiceAccount, Node string
	Addresses                             []netip.Addr
	Terminating                           bool
	// HostNetwork: its addresses are its node's. Static: a kubelet's own pod. Ended: all its
	// containers have ended. No request from the addresses of such a pod is taken for its own.
	HostNetwork, Static, Ended bool
	// AccessKeyID of the credentials that it got last.
	AccessKeyID string `json:",omitempty"`
}

// Dump lists the pods by namespace and name.
func (x *Index) Dump() []PodState {
	x.changes.Lock()
	defer x.changes.Unlock()
	states := make([]PodState, 0, len(x.pods))
	for _, p := range x.pods {
		state := PodState{p.Namespace, p.Name, p.ServiceAccount, p.Node, p.Addresses, p.Terminating, p.HostNetwork, p.Static, p.Ended, ""}
		if id := p.Life.Served.Load(); id != nil {
			state.AccessKeyID = *id
		}
		states = append(states, state)
	}
	slices.SortFunc(states, func(a, b PodState) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return states
}
