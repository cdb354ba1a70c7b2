package webhook

import (
	"context"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"

	"github.com/iam4kube/iam4kube/internal/kube"
	"github.com/iam4kube/iam4kube/internal/webhook/inject"
)

// cluster is what the API server has told, kept so that no review has to ask.
type cluster struct {
	mu      sync.RWMutex
	service *inject.Service // nil before the first list
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
