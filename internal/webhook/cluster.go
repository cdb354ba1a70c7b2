package webhook

import (
	"context"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	k8smetadata "k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"github.com/iam4kube/iam4kube/internal/kube"
	"github.com/iam4kube/iam4kube/internal/webhook/inject"
)

// podSecurityLabel is what Pod Security admission enforces in a namespace.
const podSecurityLabel = "pod-security.kubernetes.io/enforce"

// cluster is what the API server has told, kept so that no review has to ask.
type cluster struct {
	mu      sync.RWMutex
	service *inject.Service // nil before the first list
	// levels are the namespaces whose Pod Security level forbids NET_ADMIN.
	levels map[string]string
}

// Service is where pods' requests are to go.
func (c *cluster) Service() inject.Service {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.service == nil {
		return inject.Unknown()
	}
	return *c.service
}

// Level is the namespace's Pod Security level if that forbids the injected container, else
// empty.
func (c *cluster) Level(namespace string) string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.levels[namespace]
}

// services is the one Service.
func (c *cluster) services(client rest.Interface, namespace, name string) kube.Resource[*corev1.Service, inject.Service] {
	get := func(options metav1.ListOptions) *rest.Request {
		return client.Get().Namespace(namespace).Resource("services").VersionedParams(&options, metav1.ParameterCodec)
	}
	return kube.Resource[*corev1.Service, inject.Service]{
		Name: "services",
		Selector: func(options *metav1.ListOptions) {
			// RBAC takes it for the name that the Role allows.
			options.FieldSelector = fields.OneTermEqualSelector("metadata.name", name).String()
		},
		List: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			list := &corev1.ServiceList{}
			return list, get(options).Do(ctx).Into(list)
		},
		Watch: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.Watch = true
			return get(options).Watch(ctx)
		},
		Keep: inject.ServiceOf,
		Sink: serviceSink{c, inject.Missing(namespace, name)},
	}
}

type serviceSink struct {
	*cluster
	missing inject.Service
}

// Replace implements kube.Sink.
func (s serviceSink) Replace(all []inject.Service) { s.Set(append(all, s.missing)[0]) }

// Set implements kube.Sink.
func (s serviceSink) Set(service inject.Service) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.service = &service
}

// Delete implements kube.Sink.
func (s serviceSink) Delete(inject.Service) { s.Set(s.missing) }

// namespace is what is kept of one.
type namespace struct{ name, level string }

func (c *cluster) namespaces(client k8smetadata.Interface) kube.Resource[*metav1.PartialObjectMetadata, namespace] {
	namespaces := client.Resource(corev1.SchemeGroupVersion.WithResource("namespaces"))
	return kube.Resource[*metav1.PartialObjectMetadata, namespace]{
		Name: "namespaces",
		// A warning less is better than a replica less.
		Optional: true,
		Selector: func(*metav1.ListOptions) {},
		List: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return namespaces.List(ctx, options)
		},
		Watch: namespaces.Watch,
		Keep: func(n *metav1.PartialObjectMetadata) namespace {
			return namespace{n.Name, n.Labels[podSecurityLabel]}
		},
		Sink: levelSink{c},
	}
}

type levelSink struct{ *cluster }

// Replace implements kube.Sink.
func (s levelSink) Replace(all []namespace) {
	s.mu.Lock()
	s.levels = map[string]string{}
	s.mu.Unlock()
	for _, n := range all {
		s.Set(n)
	}
}

// Set implements kube.Sink.
func (s levelSink) Set(n namespace) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n.level == "baseline" || n.level == "restricted" {
		s.levels[n.name] = n.level
	} else {
		delete(s.levels, n.name)
	}
}

// Delete implements kube.Sink.
func (s levelSink) Delete(n namespace) { s.Set(namespace{name: n.name}) }
