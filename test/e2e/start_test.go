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
}

// watchTasks follows a node's until the end of the test.
func watchTasks(t *testing.T, node string) *tasks {
	t.Helper()
	k := &tasks{first: make(chan struct{}), started: map[string]time.Time{}, over: map[string]time.Time{}}
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
	for tick := time.Tick(200 * time.Millisecond); ; {
		onNode(t, node, "ctr", "--namespace=k8s.io", "images", "label", "registry.k8s.io/pause:iam4kube", "e2e="+fmt.Sprint(time.Now().UnixNano()))
		select {
		case <-k.first:
			return k
		case <-tick:
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
		k.mutex.Unlock()
	}
}

// of are the times of a container, which has been seen to start and, if over, to end.
func (k *tasks) of(t *testing.T, id string) (started, over time.Time) {
	t.Helper()
	k.mutex.Lock()
	defer k.mutex.Unlock()
	if k.started[id].IsZero() {
		t.Errorf("container %s was not seen to start", id)
	}
	return k.started[id], k.over[id]
}

// sample is how long things took.
type sample []time.Duration

func (s sample) at(quantile float64) time.Duration {
	slices.Sort(s)
	return s[int(quantile*float64(len(s)-1)+0.5)]
}

func (s sample) String() string {
	const digits = time.Millisecond
	return fmt.Sprintf("median %s, p90 %s (n=%d)", s.at(0.5).Round(digits), s.at(0.9).Round(digits), len(s))
}

// kinds of pods whose start is measured.
const (
	notInjected = "not injected"
	withRole    = "injected, role"
	withoutRole = "injected, no role"
	deniedRole  = "injected, role denied"
)

// What the init container costs a pod: from the request to the API server to the start of the
// pod's own container, one pod at a time on each worker, the kinds by turns.
func TestStartOfInjectedPods(t *testing.T) {
	watched := map[string]*tasks{"worker-1": watchTasks(t, "worker-1"), "worker-2": watchTasks(t, "worker-2")}
	plain, injected := namespace(t, nodeWide), namespace(t, inPod)
	role(t, plain, "role-10")
	role(t, injected, "role-10")
	serviceAccount(t, injected, "nobody")
	role(t, injected, "others")
	start, program := map[string]sample{}, map[string]sample{}
	for round := range 10 {
		for _, kind := range []struct{ name, namespace, account string }{
			{notInjected, plain, "role-10"}, {withRole, injected, "role-10"}, {withoutRole, injected, "nobody"}, {deniedRole, injected, "others"},
		} {
			if round >= 3 && kind.account != "role-10" {
				continue // enough to see that they cost no more
			}
			pods, created := []*corev1.Pod{}, []time.Time{}
			for node := range watched {
				pod := onWorker(clientPod(kind.namespace, kind.account, "wait"), node)
				pod.Name = fmt.Sprintf("%s-%s-%d", kind.account, node, round)
				pods, created = append(pods, pod), append(created, time.Now())
				create(t, pod)
			}
			for i, pod := range pods {
				pod = waitPod(t, pod.Namespace, pod.Name, running)
				node := watched[pod.Spec.NodeName]
				began, _ := node.of(t, containerID(t, pod, "client"))
				start[kind.name] = append(start[kind.name], began.Sub(created[i]))
				if kind.name != notInjected {
					from, to := node.of(t, containerID(t, pod, "iam4kube-ip2service"))
					program[kind.name] = append(program[kind.name], to.Sub(from))
				}
				if err := client.CoreV1().Pods(pod.Namespace).Delete(t.Context(), pod.Name, metav1.DeleteOptions{}); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	reportStart(t, start, program)
}

func reportStart(t *testing.T, start, program map[string]sample) {
	t.Helper()
	t.Logf("%-21s  %v", notInjected, start[notInjected])
	usual := start[notInjected].at(0.5)
	for _, kind := range []string{withRole, withoutRole, deniedRole} {
		extra := start[kind].at(0.5) - usual
		t.Logf("%-21s  %v, of it the init container's process %v; by the median %s more than not injected", kind, start[kind], program[kind], extra.Round(time.Millisecond))
		// On a machine that is busy with others everything takes longer.
		if limit := max(1500*time.Millisecond, usual); extra > limit {
			t.Errorf("%s: %s more, want less than %s", kind, extra, limit)
		}
	}
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
	from, to := worker.of(t, containerID(t, pod, "iam4kube-ip2service"))
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
