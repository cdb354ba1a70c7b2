//go:build e2e

package e2e

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const serverPods = "app.kubernetes.io/name=iam4kube-server"

// Unmodified clients ask through each path, as often as perPath says, while everything is restarted
// that a cluster's operator restarts, and while things fail. The phases are in this order
// because a drain leaves both replicas on one node, and a rolling update spreads them; and
// because connection tracking remembers a dead node for minutes.
func TestZeroDowntime(t *testing.T) {
	l := startLoad(t, perPath)
	t.Cleanup(func() { wantNoLeaks(t) })
	for _, phase := range []struct {
		name string
		run  func(*testing.T, *load)
	}{
		{"a replica is deleted", deletion},
		{"a node is drained", drain},
		{"rolling update of the server", restart("deployment/iam4kube-server")},
		{"rolling update of ip2service", restart("daemonset/iam4kube-ip2service")},
		{"SIGKILL of a replica", sigkill},
		{"API server down for a minute", outage(time.Minute)},
		{"API server down for five minutes", outage(5 * time.Minute)},
		{"power-off of a replica's node", powerOff},
	} {
		t.Run(phase.name, func(t *testing.T) {
			l.steady(t)
			phase.run(t, l)
		})
	}
}

func deletion(t *testing.T, l *load) {
	t.Helper()
	l.phase(t, func() {
		mustKubectl(t, "--namespace="+own, "delete", "pod", serverOn(t, "server-1").Name)
		settled(t)
	}).wantNone(t)
}

func drain(t *testing.T, l *load) {
	t.Helper()
	t.Cleanup(func() {
		if _, err := kubectl(context.Background(), "", "uncordon", "server-1"); err != nil {
			t.Error(err)
		}
	})
	l.phase(t, func() {
		mustKubectl(t, "drain", "server-1", "--ignore-daemonsets", "--delete-emptydir-data")
		settled(t)
		mustKubectl(t, "uncordon", "server-1")
	}).wantNone(t)
}

func restart(what string) func(*testing.T, *load) {
	return func(t *testing.T, l *load) {
		t.Helper()
		l.phase(t, func() {
			mustKubectl(t, "--namespace="+own, "rollout", "restart", what)
			settled(t)
		}).wantNone(t)
	}
}

// controlPlane is what ends with the API server: the others lose their leases, elsewhere.
var controlPlane = []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler"}

// outage of the API server. As soon as it is back, a new pod with a new role has to be served.
func outage(length time.Duration) func(*testing.T, *load) {
	return func(t *testing.T, l *load) {
		t.Helper()
		t.Cleanup(func() { // also if the test ends in between
			status, err := machine.Status(context.Background())
			if err != nil {
				t.Error(err)
			}
			for _, program := range controlPlane {
				if !slices.Contains(status.Programs, program) {
					if err := machine.Restart(context.Background(), program); err != nil {
						t.Error(err)
					}
				}
			}
		})
		news := map[path]*corev1.Pod{}
		l.phase(t, func() {
			for _, program := range controlPlane {
				if err := machine.Kill(t.Context(), program); err != nil {
					t.Fatal(err)
				}
			}
			<-time.After(length) // the outage
			restarted(t)
			for _, way := range []path{nodeWide, inPod} {
				ns := namespace(t, way)
				role(t, ns, "role-23")
				news[way] = clientPod(ns, "role-23", "once")
				create(t, news[way])
			}
			<-time.After(15 * time.Second) // in which all that lost it comes back to it
			settled(t)
		}).wantNone(t)
		for way, pod := range news {
			pod = waitPod(t, pod.Namespace, pod.Name, ended)
			a := decode(t, logs(t, pod.Namespace, pod.Name, "client"))
			wantOwn(t, pod, "role-23", a)
			t.Logf("%s: a new pod with a new role got its credentials %.3f s after its first request", way, a.Seconds)
		}
	}
}

// sigkill leaves all kept connections at the other replica, whose node powerOff takes.
func sigkill(t *testing.T, l *load) {
	t.Helper()
	pod := serverOn(t, "server-1")
	var killed, gone time.Time
	r := l.phase(t, func() {
		id := strings.TrimPrefix(pod.Status.ContainerStatuses[0].ContainerID, "containerd://")
		killed = time.Now()
		onNode(t, "server-1", "ctr", "--namespace=k8s.io", "tasks", "kill", "--signal=SIGKILL", id)
		// Its container may be back before the endpoint could go.
		eventually(t, "the container is back", func() bool {
			now, err := client.CoreV1().Pods(own).Get(t.Context(), pod.Name, metav1.GetOptions{})
			return err == nil && now.Status.ContainerStatuses[0].RestartCount > pod.Status.ContainerStatuses[0].RestartCount &&
				now.Status.ContainerStatuses[0].Ready
		})
		if gone = l.endpoints.gone(pod.Status.PodIP, killed); gone.IsZero() {
			gone = time.Now()
		}
		settled(t)
	})
	if late := r.afterwards(t, killed, gone); len(late) > 0 {
		t.Errorf("failed although the endpoint was gone: %v", late)
	}
}

