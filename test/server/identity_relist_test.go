package server

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
)

// Pods go, and others get their addresses, while the server's watches are broken, and the
// watches cannot be resumed: no event ever tells of the deletions, they show only in that
// the next full list lacks the pods. The API server is the test's own, because it is
// stopped for that.
func TestDeletionsAreMissingInTheNextList(t *testing.T) {
	cp := newControlPlane(t)
	gate, err := controlplane.NewGate(cp.Config().Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(gate.Close)
	rights, err := cp.ServiceAccountConfig(t.Context(), environment.Namespace, environment.ServiceAccount)
	if err != nil {
		t.Fatal(err)
	}
	const namespace = "relisted"
	succeed := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	succeed(cp.CreateNamespace(t.Context(), namespace))
	create := func(w workload) {
		t.Helper()
		_, err := cp.CreatePod(t.Context(), w.Pod)
		succeed(err)
	}
	before, after, gone := newTenant(namespace, "before"), newTenant(namespace, "after"), newTenant(namespace, "gone")
	after = after.at(before)
	renewed := newTenant(namespace, "renewed")
	for _, w := range []workload{before, after, gone, renewed} {
		succeed(cp.CreateServiceAccount(t.Context(), controlplane.ServiceAccount{Namespace: namespace, Name: w.Name, Annotations: w.annotations()}))
	}
	for _, w := range []workload{before, gone, renewed} {
		create(w)
	}
	cfg := env.Config(t)
	cfg.Kubeconfig = cp.Kubeconfig(t, gate.Config(rights))
	cfg.MaxWait = 200 * time.Millisecond
	s := env.Start(t, cfg)
	s.WaitReady(t)
	for _, w := range []workload{before, gone, renewed} {
		expectHolder(t, s, w.from, w.Name)
	}
	client := startAsking(t, s, before.from)

	succeed(gate.Set(controlplane.Refuse))
	for _, w := range []workload{before, gone, renewed} {
		succeed(cp.DeletePod(t.Context(), namespace, w.Name, 0))
	}
	create(after)
	old := renewed
	renewed.ServiceAccount = after.Name // a new pod with the name of one that was missed
	renewed.from = env.Address()
	renewed.IPs = []string{renewed.from.String()}
	create(renewed)
	lists := podLists(t, cp)
	succeed(cp.ExpireWatches(t.Context()))
	checkHolder(t, s, before.from, before.Name, "the API server cannot be reached")
	succeed(gate.Set(controlplane.Pass))

	for _, c := range []struct {
		w    workload
		want string
	}{{before, after.Name}, {gone, "pod"}, {old, "pod"}, {renewed, after.Name}} {
		expectHolder(t, s, c.w.from, c.want)
	}
	environment.Eventually(t, patience, func() error {
		if n := podLists(t, cp); n <= lists {
			return errors.New("the pods were not listed again")
		}
		return nil
	})
	holders := map[string]int{}
	for i, r := range client.stop() {
		who := holderIn(t, r.StatusCode, r.body)
		if who == before.Name && holders[after.Name] > 0 {
			t.Fatalf("answer %d is the old pod's again", i)
		}
		holders[who]++
	}
	if len(holders) != 2 {
		t.Errorf("answers: %v, want some of %s and then some of %s", holders, before.Name, after.Name)
	}
}

// newControlPlane starts an API server for one test, with the rights of the server.
func newControlPlane(t *testing.T) *controlplane.ControlPlane {
	t.Helper()
	cp, err := controlplane.Start(t.Context(), controlplane.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cp.Stop(); err != nil {
			t.Error(err)
		}
	})
	err = errors.Join(cp.CreateNamespace(t.Context(), environment.Namespace), cp.ApplyFiles(t.Context(), "../../manifests/base/server-rbac.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return cp
}

// podLists is how often all pods were listed, or streamed from the start, according to
// the API server.
func podLists(t *testing.T, cp *controlplane.ControlPlane) (n int) {
	t.Helper()
	log, err := os.ReadFile(cp.AuditLog())
	if err != nil {
		t.Fatal(err)
	}
	user := fmt.Sprintf(`"system:serviceaccount:%s:%s"`, environment.Namespace, environment.ServiceAccount)
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, user) && strings.Contains(line, `"requestURI":"/api/v1/pods?`) &&
			(strings.Contains(line, `"verb":"list"`) || strings.Contains(line, "sendInitialEvents=true")) {
			n++
		}
	}
	return n
}
