// Package routes says what ip2service wants of the kernel, whichever part of the kernel
// does it: the addresses to intercept, the endpoints that they lead to, what is guarded,
// and what a data path counts and why it may refuse. It owns the words that those who
// want routes share with the data paths, and knows nothing of either.
package routes

import (
	"errors"
	"net/netip"
	"slices"
)

// Family is that of an address; the values are labels of metrics, and nft's keywords.
type Family string

// The families of IP.
const (
	IPv4 Family = "ip"
	IPv6 Family = "ip6"
)

// Families are all of them.
var Families = []Family{IPv4, IPv6}

// FamilyOf is the family of an address.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// The addresses of EC2's instance metadata service,
// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html.
// They are guarded whatever is intercepted, unless somebody wants Routes.KeepMetadata: a node
// with an IPv4 route alone must not give its role away by IPv6.
var (
	MetadataIPv4 = netip.MustParseAddr("169.254.169.254")
	MetadataIPv6 = netip.MustParseAddr("fd00:ec2::254")
)

// Metadata says whether the address is one of them.
func Metadata(a netip.Addr) bool { return a == MetadataIPv4 || a == MetadataIPv6 }

// Hooks is whose packets are caught, and where.
type Hooks string

const (
	// Node catches what pods send, on their node. The traffic of the host itself, and so
	// of hostNetwork pods, is let be but for Routes.Host, and calls of the endpoints
	// themselves are rejected.
	Node Hooks = "node"
	// Pod catches what the processes of a pod send, in its own network namespace. What
	// the pod itself forwards (containers in a container) is only guarded.
	Pod Hooks = "pod"
)

// Routes are what is wanted.
type Routes struct {
	// Hooks are those of the place where the routes are.
	Hooks Hooks
	// Intercept are the addresses and TCP ports that are led to the endpoints of their
	// family. All else that is sent to these addresses is rejected.
	Intercept []netip.AddrPort
	// Host are those of the addresses of Intercept that hold for what the host itself sends,
	// too, where Hooks is Node.
	Host []netip.Addr
	// KeepMetadata leaves the addresses of the metadata service to whoever answers there: they
	// are not guarded unless they are in Intercept.
	KeepMetadata bool
	// DNS lets packets to the domain port of these addresses pass by UDP and TCP, where the
	// same address is a cloud's resolver. They go where they were sent.
	DNS bool
	// New are the endpoints that get new connections, in equal shares.
	New []netip.AddrPort
	// Live are those whose connections may go on, in the order of their addresses. Whoever
	// is not among them gets no packet that was sent to a guarded address, even if somebody
	// else leads it there.
	Live []netip.AddrPort
	// Bypassed says that netfilter may not see what pods send, so that nothing may be left
	// to it by another data path.
	Bypassed bool
	// Unknown says that the endpoints are not known yet: those of an earlier run, if
	// there are any, stay.
	Unknown bool
}

// Of are the routes of one family.
func (r Routes) Of(family Family) Routes {
	other := func(a netip.AddrPort) bool { return FamilyOf(a.Addr()) != family }
	r.Intercept = slices.DeleteFunc(slices.Clone(r.Intercept), other)
	r.Host = slices.DeleteFunc(slices.Clone(r.Host), func(a netip.Addr) bool { return FamilyOf(a) != family })
	r.New = slices.DeleteFunc(slices.Clone(r.New), other)
	r.Live = slices.DeleteFunc(slices.Clone(r.Live), other)
	return r
}

// Intercepted are the addresses of Intercept, each once.
func (r Routes) Intercepted() (addresses []netip.Addr) {
	for _, i := range r.Intercept {
		if !slices.Contains(addresses, i.Addr()) {
			addresses = append(addresses, i.Addr())
		}
	}
	return addresses
}

// Guarded are the addresses of a family that nothing may reach but by way of Intercept.
func (r Routes) Guarded(family Family) []netip.Addr {
	addresses := r.Of(family).Intercepted()
	metadata := map[Family]netip.Addr{IPv4: MetadataIPv4, IPv6: MetadataIPv6}[family]
	if !r.KeepMetadata && !slices.Contains(addresses, metadata) {
		addresses = append(addresses, metadata)
	}
	return addresses
}

// Equal says whether both want the same.
func (r Routes) Equal(other Routes) bool {
	return r.Hooks == other.Hooks && r.KeepMetadata == other.KeepMetadata && r.Unknown == other.Unknown && r.DNS == other.DNS && r.Bypassed == other.Bypassed && slices.Equal(r.Intercept, other.Intercept) &&
		slices.Equal(r.Host, other.Host) && slices.Equal(r.New, other.New) && slices.Equal(r.Live, other.Live)
}

// Counters are what a data path counts of one family.
type Counters struct {
	// Translated counts connections that were led to an endpoint.
	Translated uint64
	// Rejected counts the packets that the guard rejected.
	Rejected uint64
}

// Reasons why a kernel refuses routes. A data path's error says what to do and has one of
// them in its chain; their own texts are for nobody.
var (
	// ErrPermission: this process may not.
	ErrPermission = errors.New("permission")
	// ErrUnsupported: this kernel cannot.
	ErrUnsupported = errors.New("unsupported")
	// ErrOwned: another process holds what is there, until it ends.
	ErrOwned = errors.New("owned")
)
