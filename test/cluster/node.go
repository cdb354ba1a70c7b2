package cluster

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// runNode is a node's PID 1, in namespaces of its own.
func runNode(dir string) error {
	n := &node{programs: map[int]nodeProgram{}}
	text, err := os.ReadFile(filepath.Join(dir, settingsFile))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, &n.settings); err != nil {
		return err
	}
	n.name = os.Getenv(nodeEnv)
	for n.index = range n.Nodes {
		if n.Nodes[n.index].Name == n.name {
			break
		}
	}
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil { // until the link is there
		return err
	}
	for _, step := range []func() error{n.mount, n.connect, n.writeConfiguration, n.run} {
		if err := step(); err != nil {
			return err
		}
	}
	return n.reap()
}

type node struct {
	settings
	name  string
	index int
	// programs are the node's own, by PID.
	programs map[int]nodeProgram
}

// nodeProgram is what start starts.
type nodeProgram struct {
	name, path string
	args       []string
}

func (n *node) path(name string) string { return filepath.Join(n.Dir, n.name, name) }

// mount gives the node folders of its own where kubelet, containerd and the CNI plug-ins
// expect them, and hides the machine's settings from kubelet, which writes some.
func (n *node) mount() error {
	if err := freshProc(); err != nil {
		return err
	}
	// Pods may ask for mounts to propagate.
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_SHARED, ""); err != nil {
		return err
	}
	for _, folder := range []string{"var/lib/kubelet", "var/lib/containerd", "var/lib/cni", "var/log/pods", "var/tmp", "cni", "containerd"} {
		if err := os.MkdirAll(n.path(folder), 0o755); err != nil {
			return err
		}
	}
	if err := os.Symlink("/run", n.path("var/run")); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := syscall.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mounting /run: %w", err)
	}
	if err := syscall.Mount(n.path("var"), "/var", "", syscall.MS_BIND, ""); err != nil {
		return fmt.Errorf("mounting /var: %w", err)
	}
	// What is pinned here is the node's own, and goes when it is powered off.
	if err := syscall.Mount("bpf", "/sys/fs/bpf", "bpf", 0, "mode=700"); err != nil {
		return fmt.Errorf("mounting /sys/fs/bpf: %w", err)
	}
	for setting, value := range map[string]string{"vm/overcommit_memory": "1", "kernel/panic": "10", "kernel/panic_on_oops": "1"} {
		file := n.path(filepath.Base(setting))
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := syscall.Mount(file, "/proc/sys/"+setting, "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("mounting /proc/sys/%s: %w", setting, err)
		}
	}
	return syscall.Sethostname([]byte(n.name))
}

// connect configures the node's link. Whatever is for none of the other nodes' pods goes to
// the supervisor's namespace, and no further.
func (n *node) connect() error {
	lines := []string{
		"link set lo up",
		"address add " + nodeAddress(n.index) + "/24 dev eth0",
		"link set eth0 up",
		"route add default via " + gateway,
	}
	for other := range n.Nodes {
		if other != n.index {
			lines = append(lines, "route add "+podRange(other)+" via "+nodeAddress(other))
		}
	}
	if err := ip(lines...); err != nil {
		return err
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644)
}

// run starts what a node runs. kubelet starts when the API server listens; it would wait for
// long after a failed attempt.
func (n *node) run() error {
	if err := n.start("containerd", "containerd", "--config", n.path("containerd/config.toml")); err != nil {
		return err
	}
	if !until(func() bool { return command("ctr", "--namespace=k8s.io", "version") == nil }) {
		return errors.New("containerd does not start")
	}
	for _, image := range n.Images {
		if err := command("ctr", "--namespace=k8s.io", "images", "import", image); err != nil {
			return err
		}
	}
	if !until(func() bool {
		connection, err := net.Dial("tcp", net.JoinHostPort(nodeAddress(0), fmt.Sprint(apiPort)))
		if err == nil {
			connection.Close()
		}
		return err == nil
	}) {
		return errors.New("the API server does not listen")
	}
	if err := n.start("kubelet", filepath.Join(n.BinDir, "kubelet"),
		"--config="+n.path("kubelet.yaml"), "--kubeconfig="+n.userFile(n.name), "--hostname-override="+n.name,
		"--node-ip="+nodeAddress(n.index), "--root-dir=/var/lib/kubelet", "--node-labels="+n.labels()); err != nil {
		return err
	}
	return n.start("kube-proxy", filepath.Join(n.BinDir, "kube-proxy"), "--config="+n.path("kube-proxy.yaml"))
}

// labels are those that a kubelet may give its node.
func (n *node) labels() string {
	zone := n.Nodes[n.index].Zone
	return fmt.Sprintf("topology.kubernetes.io/zone=%s,topology.kubernetes.io/region=%s", zone, zone[:len(zone)-1])
}

// start runs a program of the node; that it ends is seen by reap alone.
func (n *node) start(name, path string, args ...string) error {
	log, err := os.OpenFile(filepath.Join(n.Dir, "log", n.name+"-"+name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", name, err)
	}
	n.programs[cmd.Process.Pid] = nodeProgram{name, path, args}
	return nil
}

// reap waits for every process that ends, as PID 1 has to: those of the pods' shims, too. What
// the node itself runs is started again, which kube-proxy counts on: it ends when its node's
// addresses change, also when they come later than it waits for them.
func (n *node) reap() error {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if errors.Is(err, syscall.ECHILD) {
			return nil
		}
		if err != nil {
			continue
		}
		p, ours := n.programs[pid]
		fmt.Printf("PID %d (%s) ended: exit status %d, signal %d\n", pid, cmp.Or(p.name, "orphan"), status.ExitStatus(), status.Signal())
		if !ours {
			continue
		}
		delete(n.programs, pid)
		<-time.After(time.Second) // one that always fails must not keep the machine busy
		if err := n.start(p.name, p.path, p.args...); err != nil {
			return err
		}
	}
}
