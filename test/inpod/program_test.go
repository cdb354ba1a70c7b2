package inpod

import (
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/netns"
	"github.com/iam4kube/iam4kube/test/node"
)

func released(t *testing.T) (path string) {
	t.Helper()
	path, err := node.InitProgram()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWithoutNetAdminTheErrorSaysWhatToDo(t *testing.T) {
	netns.NewFarSide(t)
	pod := netns.AddPod(t, podIPv4)
	command := append([]string{"setpriv", "--bounding-set", "-net_admin", released(t)}, mode("--to", serviceIPv4)...)
	startCommand(t, pod, command...).exits(t, failed, "NET_ADMIN is missing", "securityContext.capabilities.add")
}

func TestNetAdminAloneIsEnough(t *testing.T) {
	netns.NewFarSide(t)
	nodeRules(t, services)
	serve(t, ready)
	pod := netns.AddPod(t, podIPv4, podIPv6)
	command := append([]string{"setpriv", "--bounding-set", "-all,+net_admin", "--no-new-privs", released(t)}, mode("--to", serviceIPv4, "--to", serviceIPv6)...)
	startCommand(t, pod, command...).exits(t, 0, isReady)
	reaches(t, pod, metadataIPv4, "server", podIPv4)
}

// An image from scratch has no shell, no nft or iptables and no C library; here there is
// not even /proc. Nor is a proxy asked.
func TestProgramNeedsNothingBesideItself(t *testing.T) {
	file, err := elf.Open(released(t))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, p := range file.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("the program is linked dynamically")
		}
	}
	root := t.TempDir()
	content, err := os.ReadFile(released(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "ip2service"), content, 0o700); err != nil {
		t.Fatal(err)
	}
	netns.NewFarSide(t)
	nodeRules(t, services)
	serve(t, ready)
	pod := netns.AddPod(t, podIPv4, podIPv6)
	c := &initContainer{Cmd: exec.CommandContext(t.Context(), "/ip2service", mode("--to", serviceIPv4)...)}
	c.Dir = "/"
	c.Env = []string{"http_proxy=http://" + serverIPv4 + ":1"} // not even if the image sets it
	c.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	c.start(t, pod)
	c.exits(t, 0, isReady)
	reaches(t, pod, metadataIPv4, "server", podIPv4)
	rejected(t, pod, "tcp", "[fd00:ec2::254]:80")
}

// What is put into pods knows one mode, and says so.
func TestProgramHasModePodAlone(t *testing.T) {
	netns.NewFarSide(t)
	pod := netns.AddPod(t, podIPv4)
	startCommand(t, pod, released(t), "--mode", "node").exits(t, 2, "mode", "want one of pod")
	startCommand(t, pod, released(t), "--to", serviceIPv4, "--probe-timeout", "0").exits(t, 0)
}

// The contract: less than 100 ms of its own time from start to exit.
func TestProgramIsSoonDone(t *testing.T) {
	path := released(t)
	netns.NewFarSide(t)
	nodeRules(t, services)
	serve(t, ready)
	const runs = 20
	wall, cpu := make([]time.Duration, runs), make([]time.Duration, runs)
	for i := range runs {
		// The first call of a new pod each: with rules in place there is less to do.
		pod := netns.AddPod(t, fmt.Sprint("10.244.3.", 2+i), fmt.Sprint("fd00:10:244:3::", 2+i))
		begin := time.Now()
		c := startCommand(t, pod, append([]string{path}, mode("--to", serviceIPv4, "--to", serviceIPv6)...)...)
		c.exits(t, 0, isReady)
		wall[i] = time.Since(begin)
		cpu[i] = c.ProcessState.UserTime() + c.ProcessState.SystemTime()
	}
	slices.Sort(wall)
	slices.Sort(cpu)
	t.Logf("median of %d runs: %v from start to exit, %v of CPU time; slowest: %v and %v", runs, wall[runs/2], cpu[runs/2], wall[runs-1], cpu[runs-1])
	if median, most := cpu[runs/2], environment.AtMost(100*time.Millisecond); median >= most {
		t.Errorf("%v of CPU time, want less than %v", median, most)
	}
	if median := wall[runs/2]; median >= environment.AtMost(time.Second) { // other processes run too
		t.Errorf("%v from start to exit, want less than 100ms on an idle machine", median)
	}
}

// The contract: an image of less than 10 MiB.
func TestProgramIsSmall(t *testing.T) {
	const mebi, most = 1 << 20, 10
	info, err := os.Stat(released(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%.1f MiB", float64(info.Size())/mebi)
	if info.Size() >= most*mebi {
		t.Errorf("want less than %d MiB", most)
	}
}
