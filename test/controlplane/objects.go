package controlplane

import (
	"context"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// CreateNamespace creates a namespace unless it is there.
func (cp *ControlPlane) CreateNamespace(ctx context.Context, name string) error {
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	_, err := cp.Client.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// ServiceAccount is a ServiceAccount to be created.
type ServiceAccount struct {
	Namespace   string
	Name        string
	Annotations map[string]string
}

// CreateServiceAccount creates a ServiceAccount.
func (cp *ControlPlane) CreateServiceAccount(ctx context.Context, account ServiceAccount) error {
	object := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: account.Name, Annotations: account.Annotations}}
	_, err := cp.Client.CoreV1().ServiceAccounts(account.Namespace).Create(ctx, object, metav1.CreateOptions{})
	return err
}

// Node describes a node; an empty field is left out of it.
type Node struct {
	Name   string
	Zone   string // label topology.kubernetes.io/zone, such as eu-west-1a
	Region string // label topology.kubernetes.io/region
	IP     string // the InternalIP in its status

	ProviderID string // such as aws:///eu-west-1a/i-0123456789abcdef0
}

// CreateNode creates a node as a kubelet and a cloud controller would register it.
func (cp *ControlPlane) CreateNode(ctx context.Context, node Node) error {
	object := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node.Name, Labels: map[string]string{
		corev1.LabelHostname: node.Name,
	}}}
	object.Spec.ProviderID = node.ProviderID
	if node.Zone != "" {
		object.Labels[corev1.LabelTopologyZone] = node.Zone
	}
	if node.Region != "" {
		object.Labels[corev1.LabelTopologyRegion] = node.Region
	}
	if node.IP != "" {
		object.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: node.IP}}
	}
	_, err := cp.Client.CoreV1().Nodes().Create(ctx, object, metav1.CreateOptions{})
	return err
}

// Pod describes a pod; an empty field is left out of it.
type Pod struct {
	Namespace      string
	Name           string
	ServiceAccount string // default: "default", as the API server sets it
	Labels         map[string]string
	Annotations    map[string]string
	HostNetwork    bool
	// Node binds the pod. A pod on a node stays when it is deleted with a grace period,
	// terminating, until it is deleted again with none: that is the kubelet's part.
	Node string
	// IPs are status.podIPs, first the primary one. With any of them the pod runs;
	// without it is pending. One address per family is valid.
	IPs []string
	// HostIPs are status.hostIPs, as IPs.
	HostIPs []string
	// PadTo is how many bytes of JSON the API server should return for the pod, about:
	// the rest is filled with environment variables, their managedFields, and annotations.
	PadTo int
}

// CreatePod creates a pod and, if it has addresses, sets the status that a kubelet
// reports for a running one.
func (cp *ControlPlane) CreatePod(ctx context.Context, pod Pod) (*corev1.Pod, error) {
	object, err := cp.Client.CoreV1().Pods(pod.Namespace).Create(ctx, pod.object(), metav1.CreateOptions{})
	if err != nil || len(pod.IPs) == 0 {
		return object, err
	}
	return cp.SetPodStatus(ctx, object, RunningStatus(pod.IPs, pod.HostIPs))
}

// SetPodStatus replaces the status of a pod, whatever happened to it since it was read.
// It fails if a new pod has the name by now.
func (cp *ControlPlane) SetPodStatus(ctx context.Context, pod *corev1.Pod, status corev1.PodStatus) (*corev1.Pod, error) {
	changed := pod.DeepCopy()
	changed.ResourceVersion = ""
	changed.ManagedFields = nil
	changed.Status = status
	changed.Status.QOSClass = pod.Status.QOSClass
	return cp.Client.CoreV1().Pods(pod.Namespace).
		UpdateStatus(ctx, changed, metav1.UpdateOptions{FieldManager: "kubelet"})
}

// DeletePod deletes a pod. With a grace period over 0 a pod that is bound to a node is
// terminating from then on; with 0 it is gone.
func (cp *ControlPlane) DeletePod(ctx context.Context, namespace, name string, grace time.Duration) error {
	seconds := int64(grace / time.Second)
	return cp.Client.CoreV1().Pods(namespace).Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &seconds})
}

// RunningStatus is what a kubelet reports for a pod whose container runs and is ready.
func RunningStatus(podIPs, hostIPs []string) corev1.PodStatus {
	now := metav1.Now()
	started := true
	status := corev1.PodStatus{
		Phase:     corev1.PodRunning,
		StartTime: &now,
		ContainerStatuses: []corev1.ContainerStatus{{
			Name: containerName, Image: image, ImageID: image + "@sha256:" + strings.Repeat("0", 64),
			ContainerID: "containerd://" + strings.Repeat("0", 64), Ready: true, Started: &started,
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}},
		}},
	}
	for _, condition := range []corev1.PodConditionType{
		corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.PodReady, corev1.ContainersReady, corev1.PodScheduled,
	} {
		status.Conditions = append(status.Conditions, corev1.PodCondition{
			Type: condition, Status: corev1.ConditionTrue, LastTransitionTime: now,
		})
	}
	for _, ip := range podIPs {
		status.PodIPs = append(status.PodIPs, corev1.PodIP{IP: ip})
	}
	for _, ip := range hostIPs {
		status.HostIPs = append(status.HostIPs, corev1.HostIP{IP: ip})
	}
	if len(podIPs) > 0 {
		status.PodIP = podIPs[0]
	}
	if len(hostIPs) > 0 {
		status.HostIP = hostIPs[0]
	}
	return status
}

const (
	containerName = "app"
	image         = "registry.invalid/app:1"
)

func (p Pod) object() *corev1.Pod {
	object := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: p.Name, Labels: p.Labels, Annotations: p.Annotations},
		Spec: corev1.PodSpec{
			ServiceAccountName: p.ServiceAccount,
			NodeName:           p.Node,
			HostNetwork:        p.HostNetwork,
			Containers:         []corev1.Container{{Name: containerName, Image: image}},
		},
	}
	if p.PadTo > 0 {
		pad(object, p.PadTo)
	}
	return object
}