func powerOff(t *testing.T, l *load) {
	t.Helper()
	t.Cleanup(func() { // also if the test ends in between
		if status, err := machine.Status(context.Background()); err != nil || status.Nodes["server-2"] == 0 {
			_ = machine.PowerOn(context.Background(), "server-2")
		}
	})
	pod := serverOn(t, "server-2")
	var off, gone time.Time
	r := l.phase(t, func() {
		off = time.Now()
		if err := machine.PowerOff(t.Context(), "server-2"); err != nil {
			t.Fatal(err)
		}
		eventually(t, "its endpoint is gone", func() bool {
			gone = l.endpoints.gone(pod.Status.PodIP, off)
			return !gone.IsZero()
		})
		<-time.After(10 * time.Second) // in which nobody may notice any more
	})
	r.wantOnlyRemembered(t, off, gone, pod.Status.PodIP)
	r = l.phase(t, func() {
		if err := machine.PowerOn(t.Context(), "server-2"); err != nil {
			t.Fatal(err)
		}
		eventually(t, "server-2 is ready", func() bool { return ready(t, "server-2") })
		settled(t)
	})
	r.wantOnlyRemembered(t, off, gone, pod.Status.PodIP)
}

// slack is what kube-proxy, which writes its rules once a second at most, and we may need from
// an endpoint's change on, and clients for the answer.
const slack = 1500 * time.Millisecond

// afterwards counts what failed although it was begun when the failed endpoint was gone.
func (r *report) afterwards(t *testing.T, failed, gone time.Time) map[path]int {
	t.Helper()
	late, early, meanwhile := map[path]int{}, 0, map[path]int{}
	for _, f := range r.failures {
		switch ended := f.At.Add(time.Duration(f.Milliseconds) * time.Millisecond); {
		case ended.Before(failed):
			early++
		case f.At.After(gone.Add(slack)):
			late[f.pod.way]++
		default:
			meanwhile[f.pod.way]++
		}
	}
	t.Logf("the endpoint failed at %s and was gone or back %.3f s later; of the requests begun until then %v failed, of later ones %v",
		clock(failed), gone.Sub(failed).Seconds(), meanwhile, late)
	if early > 0 {
		t.Errorf("%d requests failed before the endpoint did", early)
	}
	return late
}

// wantOnlyRemembered is for an endpoint whose node does not refuse connections. The node of a
// client remembers for two minutes where kube-proxy's rules led a connection that got no answer,
// by its source port. In-pod connections have one at random: one that meets a remembered port is
// led anew after a second, but for what is answered: by a router's error or, when the node is
// back, by whatever has the address then. Of the latter, about half hang: connection tracking
// holds the SYN for one of the old connection if its sequence number is lower, lets it pass, and
// then takes the data for invalid. A connection that is kept stays with its endpoint for
// as long as that one is listed, ready or not: the one request that is sent on it fails, too.
func (r *report) wantOnlyRemembered(t *testing.T, failed, gone time.Time, endpoint string) {
	t.Helper()
	late := r.afterwards(t, failed, gone)
	for _, f := range r.failures {
		if f.pod.way != inPod && f.Kind == "kept" && f.At.After(gone.Add(slack)) {
			late[f.pod.way]--
		}
	}
	for _, way := range loaded {
		if way != inPod && late[way] > 0 {
			t.Errorf("%d %s requests failed although the endpoint was gone", late[way], way)
		}
	}
	remembered := 0
	for _, node := range []string{"worker-1", "worker-2"} {
		for line := range strings.Lines(onNode(t, node, "cat", "/proc/net/nf_conntrack")) {
			if strings.Contains(line, "SYN_SENT") && strings.Contains(line, " src="+endpoint+" ") {
				remembered++
			}
		}
	}
	t.Logf("%d unanswered connections to the dead endpoint are remembered", remembered)
	if most := r.counts[inPod]["new"].Done / 20; late[inPod] > most {
		t.Errorf("%d in-pod requests failed although the endpoint was gone, want at most %d", late[inPod], most)
	}
}

func serverOn(t *testing.T, node string) *corev1.Pod {
	t.Helper()
	pods, err := client.CoreV1().Pods(own).List(t.Context(), metav1.ListOptions{LabelSelector: serverPods, FieldSelector: "spec.nodeName=" + node})
	if err != nil || len(pods.Items) == 0 {
		t.Fatalf("no server on %s: %v", node, err)
	}
	return &pods.Items[0]
}

// settled waits until all of iam4kube runs, and nothing ends any more.
func settled(t *testing.T) {
	t.Helper()
	if err := rolledOut(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "no pod ends any more", func() bool {
		pods, err := client.CoreV1().Pods(own).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return false
		}
		for i := range pods.Items {
			if pods.Items[i].DeletionTimestamp != nil {
				return false
			}
		}
		return true
	})
}

func ready(t *testing.T, name string) bool {
	t.Helper()
	node, err := client.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		return false
	}
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// restarted starts the control plane and waits until the API server answers.
func restarted(t *testing.T) {
	t.Helper()
	for _, program := range controlPlane {
		if err := machine.Restart(t.Context(), program); err != nil {
			t.Fatal(err)
		}
		// The others give up soon without it, or back off for minutes.
		eventually(t, "the API server answers", func() bool {
			return client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(t.Context()).Error() == nil
		})
	}
}
