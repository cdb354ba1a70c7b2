package identity

import (
	"cmp"
	"maps"
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
		state := PodState{p.Namespace, p.Name, p.ServiceAccount, p.Host.Name(), p.Addresses, p.Terminating, p.HostNetwork, p.Static, p.Ended, ""}
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

// NamespaceState is a namespace in a dump.
type NamespaceState struct {
	Name string
	// Pods are those in memory, Invalid and NotAllowed ServiceAccounts: those whose annotations
	// are wrong, and those whose role the namespace may not have.
	Pods, Invalid, NotAllowed int
	// TokensOnly and Tokens are those of Namespace.
	TokensOnly, Tokens bool
	// May says which roles its ServiceAccounts may have: any, none, or those that are listed.
	May string
}

// DumpNamespaces lists the namespaces by name.
func (x *Index) DumpNamespaces() []NamespaceState {
	x.changes.Lock()
	defer x.changes.Unlock()
	states := make(map[string]*NamespaceState, len(x.namespaces))
	for name, n := range x.namespaces {
		if !n.exists {
			continue
		}
		state := &NamespaceState{Name: name, TokensOnly: n.tokensOnly, Tokens: n.tokens, May: "any"}
		switch {
		case n.allowed != nil:
			state.May = "listed"
		case x.denyByDefault:
			state.May = "none"
		}
		states[name] = state
	}
	for key, a := range x.accounts {
		state := states[key.Namespace]
		if state == nil {
			continue
		}
		state.Pods += len(a.pods)
		switch {
		case !a.exists:
		case a.wrong != "":
			state.Invalid++
		case a.role == nil && a.said != nil:
			state.NotAllowed++
		}
	}
	all := make([]NamespaceState, 0, len(states))
	for _, name := range slices.Sorted(maps.Keys(states)) {
		all = append(all, *states[name])
	}
	return all
}
