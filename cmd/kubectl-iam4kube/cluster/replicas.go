package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// debugPort is that of the flag --debug.
const debugPort = 6060

// auxPort is that of --aux-listen-on, unless the container names another one metrics.
const auxPort = 9090

// RoleState is a role in the dump /debug/roles. Fields that a server of another version does
// not have stay empty.
type RoleState struct {
	Namespace, ServiceAccount    string
	ARN, SessionName, ExternalID string
	Duration, State              string
	AccessKeyID                  string
	Expiration                   *time.Time
	NextAttempt                  time.Time
	Failures                     int
	Failure                      string
}

// PodState is a pod in the dump /debug/pods.
type PodState struct {
	Namespace, Name, ServiceAccount, Node   string
	Addresses                               []netip.Addr
	Terminating, HostNetwork, Static, Ended bool
	AccessKeyID                             string
}

// Replica is what one of the server's pods says of itself.
type Replica struct {
	Pod corev1.Pod
	// Err is why nothing of the pod could be read.
	Err error
	// NotReady is the text of /readyz, empty if it is ready.
	NotReady string
	Metrics  Metrics
	// Roles and Pods are those of the debug listener, and DebugErr is why there are none.
	Roles    []RoleState
	Pods     []PodState
	DebugErr error
}

// ErrNoDebug says that the server's flag --debug is off.
var ErrNoDebug = &HiddenError{Why: "the servers run without --debug"}

// Replicas asks all pods of the server that run at the same time, with dumps if debug.
func (c *Cluster) Replicas(ctx context.Context, debug bool) ([]Replica, error) {
	pods, err := c.PodsOf(ctx, Server, "")
	if err != nil {
		return nil, err
	}
	replicas := make([]Replica, 0, len(pods))
	for _, pod := range pods {
		if pod.Status.Phase == corev1.PodRunning {
			replicas = append(replicas, Replica{Pod: pod})
		}
	}
	var asking sync.WaitGroup
	for i := range replicas {
		asking.Go(func() {
			replicas[i].Err = c.ask(ctx, &replicas[i], debug)
			if replicas[i].Err != nil {
				replicas[i].DebugErr = replicas[i].Err
			}
		})
	}
	asking.Wait()
	return replicas, nil
}

func (c *Cluster) ask(ctx context.Context, r *Replica, debug bool) error {
	aux := MetricsPort(&r.Pod)
	forward, err := c.Forward(ctx, &r.Pod, aux, debugPort)
	if err != nil {
		return err
	}
	defer forward.Close()
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	r.Metrics, r.NotReady, err = aux9090(ctx, forward, aux)
	if err != nil || !debug {
		return err
	}
	if !On(Flags(r.Pod.Spec), "debug") {
		r.DebugErr = ErrNoDebug
		return nil
	}
	r.DebugErr = errors.Join(dump(ctx, forward, "roles", &r.Roles), dump(ctx, forward, "pods", &r.Pods))
	return nil
}

// aux9090 reads the auxiliary listener, which all three programs have.
func aux9090(ctx context.Context, forward *Forward, port uint16) (metrics Metrics, notReady string, err error) {
	status, body, err := forward.Get(ctx, port, "/readyz")
	if err != nil {
		return nil, "", err
	}
	if status != http.StatusOK {
		notReady = strings.TrimSpace(strings.TrimPrefix(string(body), "not ready: "))
	}
	if _, body, err = forward.Get(ctx, port, "/metrics"); err != nil {
		return nil, "", err
	}
	return ParseMetrics(string(body)), notReady, nil
}

// Aux is what a pod of any of the programs says on its auxiliary listener.
func (c *Cluster) Aux(ctx context.Context, pod *corev1.Pod) (metrics Metrics, notReady string, err error) {
	port := MetricsPort(pod)
	forward, err := c.Forward(ctx, pod, port)
	if err != nil {
		return nil, "", err
	}
	defer forward.Close()
	return aux9090(ctx, forward, port)
}

// otherVersion is why an answer can be one that the plugin does not know.
const otherVersion = "is the plugin of the servers' version?"

func dump(ctx context.Context, forward *Forward, name string, into any) error {
	status, body, err := forward.Get(ctx, debugPort, "/debug/"+name)
	if err != nil {
		return fmt.Errorf("the debug listener does not answer: %w", err)
	}
	if status != http.StatusOK {
		return fmt.Errorf("/debug/%s: status %d: %s", name, status, otherVersion)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("/debug/%s is not what this plugin reads: %s: %w", name, otherVersion, err)
	}
	return nil
}

// MetricsPort is the port that the pod's container calls metrics.
func MetricsPort(pod *corev1.Pod) uint16 {
	for _, container := range pod.Spec.Containers {
		for _, port := range container.Ports {
			if port.Name == "metrics" {
				return uint16(port.ContainerPort)
			}
		}
	}
	return auxPort
}

// State is why a pod does not run, in the kubelet's or the scheduler's words, else its phase.
func State(pod *corev1.Pod) string {
	for _, status := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		if waiting := status.State.Waiting; waiting != nil && waiting.Reason != "" && waiting.Reason != "PodInitializing" {
			return strings.TrimSpace(waiting.Reason + ": " + waiting.Message)
		}
	}
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodScheduled && condition.Status == corev1.ConditionFalse {
			return strings.TrimSpace(condition.Reason + ": " + condition.Message)
		}
	}
	return string(pod.Status.Phase)
}
