//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// tasks are the processes of a node's containers, by what containerd tells of them, which is
// exact where a pod's status has whole seconds and what kubelet has seen by then.
type tasks struct {
	mutex         sync.Mutex
	first         chan struct{}
	started, over map[string]time.Time
	// more is closed when there is more, and replaced.
	more chan struct{}
}

// watchTasks follows a node's until the end of the test.
func watchTasks(t *testing.T, node string) *tasks {
	t.Helper()
	k := &tasks{first: make(chan struct{}), more: make(chan struct{}), started: map[string]time.Time{}, over: map[string]time.Time{}}
	cmd, err := machine.Command(t.Context(), node, "ctr", "--namespace=k8s.io", "events")
	if err != nil {
		t.Fatal(err)
	}
	output, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// Its own process ends when it cannot write any more.
	t.Cleanup(func() { _ = cmd.Wait() })
	go k.read(output)
	// It does not tell when it has begun.
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		onNode(t, node, "ctr", "--namespace=k8s.io", "images", "label", "registry.k8s.io/pause:iam4kube", "e2e="+fmt.Sprint(time.Now().UnixNano()))
		select {
		case <-k.first:
			return k
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		}
	}
}

func (k *tasks) read(events io.Reader) {
	tell := sync.OnceFunc(func() { close(k.first) })
	for scanner := bufio.NewScanner(events); scanner.Scan(); tell() {
		// 2026-11-25 01:52:45.572919248 +0000 UTC k8s.io /tasks/start {"container_id":"…","pid":2203}
		fields := strings.SplitN(scanner.Text(), " ", 7)
		var task struct {
			ContainerID string `json:"container_id"`
			ID          string `json:"id"`
		}
		if len(fields) < 7 || json.Unmarshal([]byte(fields[6]), &task) != nil {
			continue
		}
		at, err := time.Parse("2006-01-02 15:04:05.999999999 -0700", strings.Join(fields[:3], " "))
		if err != nil {
			continue
		}
		k.mutex.Lock()
		switch {
		case fields[5] == "/tasks/start":
			k.started[task.ContainerID] = at
		case fields[5] == "/tasks/exit" && task.ID == task.ContainerID: // not of an exec
			k.over[task.ContainerID] = at
		}
		close(k.more)
		k.more = make(chan struct{})
		k.mutex.Unlock()
	}
}

// start and end of a container that has started or ended. Its event may still be on its way.
func (k *tasks) start(t *testing.T, id string) time.Time {
	t.Helper()
	return k.at(t, k.started, id)
}

func (k *tasks) end(t *testing.T, id string) time.Time {
	t.Helper()
	return k.at(t, k.over, id)
}

func (k *tasks) at(t *testing.T, times map[string]time.Time, id string) time.Time {
	t.Helper()
	for deadline := time.After(within); ; {
		k.mutex.Lock()
		at, more := times[id], k.more
		k.mutex.Unlock()
		if !at.IsZero() {
			return at
		}
		select {
		case <-more:
		case <-deadline:
			t.Fatalf("containerd did not tell of container %s", id)
		}
	}
}

// sample is how long things took.
type sample []time.Duration

func (s sample) at(quantile float64) time.Duration {
	slices.Sort(s)
	return s[int(quantile*float64(len(s)-1)+0.5)]
}

func (s sample) String() string {
	if len(s) == 0 {
		return "-"
	}
	const digits = time.Millisecond
	return fmt.Sprintf("median %s, p90 %s (n=%d)", s.at(0.5).Round(digits), s.at(0.9).Round(digits), len(s))
}

// podStart is how pods of a kind start.
type podStart struct {
	name      string
	namespace string
	account   string
	// prepare changes a pod of the kind.
	prepare func(*corev1.Pod)
	// init is the init container's name, if there is one.
	init string
	// rounds of two pods.
	rounds int
	// whole is from the request to the API server to the start of the pod's own container,
	// program the time that the init container's process is there.
	whole, program sample
}

