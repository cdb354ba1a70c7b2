package kube

import (
	"context"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/gentype"
	"k8s.io/client-go/rest"
)

// Core gets at the kinds of the core group that are used here, with client-go's own methods.
type Core struct{ rest.Interface }

// NewCore returns a Core for config that sends its requests through client.
func NewCore(config *rest.Config, client *http.Client) (Core, error) {
	c, err := RESTClient(config, client, corev1.SchemeGroupVersion, corev1.AddToScheme)
	return Core{c}, err
}

// Objects are those of one kind in a namespace, or in all.
type Objects[T, L any] interface {
	Create(context.Context, T, metav1.CreateOptions) (T, error)
	Update(context.Context, T, metav1.UpdateOptions) (T, error)
	Get(context.Context, string, metav1.GetOptions) (T, error)
	List(context.Context, metav1.ListOptions) (L, error)
	Watch(context.Context, metav1.ListOptions) (watch.Interface, error)
}

// Pods are Objects.
type Pods = Objects[*corev1.Pod, *corev1.PodList]

// Nodes are Objects.
type Nodes = Objects[*corev1.Node, *corev1.NodeList]

// Secrets are Objects.
type Secrets = Objects[*corev1.Secret, *corev1.SecretList]

// Events are Objects.
type Events = Objects[*corev1.Event, *corev1.EventList]

// ServiceAccounts are Objects.
type ServiceAccounts = Objects[*corev1.ServiceAccount, *corev1.ServiceAccountList]

// Pods are those of all namespaces.
func (c Core) Pods() Pods {
	return gentype.NewClientWithList("pods", c.Interface, metav1.ParameterCodec, metav1.NamespaceAll,
		func() *corev1.Pod { return &corev1.Pod{} }, func() *corev1.PodList { return &corev1.PodList{} })
}

// Nodes are the cluster's.
func (c Core) Nodes() Nodes {
	return gentype.NewClientWithList("nodes", c.Interface, metav1.ParameterCodec, "",
		func() *corev1.Node { return &corev1.Node{} }, func() *corev1.NodeList { return &corev1.NodeList{} })
}

// Secrets are those of a namespace.
func (c Core) Secrets(namespace string) Secrets {
	return gentype.NewClientWithList("secrets", c.Interface, metav1.ParameterCodec, namespace,
		func() *corev1.Secret { return &corev1.Secret{} }, func() *corev1.SecretList { return &corev1.SecretList{} })
}

// Events are those of a namespace.
func (c Core) Events(namespace string) Events {
	return gentype.NewClientWithList("events", c.Interface, metav1.ParameterCodec, namespace,
		func() *corev1.Event { return &corev1.Event{} }, func() *corev1.EventList { return &corev1.EventList{} })
}

// ServiceAccounts are those of a namespace.
func (c Core) ServiceAccounts(namespace string) ServiceAccounts {
	return gentype.NewClientWithList("serviceaccounts", c.Interface, metav1.ParameterCodec, namespace,
		func() *corev1.ServiceAccount { return &corev1.ServiceAccount{} }, func() *corev1.ServiceAccountList { return &corev1.ServiceAccountList{} })
}
