package identity

import "net/netip"

// SetStale says whether what is known here is too old to tell by an address who calls.
// While it is, no Lookup by one finds anybody.
func (x *Index) SetStale(stale bool) {
	x.stale.Store(stale)
	x.version.Add(1)
}

// Self is the pod that has one of the addresses own, nil if none is known to.
func (x *Index) Self(own []netip.Addr) *Pod {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.self(own)
}

// self needs mu.
func (x *Index) self(own []netip.Addr) *Pod {
	for _, a := range own {
		if p, _ := x.owner(a, x.addresses[a]); p != nil {
			return p
		}
	}
	return nil
}

// Replicas are addresses of the pods, one of each, that have namespace and ServiceAccount in
// common with the pod that has one of the addresses own, and of no other pod.
func (x *Index) Replicas(own []netip.Addr) (addresses []netip.Addr) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	self := x.self(own)
	if self == nil {
		return nil
	}
	for _, p := range x.pods {
		if p.UID != self.UID && p.accountKey() == self.accountKey() && p.hasOwnAddresses() && len(p.Addresses) > 0 {
			addresses = append(addresses, p.Addresses[0])
		}
	}
	return addresses
}