// What the init container costs a pod, beside pods without one and pods with one that does
// nothing: kubelet takes its time to see that an init container has ended. One pod at a time on
// each worker, the kinds by turns.
func TestStartOfInjectedPods(t *testing.T) {
	watched := map[string]*tasks{"worker-1": watchTasks(t, "worker-1"), "worker-2": watchTasks(t, "worker-2")}
	plain, injected, tokens := namespace(t, nodeWide), namespace(t, inPod), namespace(t, withToken)
	role(t, plain, "role-10")
	role(t, tokens, "role-10")
	role(t, injected, "role-10")
	serviceAccount(t, injected, "nobody")
	role(t, injected, "others")
	const ours = "iam4kube-ip2service"
	without := &podStart{name: "not injected", namespace: plain, account: "role-10", rounds: 6}
	with := &podStart{name: "injected", namespace: injected, account: "role-10", init: ours, rounds: 6}
	nothing := &podStart{name: "an init container that does nothing", namespace: plain, account: "role-10", prepare: doNothingFirst, init: "first", rounds: 6}
	token := &podStart{name: "a token alone", namespace: tokens, account: "role-10", rounds: 6}
	volume := &podStart{name: "a token's volume of the pod's own", namespace: plain, account: "role-10", prepare: mountToken, rounds: 6}
	kinds := []*podStart{
		token, without, volume, with, nothing,
		{name: "injected, no role", namespace: injected, account: "nobody", init: ours, rounds: 2},
		{name: "injected, role denied", namespace: injected, account: "others", init: ours, rounds: 2},
	}
	for round := range with.rounds {
		for i := range kinds { // what goes before makes a difference
			i = (i + round) % len(kinds)
			if kind := kinds[i]; round < kind.rounds {
				kind.measure(t, fmt.Sprintf("start-%d-%d", i, round), watched)
			}
		}
	}
	for _, kind := range kinds {
		t.Logf("%-36s %v; of it the init container's process %v", kind.name, kind.whole, kind.program)
		if kind.init != ours {
			continue
		}
		// None of these waits for credentials.
		if longer := kind.program.at(0.5) - nothing.program.at(0.5); longer > 500*time.Millisecond {
			t.Errorf("%s: the process takes %s longer than one that does nothing", kind.name, longer)
		}
	}
	more := with.whole.at(0.5) - nothing.whole.at(0.5)
	t.Logf("by the median, injection adds %s, which is %s more than an init container that does nothing",
		(with.whole.at(0.5) - without.whole.at(0.5)).Round(time.Millisecond), more.Round(time.Millisecond))
	for _, other := range []*podStart{without, volume} {
		t.Logf("%s takes %.3f times as long as %s", token.name, token.whole.at(0.5).Seconds()/other.whole.at(0.5).Seconds(), other.name)
	}
	// What any second volume adds is kubelet's.
	if more := token.whole.at(0.5) - volume.whole.at(0.5); more > time.Second {
		t.Errorf("a token adds %s more than a volume with one, want less than a second", more)
	}
	// What any init container adds is kubelet's, which may see its end a second late.
	if more > time.Second {
		t.Errorf("injection adds %s more than an init container that does nothing, want less than a second", more)
	}
}

// measure starts a pod on each node, and takes it away again.
func (s *podStart) measure(t *testing.T, name string, watched map[string]*tasks) {
	t.Helper()
	created := map[*corev1.Pod]time.Time{}
	for node := range watched {
		pod := onWorker(clientPod(s.namespace, s.account, "wait"), node)
		pod.Name = name + "-" + node
		if s.prepare != nil {
			s.prepare(pod)
		}
		created[pod] = time.Now()
		create(t, pod)
	}
	for pod, at := range created {
		pod = waitPod(t, pod.Namespace, pod.Name, running)
		node := watched[pod.Spec.NodeName]
		s.whole = append(s.whole, node.start(t, containerID(t, pod, "client")).Sub(at))
		if s.init != "" {
			init := containerID(t, pod, s.init)
			s.program = append(s.program, node.end(t, init).Sub(node.start(t, init)))
		}
		if err := client.CoreV1().Pods(pod.Namespace).Delete(t.Context(), pod.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// mountToken gives a pod what the webhook gives it for a token, without the webhook.
func mountToken(pod *corev1.Pod) {
	hour := int64(3600)
	pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: "token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: "iam4kube.io", ExpirationSeconds: &hour, Path: "token"}}},
	}}})
	pod.Spec.Containers[0].VolumeMounts = append(pod.Spec.Containers[0].VolumeMounts, corev1.VolumeMount{Name: "token", MountPath: "/var/run/secrets/token", ReadOnly: true})
}

// doNothingFirst gives a pod an init container that only finds that there is nothing to do.
func doNothingFirst(pod *corev1.Pod) {
	user, no := int64(65532), false
	pod.Spec.InitContainers = []corev1.Container{{
		Name: "first", Image: "registry.invalid/iam4kube/ip2service-init:" + tag, Args: []string{"--cleanup"},
		SecurityContext: &corev1.SecurityContext{RunAsUser: &user, AllowPrivilegeEscalation: &no, Capabilities: &corev1.Capabilities{
			Drop: []corev1.Capability{"ALL"}, Add: []corev1.Capability{"NET_ADMIN"},
		}},
	}}
}

// When STS does not answer, a pod of a role that was never fetched starts after the wait.
func TestStartOfInjectedPodsWhileSTSIsDown(t *testing.T) {
	worker := watchTasks(t, "worker-1")
	stopSTS(t)
	ns := namespace(t, inPod)
	role(t, ns, "role-11")
	pod := onWorker(clientPod(ns, "role-11", "wait"), "worker-1")
	create(t, pod)
	pod = waitPod(t, ns, "role-11", running)
	init := containerID(t, pod, "iam4kube-ip2service")
	from, to := worker.start(t, init), worker.end(t, init)
	text := string(logs(t, ns, pod.Name, "iam4kube-ip2service"))
	if took := to.Sub(from); took < 5*time.Second || took > 8*time.Second || !strings.Contains(text, "the pod starts without credentials") {
		t.Errorf("after %s, want 5 s: %s", took, text)
	}
	t.Logf("%s: %s", to.Sub(from), text)
}

// stopSTS takes STS away until the end of the test.
func stopSTS(t *testing.T) {
	t.Helper()
	const deployment = "deployment/iam4kube-demo-sts"
	t.Cleanup(func() {
		_, err := kubectl(context.Background(), "", "--namespace="+own, "scale", deployment, "--replicas=1")
		if err := errors.Join(err, rolledOut(context.Background())); err != nil {
			t.Error(err)
		}
	})
	mustKubectl(t, "--namespace="+own, "scale", deployment, "--replicas=0")
	mustKubectl(t, "--namespace="+own, "wait", "pods", "--selector=app.kubernetes.io/name=iam4kube-demo-sts", "--for=delete", "--timeout="+within.String())
}
