//go:build linux

package bpf

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// place is where programs are attached.
type place struct {
	// pods is the folder of the cgroup that all pods are below.
	pods string
	// own is that of the cgroup of this process, which is one of them.
	own string
	// root is that of the hierarchy, as far as it can be seen.
	root string
}

// errNoPods is a process that is in no pod.
const errNoPods = refusalError("no cgroup of pods was found above that of this process: the node needs cgroup v2 (a kernel that has cgroup v1 as well will do), the container the host's hierarchy (hostPath /sys/fs/cgroup, read-only), and the pod a kubelet that has cgroups for pods (--cgroups-per-qos)")

// findPods looks for the cgroup kubepods that this process is below. The kubelet's driver
// systemd calls it kubepods.slice, or with a cgroup root of its own, as kind has it, for
// example kubelet-kubepods.slice. Attached there, and not at the root, programs are none
// of the business of network plugins, which attach and detach theirs at the root.
func findPods() (place, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return place{}, err
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return place{}, err
	}
	var id uint64
	hierarchies := cgroup2Mounts(string(mounts))
	for _, m := range hierarchies {
		relative, below := strings.CutPrefix(strings.TrimSuffix(cgroup2Path(string(own)), "/")+"/", strings.TrimSuffix(m.root, "/")+"/")
		if !below {
			continue
		}
		folder := filepath.Join(m.at, relative)
		if p, found := podsAbove(m.at, folder); found {
			return p, nil
		}
		if i, err := inode(folder); err == nil {
			id = i
		}
	}
	// In a cgroup namespace no path says where this process is, but its number does.
	for _, m := range hierarchies {
		if p, found := podsAbove(m.at, search(m.at, id)); found {
			return p, nil
		}
	}
	return place{}, errNoPods
}

// cgroup2Path is that of a process in the unified hierarchy, from its /proc/PID/cgroup.
func cgroup2Path(of string) string {
	for line := range strings.Lines(of) {
		if path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			return path
		}
	}
	return ""
}

// mount is one of the unified hierarchy: its folder, and the cgroup that it begins with.
type mount struct{ at, root string }

// cgroup2Mounts reads them from a mountinfo, proc_pid_mountinfo(5).
func cgroup2Mounts(mountinfo string) (mounts []mount) {
	for line := range strings.Lines(mountinfo) {
		before, after, _ := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if strings.HasPrefix(after, "cgroup2 ") && len(fields) > 4 {
			mounts = append(mounts, mount{at: fields[4], root: fields[3]})
		}
	}
	return mounts
}

// podsAbove finds the topmost cgroup of pods between a hierarchy's folder and one below it.
func podsAbove(root, own string) (place, bool) {
	relative, err := filepath.Rel(root, own)
	if own == "" || err != nil {
		return place{}, false
	}
	pods := root
	for name := range strings.SplitSeq(relative, "/") {
		pods = filepath.Join(pods, name)
		if name == "kubepods" || name == "kubepods.slice" || strings.HasSuffix(name, "-kubepods.slice") {
			return place{pods: pods, own: own, root: root}, true
		}
	}
	return place{}, false
}

// search finds the folder with a number, or "".
func search(root string, id uint64) (found string) {
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error { // "" says that it was not found
		if err != nil || !d.IsDir() || path == root {
			return nil //nolint:nilerr // what cannot be read is not it
		}
		if i, err := inode(path); err == nil && i == id {
			found = path
			return fs.SkipAll
		}
		return nil
	})
	return found
}

// inode is the number of a folder, which is the id of its cgroup.
func inode(path string) (uint64, error) {
	var stat unix.Stat_t
	err := unix.Stat(path, &stat)
	return stat.Ino, err
}

// gone says that there is no such cgroup any more, or that this process has left it.
func (p place) gone() bool {
	processes, err := os.ReadFile(filepath.Join(p.own, "cgroup.procs"))
	return err != nil || !bytes.Contains(append([]byte("\n"), processes...), fmt.Appendf(nil, "\n%d\n", os.Getpid()))
}
