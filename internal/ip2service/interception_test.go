//go:build !podonly

package ip2service

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
)

// The addresses of container credentials, beside those of the metadata service.
var (
	ecs, eks, eks6 = netip.MustParseAddr("169.254.170.2"), netip.MustParseAddr("169.254.170.23"), netip.MustParseAddr("fd00:ec2::23")
	credentials    = append(slices.Clone(intercept), netip.AddrPortFrom(ecs, 80), netip.AddrPortFrom(eks, 80), netip.AddrPortFrom(eks6, 80))
)

// without are these without the ones of some addresses.
func without(all []netip.AddrPort, addresses ...netip.Addr) []netip.AddrPort {
	return slices.DeleteFunc(slices.Clone(all), func(i netip.AddrPort) bool { return slices.Contains(addresses, i.Addr()) })
}

func TestWhatIsInterceptedOnANode(t *testing.T) {
	all := []netip.Addr{ecs, eks, eks6}
	for name, c := range map[string]struct {
		host, local bool
		intercept   []netip.AddrPort
		has         []netip.Addr
		want        interception
	}{
		"pods alone":        {intercept: credentials, want: interception{pods: credentials}},
		"the host, too":     {host: true, intercept: credentials, want: interception{pods: credentials, host: all}},
		"an address twice":  {host: true, intercept: []netip.AddrPort{credentials[2], netip.AddrPortFrom(ecs, 8080)}, want: interception{pods: []netip.AddrPort{credentials[2], netip.AddrPortFrom(ecs, 8080)}, host: all[:1]}},
		"beside an agent":   {host: true, intercept: credentials, has: []netip.Addr{eks, eks6}, want: interception{pods: without(credentials, eks, eks6), host: all[:1], taken: all[1:]}},
		"for pods, too":     {intercept: credentials, has: []netip.Addr{ecs}, want: interception{pods: without(credentials, ecs), taken: all[:1]}},
		"told otherwise":    {host: true, local: true, intercept: credentials, has: []netip.Addr{eks}, want: interception{pods: credentials, host: []netip.Addr{ecs, eks6}}},
		"metadata is local": {host: true, intercept: intercept, has: []netip.Addr{routes.MetadataIPv4, routes.MetadataIPv6}, want: interception{pods: intercept}},
	} {
		cfg := Config{Intercept: c.intercept, InterceptHost: c.host, InterceptLocal: c.local}
		have := cfg.intercept(func(a netip.Addr) bool { return slices.Contains(c.has, a) })
		if !slices.Equal(have.pods, c.want.pods) || !slices.Equal(have.host, c.want.host) || !slices.Equal(have.taken, c.want.taken) {
			t.Errorf("%s: %+v, want %+v", name, have, c.want)
		}
	}
}

// Where another metadata service is to be kept its addresses are not in the rules at all.
func TestAnotherMetadataServiceIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startRigWith(t, func(b *rig) {
			b.cfg.Intercept, b.cfg.KeepMetadata = credentials[len(intercept):], true
		})
		b.list("ready " + one)
		endpoints := []netip.AddrPort{netip.MustParseAddrPort(one)}
		want := text(&routes.Routes{Hooks: routes.Node, Intercept: credentials[len(intercept):], KeepMetadata: true, New: endpoints, Live: endpoints})
		if have := b.kernel.text(); have != want || strings.Contains(have, "169.254.169.254") || strings.Contains(have, "fd00:ec2::254") {
			t.Errorf("want %s, have\n%s", want, have)
		}
	})
}

// An agent that comes to the node takes its address, with a reason, and gives it back; the
// metadata service's are led throughout. Where the host cannot be looked at, all are guarded.
func TestAgentOnTheNodeKeepsItsAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startRigWith(t, func(b *rig) {
			b.cfg.Intercept, b.cfg.InterceptHost = credentials, true
		})
		b.list("ready " + one)
		check := func(intercept []netip.AddrPort, host ...netip.Addr) {
			t.Helper()
			endpoints := []netip.AddrPort{netip.MustParseAddrPort(one)}
			want := text(&routes.Routes{Hooks: routes.Node, Intercept: intercept, Host: host, New: endpoints, Live: endpoints})
			if have := b.kernel.text(); have != want {
				t.Errorf("want %s, have\n%s", want, have)
			}
		}
		check(credentials, ecs, eks, eks6)
		b.wantErr(t, nil)
		b.takeLogs()
		b.machine.change(func() { b.machine.has = []netip.Addr{eks, eks6} })
		advance(3 * resync)
		check(without(credentials, eks, eks6), ecs)
		b.wantErr(t, takenError{eks})
		b.wantErr(t, takenError{eks6})
		if n := count(b.takeLogs(), "address not led to the servers"); n != 2 {
			t.Errorf("told %d times, want once for each address", n)
		}
		blind := errors.New("no netlink")
		b.machine.change(func() { b.machine.err = blind })
		advance(resync)
		check(credentials, ecs, eks, eks6)
		b.machine.change(func() { b.machine.err, b.machine.has = nil, nil })
		advance(resync)
		check(credentials, ecs, eks, eks6)
		b.wantErr(t, nil)
	})
}
