package identity

import "net/netip"

// SetStale says whether what is known here is too old to tell by an address who calls.
// While it is, no Lookup by one finds anybody.
func (x *Index) SetStale(stale bool) { x.stale.Store(stale) }

// Replicas are addresses of the pods, one of each, that have namespace and ServiceAccount in
// common with the pod that has one of the addresses own, and of no other pod.
func (x *Index) Replicas(own []netip.Addr) (addresses []netip.Addr) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for _, a := range own {
		self, _ := x.owner(a, x.addresses[a])
		if self == nil {
			continue
		}
		for _, p := range x.pods {
			if p.UID != self.UID && p.accountKey() == self.accountKey() && p.hasOwnAddresses() && len(p.Addresses) > 0 {
				addresses = append(addresses, p.Addresses[0])
			}
		}
		return addresses
	}
	return nil
}
