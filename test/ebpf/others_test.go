package ebpf

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/iam4kube/iam4kube/internal/ip2service/bpf"
	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
	"github.com/iam4kube/iam4kube/test/checkout"
	"github.com/iam4kube/iam4kube/test/netns"
	"github.com/iam4kube/iam4kube/test/node"
)

// The kernel accepts the programs for all routes that rules are tested with.
func TestKernelAcceptsThePrograms(t *testing.T) {
	r := newRig(t)
	files, err := filepath.Glob(checkout.Path("internal", "ip2service", "ruleset", "testdata", "*.json"))
	if err != nil || len(files) < 20 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, bypassed := range []bool{false, true} {
			var want routes.Routes
			if err := json.Unmarshal(content, &want); err != nil {
				t.Fatal(err)
			}
			want.Bypassed = bypassed
			if _, err := r.kernel.Sync(want); err != nil {
				t.Errorf("%s: %v", filepath.Base(file), err)
			}
			if changed, err := r.kernel.Sync(want); err != nil || changed {
				t.Errorf("%s, again: changed %v, %v", filepath.Base(file), changed, err)
			}
		}
	}
}

// While the endpoints are not known, those of an earlier run stay, also for another process.
func TestEndpointsOfAnEarlierRunStay(t *testing.T) {
	r := newRig(t)
	r.sync(t, routesTo(r.endpoints...))
	unknown := routesTo()
	unknown.Unknown = true
	later := bpf.New(pins)
	if changed, err := later.Sync(unknown); err != nil || changed {
		t.Errorf("changed %v, %v", changed, err)
	}
	if answer, err := node.Ask(t, r.pod, "169.254.169.254"); err != nil || answer.Source != podIPv4 {
		t.Errorf("%+v, %v", answer, err)
	}
	unknown.Intercept = slices.Concat(metadata[:2], ends("192.0.2.7:80")) // another flag of the new run
	if changed, err := later.Sync(unknown); err != nil || !changed {
		t.Errorf("changed %v, %v", changed, err)
	}
	if answer, err := node.Ask(t, r.pod, "192.0.2.7"); err != nil || answer.Source != podIPv4 {
		t.Errorf("%+v, %v", answer, err)
	}
}

// passing is a program that lets everything pass.
func passing(t *testing.T) *ebpf.Program {
	t.Helper()
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "other", Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return program
}

// attachAbove attaches a program to the cgroup above that of pods, where a network plugin's are.
func attachAbove(t *testing.T, program *ebpf.Program, flags uint32) {
	t.Helper()
	cgroup, err := os.Open(filepath.Dir(netns.Kubepods()))
	if err != nil {
		t.Fatal(err)
	}
	if err := link.RawAttachProgram(link.RawAttachProgramOptions{Target: int(cgroup.Fd()), Program: program, Attach: ebpf.AttachCGroupInet4Connect, Flags: flags}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := link.RawDetachProgram(link.RawDetachProgramOptions{Target: int(cgroup.Fd()), Program: program, Attach: ebpf.AttachCGroupInet4Connect})
		if err = errors.Join(err, cgroup.Close()); err != nil {
			t.Error(err)
		}
	})
}

// Flags of BPF_PROG_ATTACH.
const (
	exclusive     = 0
	allowOverride = 1
	allowMulti    = 2
)

// A program of somebody else that ours would switch off for pods is not, in silence or not;
// one that came after ours is told of. Beside one that shares, all is well.
func TestProgramsOfOthersAreNotSwitchedOff(t *testing.T) {
	for name, c := range map[string]struct {
		flags  uint32
		before bool
		refuse string
	}{
		"exclusive, before":      {exclusive, true, "so that no other one may be"},
		"to override, before":    {allowOverride, true, "so that no other one may be"},
		"exclusive, after":       {exclusive, false, "so that no other one may be"},
		"one of several, before": {allowMulti, true, ""},
		"one of several, after":  {allowMulti, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			if c.before {
				attachAbove(t, passing(t), c.flags)
			} else {
				r.sync(t, routesTo(r.endpoints...))
				attachAbove(t, passing(t), c.flags)
			}
			_, err := r.kernel.Sync(routesTo(r.endpoints...))
			if (err == nil) != (c.refuse == "") || err != nil && !strings.Contains(err.Error(), c.refuse) {
				t.Errorf("%v, want %q", err, c.refuse)
			}
			if err != nil && !errors.Is(err, routes.ErrUnsupported) {
				t.Errorf("%v is not %v", err, routes.ErrUnsupported)
			}
			// What is led by no program is left to the rules, and dropped where they do not see it.
			if c.refuse != "" && c.before {
				for bypassed, want := range []int{0, 1} {
					wanted := routesTo(r.endpoints...)
					wanted.Bypassed = bypassed == 1
					if _, err := r.kernel.Sync(wanted); !errors.Is(err, routes.ErrUnsupported) {
						t.Errorf("bypassed %d: %v", bypassed, err)
					}
					if run := effective(t, ebpf.AttachCGroupInetEgress); run != want {
						t.Errorf("bypassed %d: %d programs judge packets", bypassed, run)
					}
				}
			}
			if run, want := effective(t, ebpf.AttachCGroupInet4Connect), map[string]int{"": 2}[c.refuse]; run != max(want, 1) {
				t.Errorf("%d programs are run, want %d", run, max(want, 1))
			}
		})
	}
}

// effective is how many programs the kernel runs for pods.
func effective(t *testing.T, at ebpf.AttachType) int {
	t.Helper()
	own, err := os.Open(netns.OwnCgroup())
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	result, err := link.QueryPrograms(link.QueryOptions{Target: int(own.Fd()), Attach: at, QueryFlags: 1})
	if err != nil {
		t.Fatal(err)
	}
	return len(result.Programs)
}
