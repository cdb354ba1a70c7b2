package ebpf

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/iam4kube/iam4kube/internal/ip2service/bpf"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/node"
)

// flags are those of an ip2service that has no API server: it guards, and refuses, or goes on
// with the endpoints of an earlier run.
func flags(t *testing.T) []string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	const nobody = `{"apiVersion": "v1", "kind": "Config", "current-context": "a", "contexts": [{"name": "a", "context": {"cluster": "a"}}], "clusters": [{"name": "a", "cluster": {"server": "http://127.0.0.1:1"}}]}`
	if err := os.WriteFile(file, []byte(nobody), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"--kubeconfig", file, "--data-path", "ebpf"}
}

// load opens connections from the pod, one after the other, until its function is called,
// which says how many there were. With endpoints each has to be to one of them, and without
// each has to be refused, or to time out where it is dropped.
func (r *rig) load(t *testing.T, endpoints []netip.AddrPort) (count *atomic.Int64, stop func() int64) {
	t.Helper()
	var ended atomic.Bool
	count = &atomic.Int64{}
	done := make(chan error, 1)
	go func() {
		done <- r.pod.Do(func() error {
			for ; !ended.Load(); count.Add(1) {
				err := connectTo(metadata[0], endpoints)
				if len(endpoints) == 0 && (errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ETIMEDOUT)) {
					err = nil
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
	}()
	return count, func() int64 {
		ended.Store(true)
		if err := <-done; err != nil {
			t.Errorf("after %d connections: %v", count.Load(), err)
		}
		return count.Load()
	}
}

// names are those of the pinned programs.
func names(t *testing.T) (programs []string) {
	t.Helper()
	entries, err := os.ReadDir(pins)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "iam4kube_") {
			programs = append(programs, e.Name())
		}
	}
	if len(programs) < 6 {
		t.Fatalf("pinned are %v", programs)
	}
	return programs
}

// attachedAgain says that a pinned link is attached.
func attachedAgain(name string) error {
	l, err := link.LoadPinnedLink(filepath.Join(pins, name), nil)
	if err != nil {
		return err
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return err
	}
	if c := info.Cgroup(); c == nil || c.CgroupId == 0 {
		return fmt.Errorf("%s is attached nowhere", name)
	}
	return nil
}

// Whatever somebody does to one program or to the pins, it is put back within a second, and
// meanwhile nothing gets through, with nothing else to see it.
func TestChangesByOthersArePutBack(t *testing.T) {
	r := newRig(t)
	r.hostRouting(t)
	i := node.StartProgram(t, flags(t)...)
	count, stop := r.load(t, nil)
	changes := map[string]func() error{
		"all pins removed": func() error {
			entries, err := os.ReadDir(pins)
			for _, e := range entries {
				err = errors.Join(err, os.Remove(filepath.Join(pins, e.Name())))
			}
			return err
		},
	}
	for _, name := range names(t) {
		changes["detached "+name] = func() error {
			l, err := link.LoadPinnedLink(filepath.Join(pins, name), nil)
			if err != nil {
				return err
			}
			return errors.Join(l.Detach(), l.Close())
		}
		changes["removed "+name] = func() error { return os.Remove(filepath.Join(pins, name)) }
	}
	all := names(t)
	for what, change := range changes {
		before := i.Metric(t, "iam4kube_ruleset_repairs_total")
		start := time.Now()
		if err := change(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		environment.Eventually(t, 10*time.Second, func() error {
			for _, name := range all {
				if err := attachedAgain(name); err != nil {
					return err
				}
			}
			return nil
		})
		if took := time.Since(start); took > environment.AtMost(time.Second) {
			t.Errorf("%s: put back after %v", what, took)
		}
		i.WaitMetric(t, "iam4kube_ruleset_repairs_total", fmt.Sprint(before+1))
		// A connection that was dropped meanwhile must not be tried again during the next change.
		opened := count.Load()
		environment.Eventually(t, 10*time.Second, func() error {
			if count.Load() < opened+2 {
				return errors.New("a connection is still being opened")
			}
			return nil
		})
		if leaks := r.far.TakeLeaks(t); leaks != 0 {
			t.Errorf("%s: %d packets leaked", what, leaks)
		}
	}
	t.Logf("%d connections refused meanwhile", stop())
}

// kills is how often the program is killed.
const kills = 100

// Killed at any moment of its start, and of what it does then, the program leaves the guard
// and the endpoints of before, again with nothing else to see a leak.
func TestKilledAtAnyMoment(t *testing.T) {
	r := newRig(t)
	r.hostRouting(t)
	for _, endpoints := range [][]netip.AddrPort{nil, r.endpoints} {
		r.sync(t, routesTo(endpoints...))
		_, stop := r.load(t, endpoints)
		for range kills / 2 {
			i := node.Launch(t, flags(t)...)
			moment := time.NewTimer(rand.N(environment.AtMost(200 * time.Millisecond)))
			<-moment.C
			i.Kill()
			if leaks := r.far.TakeLeaks(t); leaks != 0 {
				t.Fatalf("%d packets leaked", leaks)
			}
		}
		t.Logf("%d connections meanwhile", stop())
	}
	after := node.StartProgram(t, flags(t)...)
	if err := r.pod.Do(func() error { return connectTo(metadata[0], r.endpoints) }); err != nil {
		t.Errorf("with the endpoints of before: %v", err)
	}
	if attached, effective := after.Metric(t, `iam4kube_bpf_programs{state="attached"}`), after.Metric(t, `iam4kube_bpf_programs{state="effective"}`); attached < 6 || attached != effective {
		t.Errorf("%d programs are attached and %d effective", attached, effective)
	}
}

// The cgroup that programs were attached to is gone and made again, as by a kubelet that was
// reset: links to the old one are of no use.
func TestDefunctLinksAreReplaced(t *testing.T) {
	r := newRig(t)
	r.sync(t, routesTo(r.endpoints...))
	for _, name := range names(t) {
		l, err := link.LoadPinnedLink(filepath.Join(pins, name), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(l.Detach(), l.Close()); err != nil { // which is what the end of a cgroup does
			t.Fatal(err)
		}
	}
	if changed, err := bpf.New(pins).Sync(routesTo(r.endpoints...)); err != nil || !changed {
		t.Fatalf("changed %v, %v", changed, err)
	}
	if err := r.pod.Do(func() error { return connectTo(metadata[0], r.endpoints) }); err != nil {
		t.Error(err)
	}
}
