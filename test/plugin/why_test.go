package plugin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/fakests"
)

// workload is a pod with a ServiceAccount of its name, in a namespace of its own.
type workload struct {
	namespace, name string
	labels          map[string]string // of the namespace, which gets them after the pod
	annotations     map[string]string // of the namespace
	account         map[string]string // annotations of the ServiceAccount; nil: there is none
	pod             corev1.Pod
	address         netip.Addr
}

// healthy is a workload on a node with ip2service.
func healthy() *workload {
	w := &workload{name: "orders-0", account: map[string]string{role.AnnotationARN: env.NewRole()}, address: env.Address()}
	w.pod.Spec = corev1.PodSpec{NodeName: "worker-1", ServiceAccountName: "orders", Containers: []corev1.Container{{Name: "app", Image: "registry.invalid/app:1"}}}
	return w
}

// injected is a workload with the init container.
func injected(t *testing.T) *workload {
	t.Helper()
	service, err := env.Client.CoreV1().Services(own).Get(t.Context(), "iam4kube", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w := healthy()
	w.labels = map[string]string{"iam4kube.io/inject": "enabled"}
	w.pod.Spec.InitContainers = []corev1.Container{{
		Name: "iam4kube-ip2service", Image: "registry.invalid/iam4kube/ip2service-init:latest",
		Args: []string{"--mode", "pod", "--to", service.Spec.ClusterIP + ":80", "--pod-ips", "$(POD_IPS)"},
	}}
	return w
}

// create makes the workload's objects, which go with the test.
func (w *workload) create(t *testing.T, s *setup) *corev1.Pod {
	t.Helper()
	namespace, err := env.Client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "shop-", Annotations: w.annotations}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w.namespace = namespace.Name
	if w.account != nil {
		if err := env.CreateServiceAccount(t.Context(), controlplane.ServiceAccount{Namespace: w.namespace, Name: w.pod.Spec.ServiceAccountName, Annotations: w.account}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { // or the servers would go on about its role
			if err := env.Client.CoreV1().ServiceAccounts(w.namespace).Delete(context.Background(), w.pod.Spec.ServiceAccountName, metav1.DeleteOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	w.pod.Namespace, w.pod.Name = w.namespace, w.name
	created := s.createPod(t, &w.pod, w.address.String())
	w.label(t.Context(), t, w.labels)
	t.Cleanup(func() { w.label(context.Background(), t, nil) })
	return created
}

// label replaces the labels of the namespace.
func (w *workload) label(ctx context.Context, t *testing.T, labels map[string]string) {
	t.Helper()
	namespaces := env.Client.CoreV1().Namespaces()
	namespace, err := namespaces.Get(ctx, w.namespace, metav1.GetOptions{})
	if err == nil {
		namespace.Labels = labels
		_, err = namespaces.Update(ctx, namespace, metav1.UpdateOptions{})
	}
	if err != nil {
		t.Error(err)
	}
}

// ready waits until every server has an answer for the workload.
func (w *workload) ready(t *testing.T, s *setup, want int) {
	t.Helper()
	for _, r := range s.servers {
		environment.Eventually(t, within, func() error {
			status, body := r.ask(t, w.address, "/iam4kube/ready?wait=5s")
			if status != want {
				return fmt.Errorf("%d %s", status, body)
			}
			return nil
		})
	}
}

func (w *workload) why(t *testing.T) answer {
	t.Helper()
	return plugin(t, env.ControlPlane.Config(), "why", "pod/"+w.name, "-n", w.namespace)
}

// A pod that works is followed to its key, which is that of its last answer.
func TestWhyHealthy(t *testing.T) {
	s := install(t)
	for name, w := range map[string]*workload{"node-wide": healthy(), "injected": injected(t)} {
		t.Run(name, func(t *testing.T) {
			w.create(t, s)
			w.ready(t, s, http.StatusNoContent)
			arn := w.account[role.AnnotationARN]
			a := w.why(t)
			if a.status != 0 || a.Broken != "" || a.of("hand-out").State != "warning" || a.of("hand-out").Piece != "not-asked" {
				t.Errorf("before the pod has asked: %d, %s", a.status, a.text)
			}
			_, body := s.servers[1].ask(t, w.address, rolesPath+arn[strings.LastIndex(arn, "/")+1:])
			a = w.why(t)
			if a.status != 0 || a.Broken != "" || a.Role == nil || a.Role.ARN != arn || a.Role.SessionName != w.namespace+"@orders" ||
				a.Role.AccessKeyID == "" || !strings.Contains(body, `"`+a.Role.AccessKeyID+`"`) {
				t.Errorf("%d, %s\nafter the answer\n%s", a.status, a.text, body)
			}
			for _, l := range a.Links {
				if l.State != "ok" {
					t.Errorf("%+v", l)
				}
			}
		})
	}
}

// status changes what the kubelet says of a pod.
func status(t *testing.T, p *corev1.Pod, change func(*corev1.PodStatus)) {
	t.Helper()
	status := p.Status.DeepCopy()
	change(status)
	if _, err := env.SetPodStatus(t.Context(), p, *status); err != nil {
		t.Fatal(err)
	}
}

// initStatus is what the kubelet says of the first init container.
func initStatus(t *testing.T, p *corev1.Pod, state corev1.ContainerState) {
	t.Helper()
	status(t, p, func(s *corev1.PodStatus) {
		s.Phase = corev1.PodPending
		s.InitContainerStatuses[0].State, s.InitContainerStatuses[0].Ready = state, false
	})
}

// token is what the webhook gives a container for one.
var token = []corev1.EnvVar{
	{Name: "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", Value: "/var/run/secrets/iam4kube.io/serviceaccount/token"},
	{Name: "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", Value: "/v1/credentials"},
}

// broken are set-ups of one pod. The link is where the chain ends.
var broken = []struct {
	name, piece, link string
	with              func(t *testing.T, w *workload)
	after             func(t *testing.T, s *setup, w *workload, p *corev1.Pod)
	injected          bool
	says              string
}{
	{name: "pod has ended", piece: "pod-ended", link: "pod", after: func(t *testing.T, _ *setup, _ *workload, p *corev1.Pod) {
		t.Helper()
		status(t, p, func(s *corev1.PodStatus) { s.Phase = corev1.PodSucceeded })
	}},
	{name: "pod is on no node", piece: "pod-pending", link: "pod", with: func(_ *testing.T, w *workload) { w.pod.Spec.NodeName = "" }},
	{name: "pod has no address", piece: "pod-pending", link: "address", after: func(t *testing.T, _ *setup, _ *workload, p *corev1.Pod) {
		t.Helper()
		status(t, p, func(s *corev1.PodStatus) { s.PodIP, s.PodIPs, s.Phase = "", nil, corev1.PodPending })
	}},
	{name: "node without ip2service", piece: "not-routed", link: "routing", with: func(_ *testing.T, w *workload) { w.pod.Spec.NodeName = "worker-3" }},
	{name: "node of the server", piece: "server-node", link: "routing", with: func(_ *testing.T, w *workload) { w.pod.Spec.NodeName = "server-1" }},
	{name: "pod is older than the label", piece: "not-injected", link: "routing", with: func(_ *testing.T, w *workload) {
		w.pod.Spec.NodeName, w.labels = "worker-3", map[string]string{"iam4kube.io/inject": "enabled"}
	}},
	{name: "Service was made anew", piece: "old-address", link: "routing", injected: true, with: func(_ *testing.T, w *workload) {
		w.pod.Spec.InitContainers[0].Args[3] = "10.96.254.254:80"
	}},
	{name: "another init container is first", piece: "not-first", link: "routing", injected: true, with: func(_ *testing.T, w *workload) {
		w.pod.Spec.InitContainers = append([]corev1.Container{{Name: "mesh", Image: "registry.invalid/mesh:1"}}, w.pod.Spec.InitContainers...)
	}},
	{name: "init container failed", piece: "init-failed", link: "init container", injected: true, says: "the server saw the address", after: func(t *testing.T, _ *setup, _ *workload, p *corev1.Pod) {
		t.Helper()
		initStatus(t, p, corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 113, Message: "ip2service: the server saw the address 10.0.0.1, which is none of this pod's\n"}})
	}},
	{name: "image cannot be pulled", piece: "init-image", link: "init container", injected: true, after: func(t *testing.T, _ *setup, _ *workload, p *corev1.Pod) {
		t.Helper()
		initStatus(t, p, corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "not found"}})
	}},
	{name: "init container still probes", piece: "init-running", link: "init container", injected: true, after: func(t *testing.T, _ *setup, _ *workload, p *corev1.Pod) {
		t.Helper()
		initStatus(t, p, corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}})
	}},
	{name: "host's network", piece: "node-address", link: "routing", with: func(_ *testing.T, w *workload) { w.pod.Spec.HostNetwork = true }},
	{name: "namespace insists on tokens", piece: "token-required", link: "token", with: func(_ *testing.T, w *workload) {
		w.labels = map[string]string{"iam4kube.io/identity": "token"}
	}},
	{name: "pod is older than the token's label", piece: "no-token", link: "token", with: func(_ *testing.T, w *workload) {
		w.labels = map[string]string{"iam4kube.io/token": "enabled"}
	}},
	{name: "two pods on one address", piece: "single-pod", link: "address", after: func(t *testing.T, s *setup, w *workload, _ *corev1.Pod) {
		t.Helper()
		other := *w.pod.DeepCopy()
		other.Name = "orders-1"
		s.createPod(t, &other, w.address.String())
		w.ready(t, s, http.StatusServiceUnavailable)
	}},
	{name: "no ServiceAccount", piece: "service-account", link: "ServiceAccount", with: func(_ *testing.T, w *workload) { w.account = nil }},
	{name: "no annotation", piece: "role-annotation", link: "annotation", with: func(_ *testing.T, w *workload) { w.account = map[string]string{} }},
	{name: "annotation of another system", piece: "role-annotation", link: "annotation", says: "eks.amazonaws.com/role-arn", with: func(_ *testing.T, w *workload) {
		w.account = map[string]string{"eks.amazonaws.com/role-arn": env.NewRole()}
	}},
	{name: "no ARN", piece: "bad-annotation", link: "annotation", with: func(_ *testing.T, w *workload) { w.account[role.AnnotationARN] = "orders" }},
	{name: "wrong duration", piece: "bad-annotation", link: "annotation", says: role.AnnotationDuration, with: func(_ *testing.T, w *workload) { w.account[role.AnnotationDuration] = "1h" }},
	{name: "external ID that is none", piece: "bad-annotation", link: "annotation", says: role.AnnotationExternalID, with: func(_ *testing.T, w *workload) { w.account[role.AnnotationExternalID] = "?" }},
	{name: "role is not on the namespace's list", piece: "not-allowed", link: "allowed", with: func(_ *testing.T, w *workload) {
		w.annotations = map[string]string{role.AnnotationAllowed: "arn:aws:iam::123456789012:role/other"}
	}},
	{name: "trust policy refuses", piece: "denied", link: "STS", says: "AccessDenied", with: func(_ *testing.T, w *workload) {
		w.account[role.AnnotationARN] = env.NewRole(func(r *fakests.Role) { r.Trust.Principals = []string{"arn:aws:iam::999988887777:user/other"} })
	}, after: denied},
	{name: "wrong external ID", piece: "denied", link: "STS", says: "external ID 7Qx-wrong", with: func(_ *testing.T, w *workload) {
		w.account[role.AnnotationARN] = env.NewRole(func(r *fakests.Role) { r.Trust.ExternalID = "7Qx" })
		w.account[role.AnnotationExternalID] = "7Qx-wrong"
	}, after: denied},
	{name: "STS fails", piece: "credentials", link: "STS", says: "ServiceUnavailable", with: func(_ *testing.T, w *workload) {
		env.STS.SetFault(w.account[role.AnnotationARN], fakests.Fault{Effect: fakests.ServiceUnavailable})
	}, after: func(t *testing.T, s *setup, _ *workload, _ *corev1.Pod) {
		t.Helper()
		for _, r := range s.servers {
			environment.Eventually(t, within, func() error {
				if r.Metric(t, "iam4kube_roles", "state", "unavailable") == 0 {
					return errors.New("no failure yet")
				}
				return nil
			})
		}
	}},
	// Those that work for some clients, and surprise.
	{name: "key of the container's own", piece: "own-credentials", link: "token", says: "AWS_ACCESS_KEY_ID", with: func(_ *testing.T, w *workload) {
		w.pod.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "AWS_ACCESS_KEY_ID", Value: "AKIA"}}
	}, after: given},
	{name: "client told not to ask", piece: "own-credentials", link: "token", says: "AWS_EC2_METADATA_DISABLED", with: func(_ *testing.T, w *workload) {
		w.pod.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "AWS_EC2_METADATA_DISABLED", Value: "true"}}
	}, after: given},
	{name: "IRSA's token, too", piece: "own-credentials", link: "token", says: "AWS_WEB_IDENTITY_TOKEN_FILE", with: func(_ *testing.T, w *workload) {
		w.pod.Spec.Containers[0].Env = append([]corev1.EnvVar{{Name: "AWS_WEB_IDENTITY_TOKEN_FILE", Value: "/token"}}, token...)
	}, after: given},
}

