package controlplane

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/iam4kube/iam4kube/test/netns"
)

// shared is the control plane of all tests, each of which uses a namespace of its own.
var shared *ControlPlane

// TestMain runs the tests where there is nothing but loopback, as the tests of the
// programs do that use 169.254.169.254.
func TestMain(m *testing.M) {
	if _, err := Build(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	netns.Main(m, func() int {
		var err error
		if shared, err = Start(context.Background(), Options{}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() {
			if err := shared.Stop(); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}()
		return m.Run()
	})
}

// newNamespace is a namespace named after the test.
func newNamespace(t *testing.T) string {
	t.Helper()
	name := strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name()))
	must(t, shared.CreateNamespace(t.Context(), name))
	return name
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func client(t *testing.T, config *rest.Config) *kubernetes.Clientset {
	t.Helper()
	clientset, err := kubernetes.NewForConfig(config)
	must(t, err)
	return clientset
}

const readsPods = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader, namespace: NAMESPACE}
---
# A comment alone is no object.
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: NAMESPACE}
rules: [{apiGroups: [""], resources: [pods], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: NAMESPACE}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: NAMESPACE}
subjects: [{kind: ServiceAccount, name: reader, namespace: NAMESPACE}]
`

// reader is the config of a ServiceAccount that may get pods and do nothing else.
func reader(t *testing.T, namespace string) *rest.Config {
	t.Helper()
	manifests := []byte(strings.ReplaceAll(readsPods, "NAMESPACE", namespace))
	must(t, shared.Apply(t.Context(), manifests))
	must(t, shared.Apply(t.Context(), manifests)) // applying twice is no error
	config, err := shared.ServiceAccountConfig(t.Context(), namespace, "reader")
	must(t, err)
	return config
}

func TestServiceAccountHasTheRightsOfItsManifests(t *testing.T) {
	namespace := newNamespace(t)
	config, err := clientcmd.BuildConfigFromFlags("", shared.Kubeconfig(t, reader(t, namespace)))
	must(t, err)
	pods := client(t, config).CoreV1().Pods(namespace)
	if _, err := pods.Get(t.Context(), "none", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("getting a pod, which is allowed: %v, want not found", err)
	}
	if _, err := pods.List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("listing pods, which no rule allows: %v, want forbidden", err)
	}
	if _, err := shared.ServiceAccountConfig(t.Context(), namespace, "nobody"); !apierrors.IsNotFound(err) {
		t.Errorf("a token for a ServiceAccount that is not there: %v, want not found", err)
	}
}

func TestAuditLogHasRequestsOfPrograms(t *testing.T) {
	namespace := newNamespace(t)
	_, _ = client(t, reader(t, namespace)).CoreV1().Pods(namespace).Get(t.Context(), "audited", metav1.GetOptions{})
	eventually(t, "the request in the audit log", func() bool {
		content, err := os.ReadFile(shared.AuditLog())
		must(t, err)
		if bytes.Contains(content, []byte(adminUser)) {
			t.Fatalf("a request of %s is in the audit log", adminUser)
		}
		for line := range bytes.Lines(content) {
			var event struct {
				Verb      string
				User      struct{ Username string }
				ObjectRef struct{ Resource, Namespace, Name string }
			}
			if json.Unmarshal(line, &event) != nil {
				continue // the line is being written
			}
			if event.User.Username == "system:serviceaccount:"+namespace+":reader" && event.Verb == "get" &&
				event.ObjectRef.Resource == "pods" && event.ObjectRef.Name == "audited" {
				return true
			}
		}
		return false
	})
}

func TestPodRunsAndTerminatesAsOnANode(t *testing.T) {
	namespace := newNamespace(t)
	must(t, shared.CreateServiceAccount(t.Context(), ServiceAccount{
		Namespace: namespace, Name: "app", Annotations: map[string]string{"example.com/a": "b"},
	}))
	must(t, shared.CreateNode(t.Context(), Node{Name: namespace, Zone: "eu-west-1a", Region: "eu-west-1", IP: "192.0.2.10"}))
	pod, err := shared.CreatePod(t.Context(), Pod{
		Namespace: namespace, Name: "app", ServiceAccount: "app", Node: namespace,
		IPs: []string{"10.244.0.1", "fd00::1"}, HostIPs: []string{"192.0.2.10"},
	})
	must(t, err)
	if pod.Status.Phase != corev1.PodRunning || len(pod.Status.PodIPs) != 2 || pod.Status.HostIP != "192.0.2.10" ||
		pod.Spec.ServiceAccountName != "app" || !pod.Status.ContainerStatuses[0].Ready {
		t.Errorf("the pod does not run as described: %+v", pod.Status)
	}
	must(t, shared.DeletePod(t.Context(), namespace, "app", 30*time.Second))
	terminating, err := shared.Client.CoreV1().Pods(namespace).Get(t.Context(), "app", metav1.GetOptions{})
	must(t, err)
	if terminating.DeletionTimestamp == nil {
		t.Error("a deleted pod on a node is not terminating")
	}
	must(t, shared.DeletePod(t.Context(), namespace, "app", 0))
	if _, err := shared.SetPodStatus(t.Context(), pod, pod.Status); !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		t.Errorf("the status of a pod that is gone: %v, want not found or conflict", err)
	}
	pending, err := shared.CreatePod(t.Context(), Pod{Namespace: namespace, Name: "pending"})
	must(t, err)
	if pending.Status.Phase != corev1.PodPending || pending.Status.PodIP != "" {
		t.Errorf("a pod without addresses is not pending: %+v", pending.Status)
	}
}

func TestPaddedPodsHaveTheirSize(t *testing.T) {
	namespace := newNamespace(t)
	const size = 10 << 10
	must(t, shared.CreatePods(t.Context(), func(yield func(Pod) bool) {
		for i := range 300 {
			if !yield(Pod{
				Namespace: namespace, Name: fmt.Sprint("pod-", i), PadTo: size, Node: "some-node",
				IPs: []string{fmt.Sprintf("10.1.%d.%d", i/250, 1+i%250)}, HostIPs: []string{"192.0.2.1"},
			}) {
				return
			}
		}
	}))
	pods, err := shared.Client.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{})
	must(t, err)
	if len(pods.Items) != 300 {
		t.Fatalf("%d pods, want 300", len(pods.Items))
	}
	content, err := json.Marshal(pods.Items[299])
	must(t, err)
	if len(content) < size*9/10 || len(content) > size*11/10 {
		t.Errorf("a padded pod has %d bytes, want %d", len(content), size)
	}
	duplicate := func(yield func(Pod) bool) { yield(Pod{Namespace: namespace, Name: "pod-0"}) }
	if err := shared.CreatePods(t.Context(), duplicate); !apierrors.IsAlreadyExists(err) {
		t.Errorf("creating a pod that is there: %v, want already exists", err)
	}
}

func TestAPIServerComesBackAsItWas(t *testing.T) {
	namespace := newNamespace(t)
	pods := client(t, reader(t, namespace)).CoreV1().Pods(namespace)
	must(t, shared.StopAPIServer())
	if _, err := pods.Get(t.Context(), "none", metav1.GetOptions{}); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a request to a stopped API server: %v, want refused", err)
	}
	must(t, shared.StartAPIServer(t.Context()))
	if _, err := pods.Get(t.Context(), "none", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the token of before the restart: %v, want not found", err)
	}
}

func TestExpireWatchesMakesOldWatchesGone(t *testing.T) {
	namespace := newNamespace(t)
	_, err := shared.CreatePod(t.Context(), Pod{Namespace: namespace, Name: "seen"})
	must(t, err)
	pods := shared.Client.CoreV1().Pods(namespace)
	seen, err := pods.List(t.Context(), metav1.ListOptions{})
	must(t, err)

	// Compaction alone is not enough: the API server still has what came after the pod.
	must(t, shared.Compact(t.Context()))
	if err := watchError(t, namespace, seen.ResourceVersion); err != nil {
		t.Errorf("a watch after compaction: %v, want none", err)
	}
	must(t, shared.DeletePod(t.Context(), namespace, "later", 0))

	// Even a client that has seen everything has to list again.
	seen, err = pods.List(t.Context(), metav1.ListOptions{})
	must(t, err)
	must(t, shared.ExpireWatches(t.Context()))
	if err := watchError(t, namespace, seen.ResourceVersion); !apierrors.IsResourceExpired(err) {
		t.Errorf("a watch after ExpireWatches: %v, want expired", err)
	}
	if list, err := pods.List(t.Context(), metav1.ListOptions{}); err != nil || len(list.Items) != 2 {
		t.Errorf("listing after ExpireWatches: %v, %d pods, want 2", err, len(list.Items))
	}
}

// watchError resumes a watch of the pods of a namespace and returns the error that the
// API server answers, be it as a status or as the first event. A pod that is created
// after the watch began, and seen, is no error. It must not be there before.
func watchError(t *testing.T, namespace, resourceVersion string) error {
	t.Helper()
	pods := shared.Client.CoreV1().Pods(namespace)
	watcher, err := pods.Watch(t.Context(), metav1.ListOptions{ResourceVersion: resourceVersion})
	if err != nil {
		return err
	}
	defer watcher.Stop()
	_, err = shared.CreatePod(t.Context(), Pod{Namespace: namespace, Name: "later"})
	must(t, err)
	event, ok := <-watcher.ResultChan()
	if !ok {
		t.Fatal("the watch ended without an event")
	}
	if event.Type == watch.Error {
		return apierrors.FromObject(event.Object)
	}
	return nil
}

func TestAPIServerThatCannotStartIsAnError(t *testing.T) {
	_, err := Start(t.Context(), Options{APIServerArgs: []string{"--no-such-flag"}})
	if err == nil || !strings.Contains(err.Error(), "unknown flag: --no-such-flag") {
		t.Errorf("got %v, want an error that quotes the log", err)
	}
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	err := wait.PollUntilContextTimeout(t.Context(), 10*time.Millisecond, 10*time.Second, true,
		func(context.Context) (bool, error) { return condition(), nil })
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}
