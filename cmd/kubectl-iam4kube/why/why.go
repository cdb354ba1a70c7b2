// Package why follows one pod's way to its credentials, link by link, as far as the user may
// see it, and says which link is broken. It owns their order. What the links say is of
// packages diagnosis, where the server would say it too, and finding.
package why

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/cmd/kubectl-iam4kube/cluster"
	"github.com/iam4kube/iam4kube/cmd/kubectl-iam4kube/finding"
	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
	"github.com/iam4kube/iam4kube/internal/server/role"
)

// Chain is what there is to say of a pod.
type Chain struct {
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	// Broken is the piece at which the way ends, empty if none was seen.
	Broken string            `json:"broken,omitempty"`
	Links  []finding.Finding `json:"links"`
	// Role is what the pod has, if it was seen.
	Role *Role `json:"role,omitempty"`
}

// Role is what a pod has, nothing of it secret.
type Role struct {
	ARN         string     `json:"arn"`
	SessionName string     `json:"sessionName"`
	AccessKeyID string     `json:"accessKeyId,omitempty"`
	Expiration  *time.Time `json:"expiration,omitempty"`
}

// look is what has been seen so far.
type look struct {
	*cluster.Cluster

	namespaceName, name string

	namespace *corev1.Namespace // nil: not seen
	pod       *corev1.Pod
	injected  *corev1.Container
	account   *corev1.ServiceAccount
	role      *role.Role
	chain     *Chain

	// replicas, or why there are none to look at.
	replicas    []cluster.Replica
	replicasErr error
	events      []corev1.Event
	eventsErr   error
}

// Pod looks at a pod. Its error is one of the way to the API server.
func Pod(ctx context.Context, c *cluster.Cluster, namespace, name string) (*Chain, error) {
	l := &look{Cluster: c, namespaceName: namespace, name: name, chain: &Chain{Namespace: namespace, Pod: name}}
	l.replicasErr = errors.New("not asked")
	for _, link := range []struct {
		name string
		look func(context.Context) (finding.Finding, error)
	}{
		{"pod", l.podLink},
		{"namespace", l.namespaceLink},
		{"routing", l.routingLink},
		{"init container", l.initContainerLink},
		{"token", l.tokenLink},
		{"address", l.addressLink},
		{"ServiceAccount", l.accountLink},
		{"annotation", l.annotationLink},
		{"allowed", l.allowedLink},
		{"STS", l.stsLink},
		{"hand-out", l.handOutLink},
	} {
		var f finding.Finding
		var err error
		switch {
		case l.chain.Broken != "":
			f = finding.Finding{State: finding.Skipped, Text: "not looked at"}
		case l.pod == nil && link.name != "pod":
			f = finding.Hidden("the pod was not seen")
		default:
			f, err = link.look(ctx)
		}
		if err != nil {
			return nil, err
		}
		if f.State == "" { // nothing to say
			continue
		}
		f.Link = link.name
		l.chain.Links = append(l.chain.Links, f)
		if f.State == finding.Broken {
			l.chain.Broken = f.Piece
		}
	}
	return l.chain, nil
}

// unseen is an object that the user may not read, or an error.
func unseen(what string, err error) (finding.Finding, error) {
	if cluster.Hidden(err) {
		return finding.Hidden("%s: %s", what, cluster.Reason(err)), nil
	}
	return finding.Finding{}, fmt.Errorf("%s: %w", what, err)
}

func (l *look) podLink(ctx context.Context) (finding.Finding, error) {
	pod, err := l.CoreV1().Pods(l.namespaceName).Get(ctx, l.name, metav1.GetOptions{})
	switch {
	case cluster.Absent(err):
		return l.absent(ctx), nil
	case err != nil:
		return unseen("the pod", err)
	}
	l.pod = pod
	l.see(ctx)
	switch {
	case pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed:
		return finding.PodEnded.Is("the pod has ended (%s)", pod.Status.Phase), nil
	case pod.Spec.NodeName == "":
		return finding.PodPending.Is("the pod is on no node yet: %s", cluster.State(pod)), nil
	}
	return finding.Good("%s on node %s, ServiceAccount %s", pod.Status.Phase, pod.Spec.NodeName, pod.Spec.ServiceAccountName), nil
}

// absent is why there is no such pod, as far as its controller tells: whoever refuses a pod of
// a ReplicaSet, StatefulSet or Job is named in an event on that.
func (l *look) absent(ctx context.Context) finding.Finding {
	events, err := l.CoreV1().Events(l.namespaceName).List(ctx, metav1.ListOptions{FieldSelector: "reason=FailedCreate"})
	if err == nil {
		for _, e := range slices.Backward(events.Items) {
			if name := e.InvolvedObject.Name; name != "" && strings.HasPrefix(l.name, name) {
				return finding.NotCreated.Is("the pods of %s %s are refused: %s", e.InvolvedObject.Kind, name, e.Message)
			}
		}
	}
	return finding.NoPod.Is("there is no pod %s/%s", l.namespaceName, l.name)
}

// see asks for what several links need.
func (l *look) see(ctx context.Context) {
	l.replicas, l.replicasErr = l.Replicas(ctx, true)
	events, err := l.CoreV1().Events(l.namespaceName).List(ctx, metav1.ListOptions{FieldSelector: "source=iam4kube"})
	l.eventsErr = err
	if err != nil {
		return
	}
	for _, e := range events.Items {
		about := e.InvolvedObject
		if about.UID == l.pod.UID || about.Kind == "ServiceAccount" && about.Name == l.pod.Spec.ServiceAccountName {
			l.events = append(l.events, e)
		}
	}
}

func (l *look) subject() diagnosis.Subject {
	return diagnosis.Subject{
		Address: address(l.pod), Pod: l.namespaceName + "/" + l.name, ServiceAccount: l.pod.Spec.ServiceAccountName, Role: l.role,
	}
}
