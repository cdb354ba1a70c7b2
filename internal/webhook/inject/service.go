package inject

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// ipv6Alone says that nobody is led there by IPv4.
func (s Service) ipv6Alone() bool {
	return !slices.ContainsFunc(s.To, func(a netip.AddrPort) bool { return a.Addr().Is4() })
}

// ServiceOf reads where a Service leads.
func ServiceOf(s *corev1.Service) Service {
	name := s.Namespace + "/" + s.Name
	port := port(s.Spec.Ports)
	if port == 0 {
		return Service{Reason: NoPort, Problem: fmt.Sprintf(
			"the Service %s has neither a TCP port named http nor a single one: name the port of the metadata API http", name)}
	}
	var to []netip.AddrPort
	for _, text := range s.Spec.ClusterIPs {
		if ip, err := netip.ParseAddr(text); err == nil { // not None
			to = append(to, netip.AddrPortFrom(ip, port))
		}
	}
	if len(to) == 0 {
		return Service{Reason: Headless, Problem: fmt.Sprintf(
			"the Service %s has no ClusterIP, which pods' requests could be led to (it is headless, or of type ExternalName): delete it and create it with type ClusterIP and without clusterIP: None", name)}
	}
	return Service{To: to}
}

// port is the number of the port named http, or of the only one; 0 if there is neither.
func port(ports []corev1.ServicePort) uint16 {
	var tcp []corev1.ServicePort
	for _, p := range ports {
		if p.Protocol != "" && p.Protocol != corev1.ProtocolTCP {
			continue
		}
		if p.Name == "http" {
			return uint16(p.Port)
		}
		tcp = append(tcp, p)
	}
	if len(tcp) == 1 {
		return uint16(tcp[0].Port)
	}
	return 0
}

// Missing is that there is no such Service.
func Missing(namespace, name string) Service {
	return Service{Reason: NoService, Problem: fmt.Sprintf(
		"the Service %s/%s, which pods' requests are to be led to, does not exist: create it (manifests/namespace), or name another one by the webhook's flags --service-namespace and --service-name", namespace, name)}
}

// Unknown is that the API server has not told yet.
func Unknown() Service {
	return Service{Reason: NotSynced, Problem: "iam4kube's webhook has just started and has not seen its Service yet: try again"}
}
