//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// knocks is what `client knock` prints.
type knocks struct {
	Second       int64
	HTTP, Others map[string]int
	Slowest      int64
}

// only is whether every connection to port 80 had one of these outcomes, and nothing else was
// open.
func (k knocks) only(outcomes ...string) bool {
	for outcome := range k.HTTP {
		if !slices.Contains(outcomes, outcome) {
			return false
		}
	}
	for outcome := range k.Others {
		if outcome != "closed" && outcome != "silent" {
			return false
		}
	}
	return len(k.HTTP) > 0 && len(k.Others) > 0
}

// knocker is a pod that tries every way to the metadata address, without end, and again after
// its node was off.
func knocker(namespace, serviceAccount, node string) *corev1.Pod {
	pod := onWorker(clientPod(namespace, serviceAccount, "knock"), node)
	pod.Spec.RestartPolicy = corev1.RestartPolicyAlways
	root := int64(0)
	pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{
		RunAsUser:    &root,
		Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"NET_RAW"}}, // ICMP, SCTP
	}
	return pod
}

// untilKnocks waits until each of the pods has had a whole second, from now on, that is as
// wanted: wanted makes what judges one pod's seconds. The pods are waited for beside each
// other, because a second is told two or three seconds after it has begun.
func untilKnocks(t *testing.T, pods []*corev1.Pod, wanted func() func(knocks) bool) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), within)
	defer stop()
	failures := make([]error, len(pods))
	var waiting sync.WaitGroup
	for i, pod := range pods {
		waiting.Go(func() { failures[i] = oneKnocks(ctx, pod, wanted()) })
	}
	waiting.Wait()
	if err := errors.Join(failures...); err != nil {
		t.Fatal(err)
	}
}

func oneKnocks(ctx context.Context, pod *corev1.Pod, wanted func(knocks) bool) error {
	var last knocks
	var err error
	good := false
	for now := time.Now(); ctx.Err() == nil && !good; { // again when its node was off
		err = eachKnocks(ctx, pod, now, true, func(k knocks) bool { last, good = k, wanted(k); return !good })
	}
	if !good {
		return errors.Join(fmt.Errorf("%s/%s does not get what is wanted, but %+v", pod.Namespace, pod.Name, last), err)
	}
	return nil
}

// always is for seconds that are judged each by itself.
func always(wanted func(knocks) bool) func() func(knocks) bool {
	return func() func(knocks) bool { return wanted }
}

// eachKnocks calls f for each second after then, until f does not want more.
func eachKnocks(ctx context.Context, pod *corev1.Pod, then time.Time, follow bool, f func(knocks) bool) error {
	since := metav1.NewTime(then)
	stream, err := client.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{Container: "client", Follow: follow, SinceTime: &since}).Stream(ctx)
	if err != nil {
		return err
	}
	defer stream.Close()
	lines := bufio.NewScanner(stream)
	for lines.Scan() {
		var k knocks
		if err := json.Unmarshal(lines.Bytes(), &k); err != nil {
			return fmt.Errorf("%q: %w", lines.Text(), err)
		}
		if k.Second > then.Unix() && !f(k) {
			return nil
		}
	}
	return lines.Err()
}

// wantServed waits until a server answers all of them. Until then there may be what comes of
// a change under way.
func wantServed(t *testing.T, pods []*corev1.Pod) {
	t.Helper()
	untilKnocks(t, pods, always(func(k knocks) bool { return k.only("iam4kube") }))
}

// wantOnlyServed checks that iam4kube answered everything after then.
func wantOnlyServed(t *testing.T, pods []*corev1.Pod, then time.Time) {
	t.Helper()
	wantServed(t, pods)
	for _, pod := range pods {
		if err := eachKnocks(t.Context(), pod, then, false, func(k knocks) bool {
			if !k.only("iam4kube") {
				t.Errorf("%s/%s: %+v, want to be answered by iam4kube each time", pod.Namespace, pod.Name, k)
			}
			return true
		}); err != nil {
			t.Error(err)
		}
	}
}

// knockers are on both workers and go these ways.
func knockers(t *testing.T, ways ...path) (all []*corev1.Pod) {
	t.Helper()
	for _, way := range ways {
		ns := namespace(t, way)
		for i, node := range []string{"worker-1", "worker-2"} {
			name := fmt.Sprintf("role-%02d", 1+i)
			role(t, ns, name)
			pod := knocker(ns, name, node)
			create(t, pod)
			all = append(all, pod)
		}
	}
	for i, pod := range slices.Clone(all) {
		all[i] = waitPod(t, pod.Namespace, pod.Name, running)
	}
	return all
}
