package routingload

import (
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/netns"
	"github.com/iam4kube/iam4kube/test/node"
)

// Two ip2services on one node, as while one replaces the other in spite of maxSurge 0, make
// the same rules, refuse nobody, and let each other be.
func TestTwoAtOnce(t *testing.T) {
	netns.NewFarSide(t)
	addEndpoints(t, endpointCount)
	l := newLoad(t, podCount)
	k := watchKernel(t)
	s := newScript(t)
	one, two := s.service.Start(t), s.service.Start(t)
	one.WaitReady(t)
	two.WaitReady(t)
	l.start(t, visitPause, kept)
	const changes = 200
	for range changes {
		s.next(t)
	}
	s.settle(t, k)
	l.end()
	// One of them may still see the last endpoint off when the other has done so.
	transactions, quiet := k.count(), false
	for range 3 {
		before := k.count()
		<-time.After(time.Second)
		quiet = quiet || k.count() == before
	}
	if !quiet {
		t.Errorf("%d changes of the rules in three seconds without any change", k.count()-transactions)
	}
	if transactions > 5*changes {
		t.Errorf("%d transactions for %d changes", transactions, changes)
	}
	s.wantOurs(t)
	t.Logf("%d changes, %d transactions, %d and %d repairs", changes, transactions,
		one.Metric(t, "iam4kube_ruleset_repairs_total"), two.Metric(t, "iam4kube_ruleset_repairs_total"))
	one.WaitReady(t)
	two.WaitReady(t)
	for _, e := range l.fresh {
		if e.refused {
			t.Errorf("a connect failed: %v", e.err)
		}
	}
}

// Case 18: a table that another process owns cannot be changed. ip2service says so and
// takes over as soon as that process ends.
func TestTableOfAnotherOwner(t *testing.T) {
	netns.NewFarSide(t)
	endpoints := addresses(addEndpoints(t, 1))
	pod := netns.AddPod(t, "10.244.0.2")
	k := watchKernel(t)
	owner := exec.Command("nft", "--interactive")
	owner.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	commands, err := owner.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = owner.Wait() })
	t.Cleanup(func() { commands.Close() })
	if _, err := io.WriteString(commands, "add table ip iam4kube { flags owner; }\n"); err != nil {
		t.Fatal(err)
	}
	k.wait(t, 0, func(x transaction) bool { return x.ours })
	service := cluster.NewService()
	service.Set(t, "all", node.Ready(endpoints[0].String()))
	i := service.Start(t)
	const failures = 8 // in so many the pauses between them have grown to their longest
	environment.Eventually(t, patience, func() error {
		if have := i.Metric(t, `iam4kube_ruleset_applies_total{outcome="failure"}`); have < failures {
			return fmt.Errorf("%d failed tries to change the rules, want %d", have, failures)
		}
		return nil
	})
	status, body := i.Get(t, "/readyz")
	if status != http.StatusServiceUnavailable || !strings.Contains(body, "owned by another process") {
		t.Errorf("readyz: %d %s, want that it says whose the table is", status, body)
	}
	commands.Close()
	if err := owner.Wait(); err != nil {
		t.Fatal(err)
	}
	count, ended := k.count(), time.Now()
	took := k.wait(t, count, func(x transaction) bool { return x.by == "ip2service" }).at.Sub(ended)
	t.Logf("taken over %v after its end", took)
	if took > time.Second {
		t.Error("want it within a second")
	}
	i.WaitReady(t)
	_ = pod.Do(func() error {
		if e := visit(&ports[0]); e.by != 'a' {
			t.Errorf("%+v, want an answer of the endpoint", e)
		}
		return nil
	})
}
