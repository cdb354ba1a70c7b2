//go:build e2e

package e2e

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A tenant's Service with the address of ours among its external ones is refused, and injected
// pods go on to get their own roles. The one that is tried leads nowhere.
func TestOthersServicesCannotTakeOurAddress(t *testing.T) {
	ns := namespace(t, inPod)
	services := client.CoreV1().Services(ns)
	with := func(name, address string) error {
		_, err := services.Create(t.Context(), &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec:       corev1.ServiceSpec{ExternalIPs: []string{address}, Ports: []corev1.ServicePort{{Port: 80}}},
		}, metav1.CreateOptions{})
		return err
	}
	if err := with("another", "203.0.113.9"); err != nil {
		t.Error(err)
	}
	if err := with("ours", service(t)); err == nil || !strings.Contains(err.Error(), "must not be an address of a Service in the namespace iam4kube") {
		t.Errorf("with our address: %v", err)
	}
	role(t, ns, "role-16")
	create(t, onWorker(clientPod(ns, "role-16", "once"), "worker-1"))
	pod := waitPod(t, ns, "role-16", ended)
	wantOwn(t, pod, "role-16", decode(t, logs(t, ns, pod.Name, "client")))
	wantNoLeaks(t)
}
