//go:build e2e

package e2e

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// containerAddresses are where AWS's SDKs ask for container credentials. The cluster's machine
// answers there to whatever gets past its nodes, as an agent of somebody else's would.
var containerAddresses = []string{"169.254.170.2", "169.254.170.23"}

// Three pods on the network of one node have one address: each gets its own role by its token,
// and none by the address.
func TestHostNetworkPodsProveThemselves(t *testing.T) {
	t.Parallel()
	t.Cleanup(func() { wantNoLeaks(t) })
	ns := namespace(t, onHost)
	for _, name := range []string{"role-15", "role-16", "role-17"} {
		role(t, ns, name)
		create(t, onWorker(onHost.of(clientPod(ns, name, "wait")), "worker-1"))
	}
	for _, name := range []string{"role-15", "role-16", "role-17"} {
		pod := waitPod(t, ns, name, running)
		if pod.Status.PodIP != pod.Status.HostIP {
			t.Errorf("%s has the address %s, its node %s", name, pod.Status.PodIP, pod.Status.HostIP)
		}
		wantByToken(t, pod)
		wantNothingWithoutToken(t, pod)
	}
}

// wantByToken runs an AWS SDK in a pod that waits: it has to get the pod's own role, by the
// protocol of container credentials.
func wantByToken(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	output, _ := kubectl(t.Context(), "", "--namespace="+pod.Namespace, "exec", pod.Name, "--container=client", "--", "/client", "sdk")
	wantProven(t, pod, decode(t, []byte(output)))
}

// wantProven checks what an SDK found in a pod.
func wantProven(t *testing.T, pod *corev1.Pod, a answer) {
	t.Helper()
	if a.Error != "" || a.Provider != "CredentialsEndpointProvider" {
		t.Errorf("%s/%s: %+v", pod.Namespace, pod.Name, a)
		return
	}
	if session, want := sessionOf(t, a.AccessKeyID), pod.Namespace+"@"+pod.Spec.ServiceAccountName; session != want {
		t.Errorf("%s/%s has credentials of session %q, want %q", pod.Namespace, pod.Name, session, want)
	}
}

func wantNothingWithoutToken(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	for _, address := range containerAddresses {
		output, err := kubectl(t.Context(), "", "--namespace="+pod.Namespace, "exec", pod.Name, "--container=client", "--",
			"/client", "get", "http://"+address+"/v1/credentials")
		if err != nil || !strings.Contains(output, "403 Forbidden") || !strings.Contains(output, `"code":"node-address"`) {
			t.Errorf("%s/%s without its token: %v: %s", pod.Namespace, pod.Name, err, output)
		}
	}
}
