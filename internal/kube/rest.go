package kube

import (
	"fmt"
	"net/http"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
)

// RESTClient is a client for the kinds of one API group, which add tells a scheme of.
// client-go's clientset, which knows all of them, would make a program twice as large, and most of
// a program stays in memory.
func RESTClient(config *rest.Config, client *http.Client, group schema.GroupVersion, add func(*runtime.Scheme) error) (rest.Interface, error) {
	codecs, err := Codecs(add)
	if err != nil {
		return nil, err
	}
	config = rest.CopyConfig(config)
	config.APIPath, config.GroupVersion = "/apis", &group
	if group.Group == "" {
		config.APIPath = "/api"
	}
	config.NegotiatedSerializer = codecs
	c, err := rest.RESTClientForConfigAndClient(config, client)
	if err != nil {
		return nil, fmt.Errorf("make a client for the API server: %w", err)
	}
	return c, nil
}

// Codecs are those of the kinds that add tells a scheme of.
func Codecs(add func(*runtime.Scheme) error) (runtime.NegotiatedSerializer, error) {
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	if err := add(scheme); err != nil {
		return nil, err
	}
	return serializer.NewCodecFactory(scheme).WithoutConversion(), nil
}
