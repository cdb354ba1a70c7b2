package backends

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// TestRandomHistories plays 500 histories of a Service's slices to a Set, in the order
// and with the gaps, repetitions and new lists that watches have, and compares it after
// each event with a model that knows nothing but what was told last.
//
// A history is repeated by its seed, which is in the failure.
func TestRandomHistories(t *testing.T) {
	const histories, steps = 500, 60
	for seed := range uint64(histories) {
		h := &history{Rand: rand.New(rand.NewPCG(seed, 0)), told: map[string]*discoveryv1.EndpointSlice{}}
		h.set.Changed = func() { h.changes++ }
		h.port = []Port{"http", "8080"}[h.IntN(2)]
		if err := h.check(false); err != nil {
			t.Fatal(err)
		}
		for range steps {
			h.step()
			if err := h.check(true); err != nil {
				t.Fatalf("seed %d: %v\n%s", seed, err, strings.Join(h.trail, "\n"))
			}
		}
	}
}

// history is a random life of a Service.
type history struct {
	*rand.Rand
	set            Set
	port           Port
	told           map[string]*discoveryv1.EndpointSlice
	steps, changes int
	trail          []string
}

// step is one event of the watch; the first one is a list.
func (h *history) step() {
	name := fmt.Sprint("slice-", h.IntN(3))
	switch do := h.IntN(10); {
	case h.steps == 0, do == 0: // a list drops or brings what no event told of
		h.told = map[string]*discoveryv1.EndpointSlice{}
		all := []Slice{}
		for i := range 3 {
			if h.IntN(2) == 0 {
				slice := h.slice(fmt.Sprint("slice-", i))
				h.told[slice.Name] = slice
				all = append(all, h.port.Keep(slice))
			}
		}
		h.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		h.set.Replace(all)
		h.trail = append(h.trail, fmt.Sprintf("replace %+v", all))
	case do <= 2: // perhaps of one that is not there
		kept := h.port.Keep(h.slice(name))
		delete(h.told, name)
		h.set.Delete(kept)
		h.trail = append(h.trail, "delete "+name)
	default:
		slice := h.slice(name)
		h.told[name] = slice
		h.set.Set(h.port.Keep(slice))
		h.trail = append(h.trail, fmt.Sprintf("set %+v", h.port.Keep(slice)))
	}
	h.steps++
}

// slice has few addresses, so that they move between slices and change their states often.
func (h *history) slice(name string) *discoveryv1.EndpointSlice {
	condition := func() *bool { return []*bool{nil, new(true), new(false)}[h.IntN(3)] }
	slice := &discoveryv1.EndpointSlice{}
	slice.Name = name
	slice.AddressType = []discoveryv1.AddressType{
		discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6, discoveryv1.AddressTypeFQDN,
	}[h.IntN(4)]
	for range h.IntN(4) {
		n := h.IntN(4)
		e := discoveryv1.Endpoint{
			Addresses:  []string{fmt.Sprintf("10.0.0.%d", n)},
			Conditions: discoveryv1.EndpointConditions{Ready: condition(), Serving: condition(), Terminating: condition()},
			NodeName:   new(fmt.Sprint("node-", n)),
		}
		switch slice.AddressType {
		case discoveryv1.AddressTypeIPv6:
			e.Addresses = []string{fmt.Sprintf("fd00::%d", n)}
		case discoveryv1.AddressTypeFQDN:
			e.Addresses = []string{fmt.Sprintf("server-%d.example.com", n)}
		}
		slice.Endpoints = append(slice.Endpoints, e)
	}
	// In order: one port, several, one with another number, renamed, none.
	ports := [][]discoveryv1.EndpointPort{
		{{Name: new("http"), Port: new(int32(8080)), Protocol: new(corev1.ProtocolTCP)}},
		{{Name: new("metrics"), Port: new(int32(9090))}, {Name: new("http"), Port: new(int32(8080))}},
		{{Name: new("http"), Port: new(int32(8081)), Protocol: new(corev1.ProtocolTCP)}},
		{{Name: new("web"), Port: new(int32(8080))}},
		nil,
	}
	slice.Ports = ports[h.IntN(len(ports))]
	return slice
}

