// Package cluster is what the plugin can see, with the rights of whoever runs it: objects
// of the API server, and what iam4kube's own pods say on their auxiliary and debug
// listeners, through port-forwards. It judges nothing, and it changes nothing.
package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// Names in the manifests.
const (
	Server     = "iam4kube-server"
	IP2Service = "iam4kube-ip2service"
	Webhook    = "iam4kube-webhook"
	Service    = "iam4kube"
	// ServerNode is the label of the nodes that are for the server alone.
	ServerNode = "node-restriction.kubernetes.io/iam4kube-server"
	nameLabel  = "app.kubernetes.io/name"
)

// Cluster is seen with one user's rights.
type Cluster struct {
	kubernetes.Interface

	// Namespace is iam4kube's own.
	Namespace string

	config *rest.Config
}

// New makes a client. It asks nothing yet.
func New(config *rest.Config, namespace string) (*Cluster, error) {
	config = rest.CopyConfig(config)
	config.QPS, config.Burst = 50, 100 // a node each, in a large cluster
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	return &Cluster{Interface: client, Namespace: namespace, config: config}, nil
}

// Hidden reports that the user may not see what was asked for, which says nothing of whether
// it is there.
func Hidden(err error) bool {
	var hidden *HiddenError
	return apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) || errors.As(err, &hidden)
}

// HiddenError is what keeps the plugin from seeing something that is no object of the API.
type HiddenError struct{ Why string }

// Error implements error.
func (e *HiddenError) Error() string { return e.Why }

// Absent reports that what was asked for does not exist.
func Absent(err error) bool { return apierrors.IsNotFound(err) }

// Reason is an error of the API server in one line, without what the caller says anyway.
func Reason(err error) string {
	if apierrors.IsForbidden(err) {
		// ...: User "x" cannot get resource "pods" in API group "" in the namespace "y"
		if _, after, found := strings.Cut(err.Error(), "is forbidden: "); found {
			return after
		}
	}
	return strings.ReplaceAll(err.Error(), "\n", "; ")
}

// PodsOf lists the pods of one of iam4kube's programs, by its label.
func (c *Cluster) PodsOf(ctx context.Context, program, fields string) ([]corev1.Pod, error) {
	list, err := c.CoreV1().Pods(c.Namespace).List(ctx, metav1.ListOptions{LabelSelector: nameLabel + "=" + program, FieldSelector: fields})
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

// Flags are those of a program's container, with - or -- before and their value by = or in the
// next word. The last of several wins, but for those that may be repeated.
func Flags(pod corev1.PodSpec) map[string][]string {
	flags := map[string][]string{}
	for _, container := range pod.Containers {
		words := slices.Concat(container.Command, container.Args)
		for i, word := range words {
			if !strings.HasPrefix(word, "-") {
				continue
			}
			name, value, found := strings.Cut(strings.TrimLeft(word, "-"), "=")
			if !found && i+1 < len(words) && !strings.HasPrefix(words[i+1], "-") {
				value = words[i+1]
			}
			flags[name] = append(flags[name], value)
		}
	}
	return flags
}

// On reports whether a switch is given and not false.
func On(flags map[string][]string, name string) bool {
	values, found := flags[name]
	return found && values[len(values)-1] != "false"
}

// Value is a flag's last value, empty without one.
func Value(flags map[string][]string, name string) string {
	values := flags[name]
	if len(values) == 0 {
		return ""
	}
	return values[len(values)-1]
}

// WebIdentity is whether a server with these flags has no AWS credentials, but signs tokens.
func WebIdentity(flags map[string][]string) bool {
	return Value(flags, "sts-operation") == "AssumeRoleWithWebIdentity"
}

// Ready reports whether the kubelet says that the pod is.
func Ready(pod *corev1.Pod) bool {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

// Raw reads an object whose type the plugin does not have.
func (c *Cluster) Raw(ctx context.Context, path string, into any) error {
	raw, err := c.Discovery().RESTClient().Get().AbsPath(path).SetHeader("Accept", "application/json").DoRaw(ctx)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
