package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// MainInPods is Main for tests of eBPF, which no user namespace may use: the caller has to be
// root. The test binary is a process of a pod then, in a tree of cgroups of its own, and so
// is all that it starts. Its sockets are a pod's where it makes them in the network namespace
// of a Pod, and a hostNetwork pod's elsewhere. /sys/fs/bpf is its own, too.
func MainInPods(m *testing.M, run func() int) {
	if os.Getenv(marker) == "" {
		if os.Geteuid() != 0 {
			fmt.Fprintln(os.Stderr, "netns: these tests need root, for eBPF")
			os.Exit(1)
		}
		tree, err := newTree()
		if err != nil {
			fmt.Fprintln(os.Stderr, "netns: making cgroups:", err)
			os.Exit(1)
		}
		if err := os.Setenv(treeVariable, tree); err != nil {
			panic(err)
		}
		status := reexecute(&syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS})
		if err := removeTree(tree); err != nil {
			fmt.Fprintln(os.Stderr, "netns: removing cgroups:", err)
			status = max(status, 1)
		}
		os.Exit(status)
	}
	if err := errors.Join(prepare(), preparePods()); err != nil {
		fmt.Fprintln(os.Stderr, "netns:", err)
		os.Exit(1)
	}
	if run == nil {
		run = m.Run
	}
	os.Exit(run())
}

// treeVariable is the environment variable with the folder of the cgroups.
const treeVariable = "IAM4KUBE_TEST_CGROUPS"

// Kubepods is the folder of the cgroup that all pods are below. Its parent stands for the
// root of a node's hierarchy.
func Kubepods() string { return filepath.Join(os.Getenv(treeVariable), "kubepods") }

// OwnCgroup is that of the test binary.
func OwnCgroup() string {
	return filepath.Join(Kubepods(), "burstable", "poda4c7fd42-4d41-4a3e-9d29-43ac0a3a1b6e", "container")
}

func newTree() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[2] == "cgroup2" {
			tree := filepath.Join(fields[1], fmt.Sprint("iam4kube-test-", os.Getpid()))
			return tree, os.Mkdir(tree, 0o755)
		}
	}
	return "", errors.New("cgroup v2 is not mounted (mount -t cgroup2 none FOLDER)")
}

// removeTree removes the cgroups, whose processes have ended or do so now.
func removeTree(tree string) error {
	kill := filepath.Join(tree, "cgroup.kill")
	if err := os.WriteFile(kill, []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var err error
	for range 200 {
		if err = removeCgroups(tree); err == nil || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		_, _ = unix.Poll(nil, 25) // the last processes of a cgroup go some time after their end
	}
	return err
}

func removeCgroups(folder string) error {
	entries, err := os.ReadDir(folder)
	for _, e := range entries {
		if e.IsDir() {
			err = errors.Join(err, removeCgroups(filepath.Join(folder, e.Name())))
		}
	}
	return errors.Join(err, os.Remove(folder))
}

func preparePods() error {
	if err := os.MkdirAll(OwnCgroup(), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(OwnCgroup(), "cgroup.procs"), []byte("0"), 0); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	if err := unix.Mount("bpf", "/sys/fs/bpf", "bpf", 0, ""); err != nil {
		return fmt.Errorf("mounting a BPF file system: %w", err)
	}
	return nil
}