func given(t *testing.T, s *setup, w *workload, _ *corev1.Pod) {
	t.Helper()
	w.ready(t, s, http.StatusNoContent)
}

func denied(t *testing.T, s *setup, w *workload, _ *corev1.Pod) {
	t.Helper()
	w.ready(t, s, http.StatusForbidden)
}

// Each broken set-up is named, at its link, with what it says and where to read on, and
// nothing before it.
func TestWhyBroken(t *testing.T) { //nolint:tparallel // one set-up at a time, with many pods
	s := install(t)
	s.kubelet.node(t, "worker-3", nil)
	for _, tc := range broken {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w := healthy()
			if tc.injected {
				w = injected(t)
			}
			if tc.with != nil {
				tc.with(t, w)
			}
			p := w.create(t, s)
			if tc.after != nil {
				tc.after(t, s, w, p)
			}
			var a answer
			environment.Eventually(t, within, func() error { // a moment until both servers have heard
				a = w.why(t)
				if l := a.of(tc.link); l.Piece != tc.piece || !strings.Contains(l.Text, tc.says) {
					return errors.New(a.text)
				}
				return nil
			})
			wantStatus, wantBroken := 1, tc.piece
			if a.of(tc.link).State == "warning" {
				wantStatus, wantBroken = 0, ""
			}
			if a.status != wantStatus || a.Broken != wantBroken || !strings.HasPrefix(a.of(tc.link).Docs, "https://") {
				t.Errorf("status %d, want %d: %s", a.status, wantStatus, a.text)
			}
			for _, l := range a.Links {
				if l.Link == tc.link {
					break
				}
				if l.State != "ok" {
					t.Errorf("before it: %+v", l)
				}
			}
		})
	}
	t.Run("pod that is refused", func(t *testing.T) {
		const says = `pods "orders-7d9f-" is forbidden: violates PodSecurity "baseline:latest"`
		_, err := env.Client.CoreV1().Events("default").Create(t.Context(), &corev1.Event{
			ObjectMeta: metav1.ObjectMeta{Name: "orders"}, Reason: "FailedCreate", Message: says,
			InvolvedObject: corev1.ObjectReference{Kind: "ReplicaSet", Namespace: "default", Name: "orders-7d9f"},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if a := (&workload{namespace: "default", name: "orders-7d9f-abcde"}).why(t); a.status != 1 || a.Broken != "not-created" || !strings.Contains(a.of("pod").Text, says) {
			t.Errorf("%d: %s", a.status, a.text)
		}
	})
	t.Run("no pod", func(t *testing.T) {
		if a := (&workload{namespace: "default", name: "nobody"}).why(t); a.status != 1 || a.Broken != "no-pod" {
			t.Errorf("%d: %s", a.status, a.text)
		}
	})
}
