package backends

import (
	"net/netip"
	"reflect"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// Case 19: a missing ready means true. What a slice says of serving plays no part.
func TestStateOfAnEndpoint(t *testing.T) {
	yes, no := new(true), new(false)
	for name, c := range map[string]struct {
		ready, serving, terminating *bool
		want                        State
	}{
		"nothing said":                  {nil, nil, nil, Ready},
		"ready":                         {yes, nil, nil, Ready},
		"ready, the rest false":         {yes, no, no, Ready},
		"ready and terminating":         {yes, yes, yes, Ready}, // publishNotReadyAddresses
		"nothing said, but terminating": {nil, nil, yes, Ready},
		"not ready":                     {no, nil, nil, NotReady},
		"not ready, but serving":        {no, yes, nil, NotReady},
		"not terminating":               {no, yes, no, NotReady},
		"terminating and serving":       {no, yes, yes, Terminating},
		"terminating and not serving":   {no, no, yes, Terminating},
		"terminating, serving not said": {no, nil, yes, Terminating},
	} {
		slice := ipv4Slice("a", endpoint("10.0.0.1"))
		slice.Endpoints[0].Conditions = discoveryv1.EndpointConditions{Ready: c.ready, Serving: c.serving, Terminating: c.terminating}
		want := []Endpoint{{Address: netip.MustParseAddrPort("10.0.0.1:8080"), State: c.want}}
		if kept := Port("http").Keep(slice); !slices.Equal(kept.Endpoints, want) {
			t.Errorf("%s: %+v, want %v", name, kept, c.want)
		}
	}
}

func TestPortOfASlice(t *testing.T) {
	port := func(name string, number int32, protocol corev1.Protocol) discoveryv1.EndpointPort {
		return discoveryv1.EndpointPort{Name: &name, Port: &number, Protocol: &protocol}
	}
	const tcp, udp = corev1.ProtocolTCP, corev1.ProtocolUDP
	http, metrics := port("http", 8080, tcp), port("metrics", 9090, tcp)
	for name, c := range map[string]struct {
		flag  Port
		ports []discoveryv1.EndpointPort
		want  uint16 // 0: none
	}{
		"by name":                       {"http", []discoveryv1.EndpointPort{metrics, http}, 8080},
		"by number":                     {"9090", []discoveryv1.EndpointPort{http, metrics}, 9090},
		"another name":                  {"https", []discoveryv1.EndpointPort{http, metrics}, 0},
		"another number":                {"808", []discoveryv1.EndpointPort{http, metrics}, 0},
		"no ports":                      {"http", nil, 0},
		"without a protocol":            {"http", []discoveryv1.EndpointPort{{Name: http.Name, Port: http.Port}}, 8080},
		"by number, without a name":     {"8080", []discoveryv1.EndpointPort{{Port: http.Port}}, 8080},
		"by name, without a name":       {"http", []discoveryv1.EndpointPort{{Port: http.Port}}, 0},
		"without a number":              {"http", []discoveryv1.EndpointPort{{Name: http.Name}}, 0},
		"with the number 0":             {"http", []discoveryv1.EndpointPort{port("http", 0, tcp)}, 0},
		"another protocol":              {"http", []discoveryv1.EndpointPort{port("http", 8080, udp)}, 0},
		"of the protocols, that of TCP": {"http", []discoveryv1.EndpointPort{port("http", 8053, udp), http}, 8080},
	} {
		slice := ipv4Slice("a", endpoint("10.0.0.1"))
		slice.Ports = c.ports
		kept := c.flag.Keep(slice)
		var want []Endpoint
		if c.want != 0 {
			want = []Endpoint{{Address: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), c.want), State: Ready}}
		}
		if !slices.Equal(kept.Endpoints, want) || kept.NoPort != (c.want == 0) {
			t.Errorf("%s: %+v, want port %d", name, kept, c.want)
		}
	}
}

