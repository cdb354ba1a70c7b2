// Command init is PID 1 of a virtual machine of test/kernels. Its root is the host's file
// system, read-only below a layer in memory, with the modules of the kernel that runs in the
// place of the host's. There it runs the test binaries that it is told to, one after the
// other, and switches the machine off.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iam4kube/iam4kube/test/kernels/job"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "init:", err)
	}
	// The host counts results, so one that is missing is a failure.
	err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	fmt.Fprintln(os.Stderr, "init: switching off:", err)
}

func run() error {
	content, err := os.ReadFile(job.File)
	if err != nil {
		return err
	}
	var j job.Job
	if err := json.Unmarshal(content, &j); err != nil {
		return err
	}
	for _, module := range j.Modules {
		if err := load(module); err != nil {
			return fmt.Errorf("loading %s: %w", module, err)
		}
	}
	if err := changeRoot(); err != nil {
		return err
	}
	results, err := os.OpenFile(job.Results, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer results.Close()
	// What nodes have loaded, and neither a rule nor a link makes the kernel load. The last two
	// are those of iptables-legacy, which loads them itself where it is allowed to.
	if output, err := exec.Command("/sbin/modprobe", "--all", "br_netfilter", "ip_tables", "ip6_tables").CombinedOutput(); err != nil {
		return fmt.Errorf("modprobe: %w: %s", err, output)
	}
	return runTests(&j, results)
}

func load(module string) error {
	file, err := os.Open(module)
	if err != nil {
		return err
	}
	defer file.Close()
	return unix.FinitModule(int(file.Fd()), "", 0)
}

// changeRoot makes the host's file system the root, also of the kernel's own calls of modprobe.
func changeRoot() error {
	const host, memory, root = "/host", "/memory", "/root"
	type mount struct {
		source, target, fstype, options string
		flags                           uintptr
	}
	for _, m := range []mount{
		{job.Tag, host, "9p", "trans=virtio,version=9p2000.L,msize=524288,cache=loose", unix.MS_RDONLY},
		{"memory", memory, "tmpfs", "", 0},
		{"root", root, "overlay", "lowerdir=" + host + ",upperdir=" + memory + "/upper,workdir=" + memory + "/work", 0},
		{"dev", root + "/dev", "devtmpfs", "", 0},
		{"proc", root + "/proc", "proc", "", 0},
		{"sys", root + "/sys", "sysfs", "", 0},
		{"cgroup2", root + "/sys/fs/cgroup", "cgroup2", "", 0},
		{job.ModulesDir, root + "/usr/lib/modules", "", "", unix.MS_BIND},
		{root, "/", "", "", unix.MS_MOVE},
	} {
		if m.fstype == "overlay" {
			if err := errors.Join(os.Mkdir(memory+"/upper", 0o755), os.Mkdir(memory+"/work", 0o755)); err != nil {
				return err
			}
		}
		if m.flags == unix.MS_MOVE {
			if err := os.Chdir(root); err != nil {
				return err
			}
		} else if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.options); err != nil {
			return fmt.Errorf("mounting %s on %s: %w", m.source, m.target, err)
		}
	}
	return errors.Join(unix.Chroot("."), os.Chdir("/"))
}

func runTests(j *job.Job, results io.Writer) error {
	var name unix.Utsname
	var up unix.Timespec
	if err := errors.Join(unix.Uname(&name), unix.ClockGettime(unix.CLOCK_BOOTTIME, &up)); err != nil {
		return err
	}
	booted := job.Result{Package: unix.ByteSliceToString(name.Release[:]), Seconds: time.Duration(up.Nano()).Seconds()}
	fmt.Printf("init: Linux %s, booted in %.1f s\n", booted.Package, booted.Seconds)
	tell := json.NewEncoder(results)
	if err := tell.Encode(booted); err != nil {
		return err
	}
	for _, test := range j.Tests {
		fmt.Println("init: test", test.Package)
		begin := time.Now()
		command := exec.Command(test.Command[0], test.Command[1:]...)
		command.Dir, command.Env = test.Dir, j.Env
		command.Stdout, command.Stderr = os.Stdout, os.Stderr
		result := job.Result{Package: test.Package}
		if err := command.Run(); err != nil {
			result.Err = err.Error()
		}
		result.Seconds = time.Since(begin).Seconds()
		if err := tell.Encode(result); err != nil {
			return err
		}
	}
	return nil
}
