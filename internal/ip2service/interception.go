//go:build !podonly

package ip2service

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
)

// interception is what becomes of the addresses of --intercept-ip on a node.
type interception struct {
	// pods are led for pods, host for the host's own processes.
	pods []netip.AddrPort
	host []netip.Addr
	// taken are let be, for pods too: an agent of the node has them.
	taken []netip.Addr
}

// intercept says it of a node that has these addresses itself. An agent's pods would lose
// their credentials if its address were led elsewhere. The metadata service's addresses are
// led in any case, as nobody but iam4kube shall answer there.
func (c Config) intercept(has func(netip.Addr) bool) (i interception) {
	for _, at := range c.Intercept {
		a := at.Addr()
		local := !routes.Metadata(a) && has(a)
		if local && !c.InterceptLocal {
			i.taken = append(i.taken, a)
			continue
		}
		i.pods = append(i.pods, at)
		// What the host sends to an address of its own has that one as its source: an answer
		// would not come back.
		if c.InterceptHost && !local && !routes.Metadata(a) && !slices.Contains(i.host, a) {
			i.host = append(i.host, a)
		}
	}
	return i
}

// nobody has no address.
func nobody(netip.Addr) bool { return false }

// takenError is an address that an agent of the node has.
type takenError struct{ address netip.Addr }

func (e takenError) Error() string {
	return fmt.Sprintf("%s is an address of this node, as the EKS Pod Identity agent's is: what is sent there stays with the node; remove the agent (on EKS the add-on eks-pod-identity-agent) and its interface, leave the address out of --intercept-ip, or take it from the agent with --intercept-local", e.address)
}
