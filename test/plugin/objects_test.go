package plugin

import (
	"context"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/util/retry"
)

// Resources that tests change.
var (
	deployments     = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}
	daemonSets      = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "daemonsets"}
	services        = schema.GroupVersionResource{Version: "v1", Resource: "services"}
	accounts        = schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}
	configMaps      = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	nodes           = schema.GroupVersionResource{Version: "v1", Resource: "nodes"}
	pods            = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	quotas          = schema.GroupVersionResource{Version: "v1", Resource: "resourcequotas"}
	budgets         = schema.GroupVersionResource{Group: "policy", Version: "v1", Resource: "poddisruptionbudgets"}
	networkPolicies = schema.GroupVersionResource{Group: "networking.k8s.io", Version: "v1", Resource: "networkpolicies"}
	issuers         = schema.GroupVersionResource{Group: "cert-manager.io", Version: "v1", Resource: "issuers"}
	certificates    = schema.GroupVersionResource{Group: "cert-manager.io", Version: "v1", Resource: "certificates"}
	configurations  = schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "mutatingwebhookconfigurations"}
	policies        = schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingadmissionpolicies"}
	bindings        = schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingadmissionpolicybindings"}
	clusterRoles    = schema.GroupVersionResource{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterroles"}
	clusterBinds    = schema.GroupVersionResource{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterrolebindings"}
	roles           = schema.GroupVersionResource{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "roles"}
	roleBindings    = schema.GroupVersionResource{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "rolebindings"}
)

// object names one, or a subresource of it.
type object struct {
	resource                     schema.GroupVersionResource
	namespace, name, subresource string
}

func (s *setup) of(o object) dynamic.ResourceInterface {
	if o.namespace == "" {
		return s.client.Resource(o.resource)
	}
	return s.client.Resource(o.resource).Namespace(o.namespace)
}

// edit changes an object until the test ends, and then sets it back.
func (s *setup) edit(t *testing.T, o object, change func(map[string]any)) {
	t.Helper()
	var before map[string]any
	update := func(ctx context.Context, change func(map[string]any)) error {
		return retry.RetryOnConflict(retry.DefaultRetry, func() error {
			now, err := s.of(o).Get(ctx, o.name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			if before == nil {
				before = now.DeepCopy().Object
			}
			change(now.Object)
			var subresources []string
			if o.subresource != "" {
				subresources = append(subresources, o.subresource)
			}
			_, err = s.of(o).Update(ctx, now, metav1.UpdateOptions{}, subresources...)
			return err
		})
	}
	if err := update(t.Context(), change); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := update(context.Background(), func(now map[string]any) {
			for _, part := range []string{"spec", "status", "webhooks", "rules", "subjects"} {
				if before[part] != nil {
					now[part] = before[part]
				}
			}
			now["metadata"].(map[string]any)["annotations"] = before["metadata"].(map[string]any)["annotations"]
		})
		if err != nil && !apierrors.IsNotFound(err) {
			t.Error(err)
		}
	})
}

// remove takes an object away until the test ends.
func (s *setup) remove(t *testing.T, o object) {
	t.Helper()
	before, err := s.of(o).Get(t.Context(), o.name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	now := int64(0)
	if err := s.of(o).Delete(t.Context(), o.name, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		again := before.DeepCopy()
		for _, field := range []string{"resourceVersion", "uid", "creationTimestamp", "managedFields", "generation"} {
			unstructured.RemoveNestedField(again.Object, "metadata", field)
		}
		created, err := s.of(o).Create(context.Background(), again, metav1.CreateOptions{})
		if err == nil && before.Object["status"] != nil {
			created.Object["status"] = before.Object["status"]
			_, err = s.of(o).UpdateStatus(context.Background(), created, metav1.UpdateOptions{})
		}
		if err != nil {
			t.Error(err)
		}
	})
}
