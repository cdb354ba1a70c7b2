package manifests

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestNoServiceHasAnAddressOfOurs: what component service-addresses refuses.
func TestNoServiceHasAnAddressOfOurs(t *testing.T) {
	if err := apply(t.Context(), mustBuild(t, withComponents(t, "both", "service-addresses"))); err != nil {
		t.Fatal(err)
	}
	address := func(name string) string {
		service, err := cp.Client.CoreV1().Services(own).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return service.Spec.ClusterIP
	}
	ours, webhook := address("iam4kube"), address("iam4kube-webhook")
	namespace := newNamespace(t, nil)
	services := cp.Client.CoreV1().Services(namespace)
	dryRun := []string{metav1.DryRunAll}
	wantRefused := func(t *testing.T, refused bool, try func() error) {
		t.Helper()
		eventually(t, func() error { // until the policy is in effect
			err := try()
			if have := err != nil && strings.Contains(err.Error(), "iam4kube-service-addresses"); have != refused || !have && err != nil || have && !apierrors.IsForbidden(err) {
				return fmt.Errorf("want refused: %v: %w", refused, err)
			}
			return nil
		})
	}
	service := func(change func(*corev1.ServiceSpec)) *corev1.Service {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "app"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}
		change(&s.Spec)
		return s
	}
	for name, tc := range map[string]struct {
		change  func(*corev1.ServiceSpec)
		refused bool
	}{
		"none":                     {func(*corev1.ServiceSpec) {}, false},
		"another":                  {func(s *corev1.ServiceSpec) { s.ExternalIPs = []string{"203.0.113.9"} }, false},
		"the server's":             {func(s *corev1.ServiceSpec) { s.ExternalIPs = []string{"203.0.113.9", ours} }, true},
		"the webhook's":            {func(s *corev1.ServiceSpec) { s.ExternalIPs = []string{webhook} }, true},
		"the metadata service's":   {func(s *corev1.ServiceSpec) { s.ExternalIPs = []string{"fd00:ec2::254"} }, true},
		"wanted of a provider":     {func(s *corev1.ServiceSpec) { s.Type, s.LoadBalancerIP = corev1.ServiceTypeLoadBalancer, ours }, true},
		"another of a provider":    {func(s *corev1.ServiceSpec) { s.Type, s.LoadBalancerIP = corev1.ServiceTypeLoadBalancer, "203.0.113.9" }, false},
		"a load balancer's, later": {func(s *corev1.ServiceSpec) { s.Type = corev1.ServiceTypeLoadBalancer }, false},
	} {
		t.Run(name, func(t *testing.T) {
			wantRefused(t, tc.refused, func() error {
				_, err := services.Create(t.Context(), service(tc.change), metav1.CreateOptions{DryRun: dryRun})
				return err
			})
		})
	}
	created, err := services.Create(t.Context(), service(func(s *corev1.ServiceSpec) { s.Type = corev1.ServiceTypeLoadBalancer }), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for address, refused := range map[string]bool{ours: true, "203.0.113.9": false} {
		changed := created.DeepCopy()
		changed.Spec.ExternalIPs = []string{address}
		wantRefused(t, refused, func() error {
			_, err := services.Update(t.Context(), changed, metav1.UpdateOptions{DryRun: dryRun})
			return err
		})
		changed = created.DeepCopy()
		changed.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: address}}
		wantRefused(t, refused, func() error {
			_, err := services.UpdateStatus(t.Context(), changed, metav1.UpdateOptions{DryRun: dryRun})
			return err
		})
	}
}
