package rules

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
	"github.com/iam4kube/iam4kube/test/netns"
	"github.com/iam4kube/iam4kube/test/node"
)

// containerCredentials are the addresses of the agents of ECS and EKS.
var containerCredentials = []netip.Addr{
	netip.MustParseAddr("169.254.170.2"), netip.MustParseAddr("169.254.170.23"), netip.MustParseAddr("fd00:ec2::23"),
}

// credentialsBeyond makes the far side answer at them, as somebody's agent, on ports, and
// says where else packets of a pod and of the host, in this order, come from.
func credentialsBeyond(t *testing.T, far *netns.FarSide) (pod, host, endpoint *place) {
	t.Helper()
	noTables(t)
	for _, a := range containerCredentials {
		command := strings.Fields(fmt.Sprintf("address add %s/%d dev lo nodad", a, a.BitLen()))
		if output, err := far.Run(t.Context(), "ip", command...); err != nil {
			t.Fatalf("%v: %s", err, output)
		}
	}
	beyond := &place{name: "far side", do: far.Do}
	beyond.serve(t, []uint16{80, 8080}, containerCredentials...)
	pod = addPlace(t, "pod", "10.244.0.2", "fd00:10:244::2")
	endpoint = addPlace(t, "endpoint", "10.244.1.2", "fd00:10:244:1::2")
	endpoint.serve(t, []uint16{8080}, endpoint.addresses[routes.IPv4], endpoint.addresses[routes.IPv6])
	host = hostPlace()
	host.allowPing(t)
	return pod, host, endpoint
}

// ownRoutes lead to the endpoint, or nowhere if it is nil.
func ownRoutes(endpoint *place) routes.Routes {
	r := routes.Routes{Hooks: routes.Node, Host: containerCredentials}
	for _, a := range append([]netip.Addr{routes.MetadataIPv4, routes.MetadataIPv6}, containerCredentials...) {
		r.Intercept = append(r.Intercept, netip.AddrPortFrom(a, 80))
	}
	if endpoint != nil {
		for _, family := range routes.Families {
			r.New = append(r.New, netip.AddrPortFrom(endpoint.addresses[family], 8080))
		}
		r.Live = r.New
	}
	return r
}

func sync(t *testing.T, r routes.Routes) {
	t.Helper()
	if _, err := kernel.Sync(r); err != nil {
		t.Fatal(err)
	}
}

// wantEnd opens a connection and closes it.
func wantEnd(t *testing.T, from *place, to netip.AddrPort, want string) {
	t.Helper()
	c, end := from.connect(to)
	if c != nil {
		c.hangUp()
	}
	if end != want {
		t.Errorf("from the %s to %s: %s, want %s", from.name, to, end, want)
	}
}

// The host's own processes are led as pods are, with the host's address, and get to nobody
// else at these addresses; the metadata service stays theirs.
func TestHostIsLedToContainerCredentials(t *testing.T) {
	far := netns.NewFarSide(t)
	// As the far side ends, it hangs up the connections that were reset on this side alone, and
	// the host, which may talk to it at the end, answers. What leaks is looked for above.
	t.Cleanup(func() {
		for far.TakeLeaks(t) > 0 {
		}
	})
	pod, host, endpoint := credentialsBeyond(t, far)
	var before []*connection
	for _, a := range containerCredentials {
		c, end := host.connect(netip.AddrPortFrom(a, 80))
		if c == nil {
			t.Fatalf("without rules: %s", end)
		}
		before = append(before, c)
	}
	far.TakeLeaks(t) // those of before
	sync(t, ownRoutes(endpoint))
	for _, c := range before {
		if end := c.ask(); end != "reset" {
			t.Errorf("the host's connection to another agent at %s, from before: %s", c.to, end)
		}
		c.hangUp()
	}
	var open []*connection
	for _, from := range []*place{pod, host} {
		for _, a := range containerCredentials {
			want := "to " + netip.AddrPortFrom(endpoint.addresses[routes.FamilyOf(a)], 8080).String()
			c, end := from.connect(netip.AddrPortFrom(a, 80))
			if end != want {
				t.Fatalf("from the %s to %s: %s, want %s", from.name, a, end, want)
			}
			open = append(open, c)
			wantEnd(t, from, netip.AddrPortFrom(a, 8080), "reset")
			if end := from.datagram(netip.AddrPortFrom(a, 80)); end != "rejected" {
				t.Errorf("by UDP from the %s to %s: %s", from.name, a, end)
			}
		}
	}
	for family, a := range metadata {
		wantEnd(t, pod, netip.AddrPortFrom(a, 80), "to "+netip.AddrPortFrom(endpoint.addresses[family], 8080).String())
	}
	if far.TakeLeaks(t) != 0 {
		t.Error("a pod got to the metadata service")
	}
	for _, a := range metadata {
		wantEnd(t, host, netip.AddrPortFrom(a, 80), "to "+netip.AddrPortFrom(a, 80).String())
	}
	far.TakeLeaks(t) // the host's own
	sync(t, ownRoutes(nil))
	for _, c := range open {
		if end := c.ask(); end != "reset" {
			t.Errorf("from the %s to %s, whose endpoint is gone: %s", c.from.name, c.to, end)
		}
		c.hangUp()
	}
	for _, from := range []*place{pod, host} {
		for _, a := range containerCredentials {
			wantEnd(t, from, netip.AddrPortFrom(a, 80), "reset")
		}
	}
	if far.TakeLeaks(t) != 0 {
		t.Error("somebody got to another agent")
	}
	sync(t, routes.Routes{Hooks: routes.Node, Intercept: ownRoutes(nil).Intercept}) // pods alone
	for _, a := range containerCredentials {
		wantEnd(t, pod, netip.AddrPortFrom(a, 80), "reset")
	}
	if far.TakeLeaks(t) != 0 {
		t.Error("a pod got to another agent")
	}
	for _, a := range containerCredentials {
		wantEnd(t, host, netip.AddrPortFrom(a, 80), "to "+netip.AddrPortFrom(a, 80).String())
	}
}

