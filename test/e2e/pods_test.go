//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	toolswatch "k8s.io/client-go/tools/watch"
)

const clientImage = "registry.invalid/iam4kube-test/client:" + tag

// answer is what `client once` and `client sdk` print.
type answer struct {
	Role, AccessKeyID, Region, SourceIP string
	Provider                            string
	Addresses                           []string
	Seconds                             float64
	Error                               string
}

// path is one of the ways that a pod's requests take.
type path string

const (
	nodeWide path = "node-wide"
	inPod    path = "in-pod"
	// withToken is node-wide to the addresses of container credentials, where the namespace
	// insists on tokens; inPodToken is in-pod to them. onHost is for pods on the host's network.
	withToken  path = "token"
	inPodToken path = "in-pod-token"
	onHost     path = "host-network"
)

// labels of the namespaces whose pods go this way.
func (p path) labels() map[string]string {
	switch p {
	case inPod:
		return map[string]string{"iam4kube.io/inject": "enabled"}
	case inPodToken:
		return map[string]string{"iam4kube.io/inject": "enabled", "iam4kube.io/token": "enabled"}
	case withToken, onHost:
		return map[string]string{"iam4kube.io/token": "enabled", "iam4kube.io/identity": "token"}
	}
	return nil
}

// of changes a pod so that it goes this way, in its namespace.
func (p path) of(pod *corev1.Pod) *corev1.Pod {
	pod.Spec.HostNetwork = p == onHost
	return pod
}

var namespaces atomic.Int32

// namespace makes one whose pods go this way. It goes with the test, and its pods at once.
func namespace(t *testing.T, way path) string {
	t.Helper()
	object := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", way, namespaces.Add(1)), Labels: way.labels()}}
	if _, err := client.CoreV1().Namespaces().Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.CoreV1().Namespaces().Delete(context.Background(), object.Name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	return object.Name
}

const account = "arn:aws:iam::111122223333:role/"

// role makes a ServiceAccount of the role's name with that role. role-01 to role-24 are for
// ServiceAccounts of their names; others is denied; external wants an external ID. Servers without
// an AWS key get role-01 to role-03 alone; role-04 is for another's token.
func role(t *testing.T, namespace, name string, annotations ...string) {
	t.Helper()
	serviceAccount(t, namespace, name, append([]string{"iam.amazonaws.com/roleArn", account + name}, annotations...)...)
}

func serviceAccount(t *testing.T, namespace, name string, annotations ...string) {
	t.Helper()
	object := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{}}}
	for pair := range slices.Chunk(annotations, 2) {
		object.Annotations[pair[0]] = pair[1]
	}
	if _, err := client.CoreV1().ServiceAccounts(namespace).Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// clientPod is a pod of a ServiceAccount, named as it, that runs the client with an argument
// of its own.
func clientPod(namespace, serviceAccount, argument string) *corev1.Pod {
	zero := int64(0)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: serviceAccount},
		Spec: corev1.PodSpec{
			ServiceAccountName:            serviceAccount,
			TerminationGracePeriodSeconds: &zero,
			RestartPolicy:                 corev1.RestartPolicyNever,
			Containers: []corev1.Container{{
				Name: "client", Image: clientImage, Args: []string{argument},
				Env: []corev1.EnvVar{{Name: "ROLE", Value: serviceAccount}},
			}},
		},
	}
}

// onWorker keeps a pod on one node, by its name.
func onWorker(pod *corev1.Pod, node string) *corev1.Pod {
	pod.Spec.NodeSelector = map[string]string{"kubernetes.io/hostname": node}
	return pod
}

func create(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	if _, err := client.CoreV1().Pods(pod.Namespace).Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// waitPod returns a pod when it is as wanted.
func waitPod(t *testing.T, namespace, name string, wanted func(*corev1.Pod) bool) *corev1.Pod {
	t.Helper()
	selector := fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
	return waitFor(t, namespace, metav1.ListOptions{FieldSelector: selector}, wanted)
}

// waitFor returns the first pod among those selected that is as wanted.
func waitFor(t *testing.T, namespace string, selected metav1.ListOptions, wanted func(*corev1.Pod) bool) *corev1.Pod {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), within)
	defer stop()
	pods := client.CoreV1().Pods(namespace)
	list := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, _ metav1.ListOptions) (runtime.Object, error) {
			return pods.List(ctx, selected)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.FieldSelector, options.LabelSelector = selected.FieldSelector, selected.LabelSelector
			return pods.Watch(ctx, options)
		},
	}
	event, err := toolswatch.UntilWithSync(ctx, list, &corev1.Pod{}, nil, func(event watch.Event) (bool, error) {
		pod, ok := event.Object.(*corev1.Pod)
		return ok && wanted(pod), nil
	})
	if err != nil {
		state, _ := kubectl(t.Context(), "", "--namespace="+namespace, "describe", "pods")
		t.Fatalf("pod %v in %s: %v\n%s", selected, namespace, err, state)
	}
	return event.Object.(*corev1.Pod)
}

// initialising: its first init container runs.
func initialising(pod *corev1.Pod) bool {
	init := pod.Status.InitContainerStatuses
	return len(init) > 0 && init[0].State.Running != nil
}

func running(pod *corev1.Pod) bool { return pod.Status.Phase == corev1.PodRunning }

func ended(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// logs of a container of a pod.
func logs(t *testing.T, namespace, pod, container string) []byte {
	t.Helper()
	return logsOf(t, namespace, pod, corev1.PodLogOptions{Container: container})
}

// logsOf is a part of them.
func logsOf(t *testing.T, namespace, pod string, options corev1.PodLogOptions) []byte {
	t.Helper()
	text, err := client.CoreV1().Pods(namespace).GetLogs(pod, &options).DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// once runs `client once` in a pod that waits.
func once(t *testing.T, namespace, pod string) (answer, error) {
	t.Helper()
	output, err := kubectl(t.Context(), "", "--namespace="+namespace, "exec", pod, "--container=client", "--", "/client", "once")
	return decode(t, []byte(output)), err
}

func decode(t *testing.T, text []byte) (a answer) {
	t.Helper()
	if err := json.Unmarshal(text, &a); err != nil {
		t.Fatalf("%q is no answer: %v", text, err)
	}
	return a
}

// wantOwn checks that a pod got its own role, and that the server saw the pod's own address.
func wantOwn(t *testing.T, pod *corev1.Pod, role string, a answer) {
	t.Helper()
	if a.Error != "" || a.Role != role || a.AccessKeyID == "" || a.Region != "eu-west-1" {
		t.Errorf("%s/%s got %+v, want %s", pod.Namespace, pod.Name, a, role)
	}
	if a.Error == "" && (a.SourceIP != pod.Status.PodIP || !slices.Contains(a.Addresses, a.SourceIP)) {
		t.Errorf("%s/%s: the server saw %q, the pod's address is %s (%v)", pod.Namespace, pod.Name, a.SourceIP, pod.Status.PodIP, a.Addresses)
	}
}