// A slice of the other kinds of addresses has no endpoints that could be routed to.
func TestSlicesThatAreNoAddresses(t *testing.T) {
	host := ipv4Slice("a", endpoint("server.example.com"))
	host.AddressType = discoveryv1.AddressTypeFQDN
	empty := ipv4Slice("a", discoveryv1.Endpoint{})
	other := ipv4Slice("a", endpoint("fd00::1"))
	noEndpoints := ipv4Slice("a")
	noEndpoints.Ports = nil
	for name, slice := range map[string]*discoveryv1.EndpointSlice{
		"FQDN": host, "no address": empty, "another family": other, "neither endpoints nor ports": noEndpoints,
	} {
		if kept := Port("http").Keep(slice); !reflect.DeepEqual(kept, Slice{Name: "a"}) {
			t.Errorf("%s: %+v", name, kept)
		}
	}
	several := ipv4Slice("a", discoveryv1.Endpoint{Addresses: []string{"10.0.0.1", "10.0.0.2"}, NodeName: new("n")})
	want := []Endpoint{{netip.MustParseAddrPort("10.0.0.1:8080"), Ready, "n"}}
	if kept := Port("http").Keep(several); !slices.Equal(kept.Endpoints, want) {
		t.Errorf("several addresses: %+v, want the first", kept)
	}
}

// Case 3: without a ready endpoint, terminating ones take new connections, by family. Those
// that are not ready never do, and whoever is listed keeps what it has, unless refused.
func TestSelection(t *testing.T) {
	const one, two, six = "10.0.0.1:8080", "10.0.0.2:8080", "[fd00::1]:8080"
	for name, c := range map[string]struct {
		states      map[string]State
		fresh, live []string
	}{
		"none":                          {},
		"ready":                         {map[string]State{one: Ready, two: Ready}, []string{one, two}, []string{one, two}},
		"one terminating":               {map[string]State{one: Ready, two: Terminating}, []string{one}, []string{one, two}},
		"one not ready":                 {map[string]State{one: NotReady, two: Ready}, []string{two}, []string{one, two}},
		"all terminating":               {map[string]State{one: Terminating, two: Terminating}, []string{one, two}, []string{one, two}},
		"terminating and not ready":     {map[string]State{one: NotReady, two: Terminating}, []string{two}, []string{one, two}},
		"all not ready":                 {map[string]State{one: NotReady, two: NotReady}, nil, []string{one, two}},
		"one refused":                   {map[string]State{one: Refused, two: Ready}, []string{two}, []string{two}},
		"all refused":                   {map[string]State{one: Refused}, nil, nil},
		"refused beside terminating":    {map[string]State{one: Refused, two: Terminating}, []string{two}, []string{two}},
		"ready of the other family":     {map[string]State{one: Terminating, six: Ready}, []string{one, six}, []string{one, six}},
		"not ready of the other family": {map[string]State{one: Ready, six: NotReady}, []string{one}, []string{one, six}},
	} {
		var endpoints []Endpoint
		for _, address := range []string{one, two, six} {
			if state, ok := c.states[address]; ok {
				endpoints = append(endpoints, Endpoint{Address: netip.MustParseAddrPort(address), State: state})
			}
		}
		fresh, live := Select(endpoints)
		if !slices.Equal(texts(fresh), c.fresh) || !slices.Equal(texts(live), c.live) {
			t.Errorf("%s: new %v, live %v, want %v and %v", name, fresh, live, c.fresh, c.live)
		}
	}
}

func TestMark(t *testing.T) {
	endpoints := []Endpoint{
		{Address: netip.MustParseAddrPort("10.0.0.1:8080"), State: Ready},
		{Address: netip.MustParseAddrPort("10.0.0.1:9090"), State: Terminating},
		{Address: netip.MustParseAddrPort("10.0.0.2:8080"), State: Ready},
	}
	Mark(endpoints, Refused, func(e netip.AddrPort) bool { return e.Addr() == netip.MustParseAddr("10.0.0.1") })
	if endpoints[0].State != Refused || endpoints[1].State != Refused || endpoints[2].State != Ready {
		t.Errorf("%v", endpoints)
	}
}

func ipv4Slice(name string, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4, Endpoints: endpoints}
	s.Name = name
	s.Ports = []discoveryv1.EndpointPort{{Name: new("http"), Port: new(int32(8080)), Protocol: new(corev1.ProtocolTCP)}}
	return s
}

func endpoint(address string) discoveryv1.Endpoint {
	return discoveryv1.Endpoint{Addresses: []string{address}}
}

func texts(addresses []netip.AddrPort) (all []string) {
	for _, a := range addresses {
		all = append(all, a.String())
	}
	return all
}