// Where another metadata service is to be kept, pods get to it as if nothing of ours were there,
// and to nobody else at the other addresses. Without that they get nowhere, also with the rules
// of a moment ago in their place.
func TestAnotherMetadataServiceIsKept(t *testing.T) {
	far := netns.NewFarSide(t)
	pod, host, endpoint := credentialsBeyond(t, far)
	kept := ownRoutes(endpoint)
	kept.KeepMetadata = true
	kept.Intercept = kept.Intercept[len(metadata):]
	guarded := kept
	guarded.KeepMetadata = false
	metadataEnds := func(from *place, end func(to netip.AddrPort) string) {
		for _, a := range metadata {
			for _, to := range []netip.AddrPort{netip.AddrPortFrom(a, 80), netip.AddrPortFrom(a, 8080)} {
				wantEnd(t, from, to, end(to))
			}
		}
	}
	itself := func(to netip.AddrPort) string { return "to " + to.String() }
	nowhere := func(netip.AddrPort) string { return "reset" }
	(&place{name: "far side", do: far.Do}).serve(t, []uint16{8080}, metadata[routes.IPv4], metadata[routes.IPv6])
	for _, noEndpoint := range []bool{false, true} {
		if noEndpoint {
			kept.New, kept.Live, guarded.New, guarded.Live = nil, nil, nil, nil
		}
		sync(t, guarded)
		metadataEnds(pod, nowhere)
		if far.TakeLeaks(t) != 0 {
			t.Error("a pod got to the metadata service")
		}
		sync(t, kept)
		metadataEnds(pod, itself)
		metadataEnds(host, itself)
		far.TakeLeaks(t) // as it should be
		for _, from := range []*place{pod, host} {
			for _, a := range containerCredentials {
				want := "to " + netip.AddrPortFrom(endpoint.addresses[routes.FamilyOf(a)], 8080).String()
				if noEndpoint {
					want = "reset"
				}
				wantEnd(t, from, netip.AddrPortFrom(a, 80), want)
				wantEnd(t, from, netip.AddrPortFrom(a, 8080), "reset")
			}
		}
	}
	sync(t, guarded)
	metadataEnds(pod, nowhere)
}

// While the endpoints are not known, the host is led by those of an earlier run, or refused.
func TestHostIsLedByAnEarlierRun(t *testing.T) {
	far := netns.NewFarSide(t)
	_, host, endpoint := credentialsBeyond(t, far)
	unknown := ownRoutes(nil)
	unknown.Unknown = true
	sync(t, unknown)
	wantEnd(t, host, netip.AddrPortFrom(containerCredentials[0], 80), "reset")
	earlier := ownRoutes(endpoint)
	earlier.Host = nil
	node.NFT(t, "flush", "ruleset")
	sync(t, earlier) // of a run without --intercept-host
	sync(t, unknown)
	wantEnd(t, host, netip.AddrPortFrom(containerCredentials[0], 80), "to "+netip.AddrPortFrom(endpoint.addresses[routes.IPv4], 8080).String())
}

// An address that the host has itself is let be by the rules for the other ones, as by those
// that take it for pods.
func TestAddressOfTheHostItself(t *testing.T) {
	far := netns.NewFarSide(t)
	pod, host, endpoint := credentialsBeyond(t, far)
	const agent = "169.254.170.23"
	a := netip.MustParseAddr(agent)
	netns.AddLocal(t, agent+"/32")
	own := &place{name: "host", do: host.do, addresses: map[routes.Family]netip.Addr{routes.IPv4: a}}
	own.serve(t, []uint16{80}, a)
	without := ownRoutes(endpoint)
	without.Host = []netip.Addr{containerCredentials[0], containerCredentials[2]}
	sync(t, without) // with --intercept-local
	wantEnd(t, pod, netip.AddrPortFrom(a, 80), "to "+netip.AddrPortFrom(endpoint.addresses[routes.IPv4], 8080).String())
	wantEnd(t, own, netip.AddrPortFrom(a, 80), "to "+netip.AddrPortFrom(a, 80).String())
	without.Intercept = append(without.Intercept[:3:3], without.Intercept[4])
	sync(t, without)
	for _, from := range []*place{pod, own} {
		wantEnd(t, from, netip.AddrPortFrom(a, 80), "to "+netip.AddrPortFrom(a, 80).String())
	}
}