// check compares the Set with what was told.
func (h *history) check(known bool) error {
	endpoints, haveKnown := h.set.Endpoints()
	if haveKnown != known || h.changes != h.steps {
		return fmt.Errorf("known %v, %d changes after %d events", haveKnown, h.changes, h.steps)
	}
	if want, have := h.endpoints(), fmt.Sprint(endpoints); have != fmt.Sprint(want) {
		return fmt.Errorf("endpoints %s, want %v", have, want)
	}
	var noPort []string
	for _, name := range slices.Sorted(maps.Keys(h.told)) {
		slice := h.told[name]
		if h.number(slice) == 0 && len(slice.Endpoints) > 0 && slice.AddressType != discoveryv1.AddressTypeFQDN {
			noPort = append(noPort, name)
		}
	}
	if have := h.set.NoPort(); !slices.Equal(have, noPort) {
		return fmt.Errorf("no port in %v, want %v", have, noPort)
	}
	return h.checkSelect(endpoints)
}

// endpoints is what the slices say of each address, the best if they disagree.
func (h *history) endpoints() []Endpoint {
	best := map[netip.AddrPort]Endpoint{}
	for _, state := range []State{NotReady, Terminating, Ready} { // the last one said counts
		for _, slice := range h.told {
			number := h.number(slice)
			if number == 0 || slice.AddressType == discoveryv1.AddressTypeFQDN {
				continue
			}
			for _, e := range slice.Endpoints {
				is := func(condition *bool, missing bool) bool {
					return condition == nil && missing || condition != nil && *condition
				}
				ready, terminating := is(e.Conditions.Ready, true), is(e.Conditions.Terminating, false)
				says := map[State]bool{Ready: ready, Terminating: !ready && terminating, NotReady: !ready && !terminating}
				if says[state] {
					address := netip.AddrPortFrom(netip.MustParseAddr(e.Addresses[0]), number)
					best[address] = Endpoint{address, state, *e.NodeName}
				}
			}
		}
	}
	return slices.SortedFunc(maps.Values(best), func(a, b Endpoint) int { return a.Address.Compare(b.Address) })
}

// number is that of the port that is wanted, 0 if there is none.
func (h *history) number(slice *discoveryv1.EndpointSlice) (number uint16) {
	for _, p := range slice.Ports {
		if h.port == "http" && *p.Name == "http" || h.port == "8080" && *p.Port == 8080 {
			number = uint16(*p.Port)
		}
	}
	return number
}

// checkSelect checks each endpoint by itself, one node's being refused.
func (h *history) checkSelect(endpoints []Endpoint) error {
	Mark(endpoints, Refused, func(e netip.AddrPort) bool { return e.Addr() == netip.MustParseAddr("10.0.0.1") })
	ready := map[bool]bool{} // by whether it is IPv4
	for _, e := range endpoints {
		ready[e.Address.Addr().Is4()] = ready[e.Address.Addr().Is4()] || e.State == Ready
	}
	var wantFresh, wantLive []netip.AddrPort
	for _, e := range endpoints {
		refused := e.Address.Addr() == netip.MustParseAddr("10.0.0.1")
		if !refused {
			wantLive = append(wantLive, e.Address)
		}
		if !refused && (e.State == Ready || e.State == Terminating && !ready[e.Address.Addr().Is4()]) {
			wantFresh = append(wantFresh, e.Address)
		}
	}
	if fresh, live := Select(endpoints); !slices.Equal(fresh, wantFresh) || !slices.Equal(live, wantLive) {
		return fmt.Errorf("new %v, live %v, want %v and %v", fresh, live, wantFresh, wantLive)
	}
	return nil
}
