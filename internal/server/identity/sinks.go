package identity

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/metadata"

	"github.com/iam4kube/iam4kube/internal/kube"
)

// Pods follows the pods of the cluster. Pods that have ended are left out by the
// API server; hostNetwork pods are not, because they too tell which addresses are
// nodes'.
func (x *Index) Pods(pods kube.Pods) kube.Resource[*corev1.Pod, *Pod] {
	running := fields.AndSelectors(
		fields.OneTermNotEqualSelector("status.phase", string(corev1.PodSucceeded)),
		fields.OneTermNotEqualSelector("status.phase", string(corev1.PodFailed)),
	).String()
	return kube.Resource[*corev1.Pod, *Pod]{
		Name:     "pods",
		Selector: func(o *metav1.ListOptions) { o.FieldSelector = running },
		List:     func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return pods.List(ctx, o) },
		Watch:    func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) { return pods.Watch(ctx, o) },
		Keep:     func(p *corev1.Pod) *Pod { return x.known(keepPod(p)) },
		Sink:     podSink{x},
	}
}

// ServiceAccounts follows the metadata of the cluster's ServiceAccounts.
func (x *Index) ServiceAccounts(client metadata.Interface) kube.Resource[*metav1.PartialObjectMetadata, *ServiceAccount] {
	all := client.Resource(corev1.SchemeGroupVersion.WithResource("serviceaccounts"))
	return kube.Resource[*metav1.PartialObjectMetadata, *ServiceAccount]{
		Name:     "serviceaccounts",
		Selector: func(*metav1.ListOptions) {},
		List:     func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return all.List(ctx, o) },
		Watch:    func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) { return all.Watch(ctx, o) },
		Keep:     x.keepServiceAccount,
		Sink:     accountSink{x},
	}
}

// Namespaces follows the metadata of the cluster's namespaces.
func (x *Index) Namespaces(client metadata.Interface) kube.Resource[*metav1.PartialObjectMetadata, *Namespace] {
	all := client.Resource(corev1.SchemeGroupVersion.WithResource("namespaces"))
	return kube.Resource[*metav1.PartialObjectMetadata, *Namespace]{
		Name:     "namespaces",
		Selector: func(*metav1.ListOptions) {},
		List:     func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return all.List(ctx, o) },
		Watch:    func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) { return all.Watch(ctx, o) },
		Keep:     keepNamespace,
		Sink:     namespaceSink{x},
	}
}

// Nodes follows the cluster's nodes. Their metadata would not do: the ranges of pods'
// addresses are in the spec.
func (x *Index) Nodes(nodes kube.Nodes) kube.Resource[*corev1.Node, *Node] {
	return kube.Resource[*corev1.Node, *Node]{
		Name:     "nodes",
		Selector: func(*metav1.ListOptions) {},
		List:     func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return nodes.List(ctx, o) },
		Watch:    func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) { return nodes.Watch(ctx, o) },
		Keep:     keepNode,
		Sink:     nodeSink{x},
	}
}

// known returns the state that the index has of the pod if p is no other: while all pods
// are listed again, there is then no second copy of them.
func (x *Index) known(p *Pod) *Pod {
	x.changes.Lock()
	defer x.changes.Unlock()
	if old := x.pods[p.key()]; old != nil && old.same(p) {
		return old
	}
	return p
}

type podSink struct{ *Index }

func (s podSink) Set(p *Pod) {
	s.take(func() []transition { return s.set(p) })
}

func (s podSink) Delete(p *Pod) {
	s.take(func() []transition {
		if before := s.pods[p.key()]; before != nil {
			return []transition{{before: before}}
		}
		return nil
	})
}

func (s podSink) Replace(pods []*Pod) {
	s.take(func() []transition { return s.replace(pods) })
	s.change(func() []any {
		s.listed = true
		return nil
	})
}

// take applies transitions, and then wakes who waits on one of their addresses.
func (s podSink) take(transitions func() []transition) {
	var all []transition
	s.change(func() []any {
		all = transitions()
		s.apply(all)
		return nil
	})
	for _, t := range all {
		for a := range t.addresses() {
			s.hub.Wake(a)
		}
		s.hub.Wake(podKey(t.key()))
	}
}

type accountSink struct{ *Index }

func (s accountSink) Set(a *ServiceAccount) {
	s.change(func() []any {
		s.setAccount(a)
		return []any{a.key()}
	})
}

func (s accountSink) Delete(a *ServiceAccount) {
	s.change(func() []any {
		s.removeAccount(a.key())
		return []any{a.key()}
	})
}

func (s accountSink) Replace(accounts []*ServiceAccount) {
	s.change(func() (keys []any) {
		present := make(map[types.NamespacedName]struct{}, len(accounts))
		for _, a := range accounts {
			present[a.key()] = struct{}{}
			s.setAccount(a)
			keys = append(keys, a.key())
		}
		for key, a := range s.accounts {
			if _, ok := present[key]; !ok && a.exists {
				s.removeAccount(key)
				keys = append(keys, key)
			}
		}
		return keys
	})
}

type nodeSink struct{ *Index }

func (s nodeSink) Set(n *Node) {
	s.change(func() []any {
		s.publish(func() { s.setNode(*n) })
		return nil
	})
}

func (s nodeSink) Delete(n *Node) {
	s.change(func() []any {
		s.publish(func() { s.removeNode(n.Name) })
		return nil
	})
}

func (s nodeSink) Replace(nodes []*Node) {
	s.change(func() []any {
		present := make(map[string]struct{}, len(nodes))
		for _, n := range nodes {
			present[n.Name] = struct{}{}
		}
		for some := range slices.Chunk(nodes, atOnce) {
			s.publish(func() {
				for _, n := range some {
					s.setNode(*n)
				}
			})
		}
		for name := range s.nodes {
			if _, ok := present[name]; !ok {
				s.publish(func() { s.removeNode(name) })
			}
		}
		s.publish(func() { s.nodesListed = true })
		return nil
	})
}
