// Package backends knows the endpoints of a Service from its EndpointSlices: which of
// them get new connections and which may keep those that they have. It owns what
// the conditions of an endpoint mean; routes are made of its answer in package ip2service.
package backends

import (
	"net/netip"
	"slices"
	"strconv"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// State of an endpoint; the values are metric labels.
type State string

// States. What an EndpointSlice says of serving plays no part: it is the pod's
// readiness, and a server that is draining is not ready any more, but accepts still.
const (
	// Ready endpoints get new connections.
	Ready State = "ready"
	// Terminating endpoints keep their connections, and get new ones while no endpoint
	// of the family is ready.
	Terminating State = "terminating"
	// NotReady endpoints keep their connections.
	NotReady State = "not-ready"
	// Refused endpoints get nothing, see Mark.
	Refused State = "refused"
	// Unproven endpoints get nothing: they may be somebody else.
	Unproven State = "unproven"
)

// States are all of them.
var States = []State{Ready, Terminating, NotReady, Refused, Unproven}

// Endpoint is one address and port of a Service in the state that all slices together
// give it.
type Endpoint struct {
	Address netip.AddrPort
	State   State
	// Node is the name of the endpoint's node, empty if unknown.
	Node string
}

// Slice is what is kept of an EndpointSlice.
type Slice struct {
	Name      string
	Endpoints []Endpoint
	// NoPort says that the slice has endpoints, but not the port that is wanted.
	NoPort bool
}

// Port chooses a slice's port: by its name, or by its number.
type Port string

// Keep keeps of an EndpointSlice what is needed. Of an endpoint's addresses the first
// counts, as for kube-proxy,
// https://kubernetes.io/docs/reference/kubernetes-api/service-resources/endpoint-slice-v1/
func (p Port) Keep(slice *discoveryv1.EndpointSlice) Slice {
	s := Slice{Name: slice.Name}
	if slice.AddressType != discoveryv1.AddressTypeIPv4 && slice.AddressType != discoveryv1.AddressTypeIPv6 {
		return s
	}
	port, ok := p.of(slice)
	if !ok {
		s.NoPort = len(slice.Endpoints) > 0
		return s
	}
	for _, e := range slice.Endpoints {
		if len(e.Addresses) == 0 {
			continue
		}
		address, err := netip.ParseAddr(e.Addresses[0])
		if err != nil || address.Is4() != (slice.AddressType == discoveryv1.AddressTypeIPv4) {
			continue // the API server admits neither
		}
		endpoint := Endpoint{Address: netip.AddrPortFrom(address, port), State: stateOf(e.Conditions)}
		if e.NodeName != nil {
			endpoint.Node = *e.NodeName
		}
		s.Endpoints = append(s.Endpoints, endpoint)
	}
	return s
}

func (p Port) of(slice *discoveryv1.EndpointSlice) (port uint16, ok bool) {
	for _, candidate := range slice.Ports {
		tcp := candidate.Protocol == nil || *candidate.Protocol == corev1.ProtocolTCP
		// Without a number it would be any port.
		if !tcp || candidate.Port == nil || *candidate.Port <= 0 {
			continue
		}
		named := candidate.Name != nil && *candidate.Name == string(p)
		if named || strconv.Itoa(int(*candidate.Port)) == string(p) {
			return uint16(*candidate.Port), true
		}
	}
	return 0, false
}

// stateOf reads the conditions; a missing ready means true, a missing terminating false.
func stateOf(c discoveryv1.EndpointConditions) State {
	switch {
	case c.Ready == nil || *c.Ready:
		return Ready
	case c.Terminating != nil && *c.Terminating:
		return Terminating
	}
	return NotReady
}

// Set is the endpoints of a Service. It is the kube.Sink of its slices. The zero value
// knows nothing yet.
type Set struct {
	// Changed is called after each change, from the goroutine that made it.
	Changed func()

	mu     sync.Mutex
	known  bool
	slices map[string]Slice
}

// Replace implements kube.Sink.
func (s *Set) Replace(all []Slice) {
	s.change(func() {
		s.known = true
		s.slices = make(map[string]Slice, len(all))
		for _, slice := range all {
			s.slices[slice.Name] = slice
		}
	})
}

// Set implements kube.Sink.
func (s *Set) Set(slice Slice) { s.change(func() { s.slices[slice.Name] = slice }) }

// Delete implements kube.Sink.
func (s *Set) Delete(slice Slice) { s.change(func() { delete(s.slices, slice.Name) }) }

func (s *Set) change(do func()) {
	s.mu.Lock()
	do()
	s.mu.Unlock()
	s.Changed()
}

// Endpoints are those of all slices, in the order of their addresses, each once: while
// it moves between slices, an endpoint can be in two of them, and the better state
// counts. known is false before the first list.
func (s *Set) Endpoints() (endpoints []Endpoint, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, slice := range s.slices {
		endpoints = append(endpoints, slice.Endpoints...)
	}
	slices.SortFunc(endpoints, func(a, b Endpoint) int {
		if c := a.Address.Compare(b.Address); c != 0 {
			return c
		}
		return slices.Index(States, a.State) - slices.Index(States, b.State)
	})
	return slices.CompactFunc(endpoints, func(a, b Endpoint) bool { return a.Address == b.Address }), s.known
}

// Addresses are those of all endpoints.
func (s *Set) Addresses() (addresses []netip.AddrPort) {
	endpoints, _ := s.Endpoints()
	for _, e := range endpoints {
		addresses = append(addresses, e.Address)
	}
	return addresses
}

// NoPort are the names of slices that have endpoints, but not the port.
func (s *Set) NoPort() (names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, slice := range s.slices {
		if slice.NoPort {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Mark gives the endpoints of which that is so another state.
func Mark(endpoints []Endpoint, state State, is func(netip.AddrPort) bool) {
	for i, e := range endpoints {
		if is(e.Address) {
			endpoints[i].State = state
		}
	}
}

// Select says who gets new connections, by family, and whose connections may go on.
func Select(endpoints []Endpoint) (fresh, live []netip.AddrPort) {
	byState := map[State][]netip.AddrPort{}
	for _, e := range endpoints {
		byState[e.State] = append(byState[e.State], e.Address)
		if e.State != Refused && e.State != Unproven {
			live = append(live, e.Address)
		}
	}
	for _, is4 := range []bool{true, false} {
		for _, state := range []State{Ready, Terminating} {
			of := slices.DeleteFunc(slices.Clone(byState[state]), func(a netip.AddrPort) bool { return a.Addr().Is4() != is4 })
			if len(of) > 0 {
				fresh = append(fresh, of...)
				break
			}
		}
	}
	return fresh, live
}
