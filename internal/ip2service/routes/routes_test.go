package routes

import (
	"net/netip"
	"reflect"
	"slices"
	"testing"
)

func ends(all ...string) (parsed []netip.AddrPort) {
	for _, a := range all {
		parsed = append(parsed, netip.MustParseAddrPort(a))
	}
	return parsed
}

func addresses(all ...string) (parsed []netip.Addr) {
	for _, a := range all {
		parsed = append(parsed, netip.MustParseAddr(a))
	}
	return parsed
}

func example() Routes {
	return Routes{
		Hooks:     Node,
		Intercept: ends("192.0.2.7:80", "[fd00:ec2::254]:80", "192.0.2.7:8000", "192.0.2.8:80"),
		Host:      addresses("192.0.2.8", "fd00:ec2::254"),
		New:       ends("10.0.0.1:8080", "[fd00::1]:8080"),
		Live:      ends("10.0.0.1:8080", "[fd00::1]:8080", "[fd00::2]:8080"),
		DNS:       true,
		Bypassed:  true,
		Unknown:   true,

		KeepMetadata: true,
	}
}

func TestRoutesOfAFamily(t *testing.T) {
	r := example()
	for family, want := range map[Family]Routes{
		IPv4: {
			Hooks: Node, Intercept: ends("192.0.2.7:80", "192.0.2.7:8000", "192.0.2.8:80"), Host: addresses("192.0.2.8"),
			New: ends("10.0.0.1:8080"), Live: ends("10.0.0.1:8080"), DNS: true, Bypassed: true, Unknown: true, KeepMetadata: true,
		},
		IPv6: {
			Hooks: Node, Intercept: ends("[fd00:ec2::254]:80"), Host: addresses("fd00:ec2::254"),
			New: ends("[fd00::1]:8080"), Live: ends("[fd00::1]:8080", "[fd00::2]:8080"), DNS: true, Bypassed: true, Unknown: true, KeepMetadata: true,
		},
	} {
		if have := r.Of(family); !reflect.DeepEqual(have, want) {
			t.Errorf("%s: %+v, want %+v", family, have, want)
		}
	}
	if !reflect.DeepEqual(r, example()) {
		t.Errorf("Of has changed the routes of both to %+v", r)
	}
}

// The metadata service is guarded in both families, whatever is intercepted, unless it is to be
// kept and is not intercepted itself; an address with two ports once.
func TestGuardedAddresses(t *testing.T) {
	for _, c := range []struct {
		keep       bool
		intercept  []netip.AddrPort
		ipv4, ipv6 []netip.Addr
	}{
		{false, nil, addresses("169.254.169.254"), addresses("fd00:ec2::254")},
		{false, ends("169.254.169.254:80"), addresses("169.254.169.254"), addresses("fd00:ec2::254")},
		{false, ends("169.254.169.254:8080", "[fd00:ec2::254]:80"), addresses("169.254.169.254"), addresses("fd00:ec2::254")},
		{false, example().Intercept, addresses("192.0.2.7", "192.0.2.8", "169.254.169.254"), addresses("fd00:ec2::254")},
		{false, ends("[2001:db8::7]:80"), addresses("169.254.169.254"), addresses("2001:db8::7", "fd00:ec2::254")},
		{true, ends("169.254.170.2:80"), addresses("169.254.170.2"), nil},
		{true, ends("169.254.170.2:80", "169.254.169.254:80", "[fd00:ec2::23]:80"), addresses("169.254.170.2", "169.254.169.254"), addresses("fd00:ec2::23")},
	} {
		r := Routes{Intercept: c.intercept, KeepMetadata: c.keep}
		for family, want := range map[Family][]netip.Addr{IPv4: c.ipv4, IPv6: c.ipv6} {
			if have := r.Guarded(family); !slices.Equal(have, want) {
				t.Errorf("%v, %s: %v, want %v", c.intercept, family, have, want)
			}
		}
	}
}

// Routes without endpoints are the same however that came about, and every field counts.
func TestEqualRoutes(t *testing.T) {
	if r := (Routes{New: []netip.AddrPort{}}); !r.Equal(Routes{Live: []netip.AddrPort{}}) || !example().Equal(example()) {
		t.Error("equal routes are not")
	}
	typeOf := reflect.TypeFor[Routes]()
	for i := range typeOf.NumField() {
		r := example()
		reflect.ValueOf(&r).Elem().Field(i).SetZero()
		if r.Equal(example()) {
			t.Errorf("%s does not count", typeOf.Field(i).Name)
		}
	}
}
