package cluster

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

const cgroupRoot = "/sys/fs/cgroup"

// weights are a node's, among the others and each thread of what runs outside of cgroups:
// kubelet, containerd and the control plane, of which each thread weighs as much as a cgroup
// without a weight. On a node of its own, pods weigh as much for each of its processors as all of
// the system's programs do together.
var weights = map[string]string{"cpu.shares": "4096", "cpu.weight": "400"}

// cgroupPrefix begins the names of the cgroups of one cluster's nodes.
func cgroupPrefix(dir string) string {
	h := fnv.New32a()
	_, _ = h.Write([]byte(dir))
	return fmt.Sprintf("iam4kube-%08x-", h.Sum32())
}

func (s *settings) cgroup(node string) string { return cgroupPrefix(s.Dir) + node }

// makeCgroups makes a node's subtree in every hierarchy that the machine has mounted, v1 or
// v2. The machine's own cgroups stay as they are. As after a boot, it is empty: for each
// container of before, kubelet would wait for containerd for three seconds, one by one.
func (s *supervisor) makeCgroups(node string) error {
	if err := removeCgroups(s.cgroup(node)); err != nil {
		return err
	}
	hierarchies, err := hierarchies()
	if err != nil {
		return err
	}
	for _, hierarchy := range hierarchies {
		dir := filepath.Join(hierarchy, s.cgroup(node))
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("making a cgroup: %w", err)
		}
		for file, weight := range weights {
			file, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
			if errors.Is(err, os.ErrNotExist) {
				continue // another hierarchy's
			}
			if err == nil {
				_, err = file.WriteString(weight)
				err = errors.Join(err, file.Close())
			}
			if err != nil {
				return fmt.Errorf("weighing a cgroup: %w", err)
			}
		}
		// Without them no process can be in it.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			parents, err := os.ReadFile(filepath.Join(hierarchy, file))
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, file), parents, 0o644)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// hierarchies are the mounted ones: one folder for each controller of cgroup v1, or v2's own.
func hierarchies() ([]string, error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	var found []string
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if len(fields) > 2 && strings.HasPrefix(fields[2], "cgroup") && strings.HasPrefix(fields[1], cgroupRoot) {
			found = append(found, fields[1])
		}
	}
	if len(found) == 0 {
		return nil, errors.New("no cgroups are mounted on " + cgroupRoot)
	}
	return found, nil
}

// removeCgroups removes those whose names match, once their last process has ended.
func removeCgroups(names string) error {
	found, err := filepath.Glob(filepath.Join(cgroupRoot, names))
	if err != nil {
		return err
	}
	deeper, err := filepath.Glob(filepath.Join(cgroupRoot, "*", names))
	if err != nil {
		return err
	}
	for _, dir := range append(found, deeper...) {
		if err := removeTree(dir); err != nil {
			return err
		}
	}
	return nil
}

// removeTree removes folders from the deepest up, as cgroups want it.
func removeTree(dir string) error {
	var folders []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			folders = append(folders, path)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, folder := range slices.Backward(folders) {
		if !until(func() bool {
			err = syscall.Rmdir(folder)
			return err == nil || errors.Is(err, syscall.ENOENT)
		}) {
			return fmt.Errorf("removing the cgroup %s: %w", folder, err)
		}
	}
	return nil
}
