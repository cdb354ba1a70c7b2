package identity

import (
	"net/netip"
	"slices"
	"sync/atomic"
	"unique"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/iam4kube/iam4kube/internal/server/role"
)

// Pod is what is kept of a Kubernetes Pod. It does not change; an update of the
// pod is another Pod with the same Life.
type Pod struct {
	Namespace, Name string
	UID             types.UID
	ServiceAccount  string
	// Created is in seconds of Unix time.
	Created int64
	// Addresses are status.podIPs.
	Addresses []netip.Addr
	// Host is where it runs.
	Host Host
	// Terminating: deletion was asked for.
	Terminating bool
	// HostNetwork: its addresses are its node's.
	HostNetwork bool
	// Static: a kubelet's own pod. It has no ServiceAccount.
	Static bool
	// NamesRole: it has role.PodAnnotation, which is not read.
	NamesRole bool
	// Ended: no container of the pod can make a request any more.
	Ended bool

	// place is that in account.pods. It is here because it costs no memory here.
	place int32
	// account is the ServiceAccount's, set while the pod is filed.
	account *account
	Life    *Life
}

// Life is shared by all states of one pod, from its first to its last.
type Life struct {
	// Served is the AccessKeyID that the pod got last.
	Served atomic.Pointer[string]
	// Announced says that the pod appeared after this server's first full list.
	Announced bool
}

// key is what pods are filed under.
func (p *Pod) key() types.NamespacedName {
	return types.NamespacedName{Namespace: p.Namespace, Name: p.Name}
}

// accountKey is what the pod's account is filed under.
func (p *Pod) accountKey() types.NamespacedName {
	return types.NamespacedName{Namespace: p.Namespace, Name: p.ServiceAccount}
}

// hasOwnAddresses reports whether a request from the pod's addresses can be its own.
func (p *Pod) hasOwnAddresses() bool { return !p.HostNetwork && !p.Static && !p.Ended }

// same reports whether nothing that matters to a request has changed.
func (p *Pod) same(o *Pod) bool {
	return p.UID == o.UID && p.ServiceAccount == o.ServiceAccount && p.Host == o.Host &&
		p.Terminating == o.Terminating && p.HostNetwork == o.HostNetwork && p.Static == o.Static && p.Ended == o.Ended && p.NamesRole == o.NamesRole &&
		slices.Equal(p.Addresses, o.Addresses)
}

// PodAnnotations are those of pods that are looked at.
var PodAnnotations = []string{corev1.MirrorPodAnnotationKey, role.PodAnnotation}

// keepPod reduces a Pod of the API to what is used here.
func keepPod(p *corev1.Pod) *Pod {
	account := p.Spec.ServiceAccountName
	if account == "" {
		account = "default"
	}
	// A mirror pod has no ServiceAccount, and a kubelet may create one in any namespace: with
	// that namespace's default it could help itself to the role.
	_, static := p.Annotations[corev1.MirrorPodAnnotationKey]
	_, namesRole := p.Annotations[role.PodAnnotation]
	names := p.Name + string(p.UID) // one piece of memory takes less than two
	return &Pod{
		Namespace:      shared(p.Namespace),
		Name:           names[:len(p.Name)],
		UID:            types.UID(names[len(p.Name):]),
		ServiceAccount: shared(account),
		Created:        p.CreationTimestamp.Unix(),
		Addresses:      podAddresses(p),
		Host:           hostOf(p),
		Terminating:    p.DeletionTimestamp != nil,
		HostNetwork:    p.Spec.HostNetwork,
		Static:         static,
		NamesRole:      namesRole,
		Ended:          ended(p),
	}
}

// shared lets equal strings of many pods take their memory once.
func shared(s string) string { return unique.Make(s).Value() }

func podAddresses(p *corev1.Pod) []netip.Addr {
	var all []netip.Addr
	for _, ip := range p.Status.PodIPs {
		all = appendAddress(all, ip.IP)
	}
	return appendAddress(all, p.Status.PodIP)
}

func appendAddress(all []netip.Addr, s string) []netip.Addr {
	a, err := netip.ParseAddr(s)
	if a = a.Unmap().WithZone(""); err != nil || slices.Contains(all, a) {
		return all
	}
	return append(all, a)
}

// ended reports whether the pod can make no request any more. A terminating pod is alive
// until the kubelet has said of every container that it terminated: SIGTERM
// handlers still need credentials.
func ended(p *corev1.Pod) bool {
	if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return true
	}
	if p.DeletionTimestamp == nil || len(p.Status.ContainerStatuses) == 0 {
		return false
	}
	running := func(s corev1.ContainerStatus) bool { return s.State.Terminated == nil }
	return !slices.ContainsFunc(p.Status.ContainerStatuses, running) &&
		!slices.ContainsFunc(p.Status.InitContainerStatuses, running)
}
