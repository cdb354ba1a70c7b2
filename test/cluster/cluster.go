// Package cluster runs a real Kubernetes cluster on one machine, without Docker and without
// an image registry: etcd, API server, controller-manager, scheduler, cert-manager, and nodes
// with containerd, runc, kubelet and kube-proxy.
//
// A supervisor process owns all of it. It is PID 1 of a PID namespace and in a network and
// a mount namespace of its own, and so is each node below it; nothing of the cluster is seen
// on the machine but its folder, its cgroups and the API server's port on 127.0.0.1, and
// everything ends with the supervisor. From the network namespaces there is no way out: the
// nodes' default route leads to the supervisor's, where a metadata service stands for the
// one of a cloud's machine and counts every packet that gets there (Leaks).
//
// What runs in the cluster belongs to the tests.
package cluster

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	corev1 "k8s.io/api/core/v1"

	"github.com/iam4kube/iam4kube/test/controlplane"
)

// Options of a cluster.
type Options struct {
	// ProxyMode is kube-proxy's: nftables or iptables.
	ProxyMode string
	// CNI is the plug-in that makes the pods' links: ptp or bridge.
	CNI   string
	Nodes []Node
	// Images are docker-archive files that every node gets; one has the pause image PauseImage.
	Images []string
}

// PauseImage is what pods' sandboxes run.
const PauseImage = "registry.k8s.io/pause:iam4kube"

// Node of a cluster. The control plane runs in the network namespace of the first.
type Node struct {
	Name   string
	Zone   string
	Labels map[string]string
	Taints []corev1.Taint
}

// FourNodes are two for the server, which nobody else may run on, and two for pods.
func FourNodes() []Node {
	server := "node-restriction.kubernetes.io/iam4kube-server"
	var nodes []Node
	for i, zone := range []string{"eu-west-1a", "eu-west-1b"} {
		nodes = append(nodes, Node{
			Name: fmt.Sprintf("server-%d", i+1), Zone: zone, Labels: map[string]string{server: "true"},
			Taints: []corev1.Taint{{Key: server, Value: "true", Effect: corev1.TaintEffectNoSchedule}},
		})
	}
	for i, zone := range []string{"eu-west-1a", "eu-west-1b"} {
		nodes = append(nodes, Node{Name: fmt.Sprintf("worker-%d", i+1), Zone: zone})
	}
	return nodes
}

// Cluster is a running cluster, or where one may run.
type Cluster struct {
	// Dir holds everything: `log` has the programs' output.
	Dir string
}

// Kubeconfig is for the machine: it reaches the API server on 127.0.0.1, with all rights.
func (c Cluster) Kubeconfig() string { return filepath.Join(c.Dir, "kubeconfig") }

// InnerKubeconfig is for programs on the nodes, with all rights.
func (c Cluster) InnerKubeconfig() string { return filepath.Join(c.Dir, "pki", "admin.kubeconfig") }

// RegistryHosts is the folder in which the nodes' runtimes look up, at each pull, where a registry is:
// https://github.com/containerd/containerd/blob/main/docs/hosts.md.
func (c Cluster) RegistryHosts() string { return filepath.Join(c.Dir, "registries") }

// Default is where the cluster of `make demo` and of the end-to-end test is.
func Default() (Cluster, error) {
	cache, err := controlplane.CacheDir()
	return Cluster{Dir: filepath.Join(cache, "cluster")}, err
}

// settings is what the supervisor reads.
type settings struct {
	Options
	Dir string
	// BinDir has Kubernetes' programs and etcd.
	BinDir      string
	CertManager string
	CRDs        string
	// Left is the network namespace that the supervisor must not be in.
	Left string
	// APIPort is the API server's on 127.0.0.1 of the machine.
	APIPort int
}

// Start takes down what runs in Dir, builds what is missing and returns when all nodes are
// ready, after telling on progress how far it is. The cluster outlives the process.
func (c Cluster) Start(ctx context.Context, options Options, progress io.Writer) error {
	if os.Geteuid() != 0 {
		return errors.New("a cluster needs root")
	}
	s := settings{Options: options, Dir: c.Dir}
	var err error
	if s.BinDir, err = controlplane.Build(ctx); err != nil {
		return err
	}
	if s.CertManager, s.CRDs, err = controlplane.BuildCertManager(ctx); err != nil {
		return err
	}
	if err := c.Stop(); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(c.Dir, "log"), 0o755); err != nil {
		return err
	}
	if s.Images, err = c.keep(options.Images); err != nil {
		return err
	}
	if s.Left, err = os.Readlink("/proc/self/ns/net"); err != nil {
		return err
	}
	if err := c.supervise(ctx, s, progress); err != nil {
		return errors.Join(err, c.stopProcesses())
	}
	return nil
}

// keep links the archives into Dir: a node that is powered on imports them again, and whoever
// builds other images removes these.
func (c Cluster) keep(archives []string) (kept []string, err error) {
	folder := filepath.Join(c.Dir, "images")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return nil, err
	}
	for i, archive := range archives {
		kept = append(kept, filepath.Join(folder, fmt.Sprintf("%d-%s", i, filepath.Base(archive))))
		if err := os.Link(archive, kept[len(kept)-1]); err != nil {
			return nil, err
		}
	}
	return kept, nil
}

// supervise starts the supervisor and follows its progress until the cluster is up.
func (c Cluster) supervise(ctx context.Context, s settings, progress io.Writer) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer listener.Close()
	s.APIPort = listener.Addr().(*net.TCPAddr).Port
	api, err := listener.(*net.TCPListener).File()
	if err != nil {
		return err
	}
	defer api.Close()
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(c.Dir, settingsFile), text, 0o600); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(c.Dir, "log", "supervisor.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	lines, reports, err := os.Pipe()
	if err != nil {
		return err
	}
	defer lines.Close()
	supervisor := exec.Command("/proc/self/exe")
	supervisor.Env = append(os.Environ(), processEnv+"="+supervisorProcess, dirEnv+"="+c.Dir)
	supervisor.Dir = c.Dir
	supervisor.Stdout, supervisor.Stderr = log, log
	supervisor.ExtraFiles = []*os.File{api, reports}
	supervisor.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID,
	}
	err = supervisor.Start()
	reports.Close()
	if err != nil {
		return fmt.Errorf("starting the supervisor: %w", err)
	}
	go func() { _ = supervisor.Wait() }() // its state is asked of the socket
	defer context.AfterFunc(ctx, func() { lines.Close() })()
	if err := follow(lines, progress); err != nil {
		// It may not have its socket yet, by which Stop would find it.
		_ = supervisor.Process.Kill() // it may have ended by itself
		return err
	}
	return nil
}

// follow passes on the supervisor's lines; the last one is ready, or why not.
func follow(lines io.Reader, progress io.Writer) error {
	last := ""
	for scanner := bufio.NewScanner(lines); scanner.Scan(); {
		last = scanner.Text()
		if last == readyLine {
			return nil
		}
		fmt.Fprintln(progress, last)
	}
	return fmt.Errorf("the cluster did not start: %s", last)
}

// Stop ends the cluster, if there is one, and removes its files, except logs.
func (c Cluster) Stop() error {
	if err := c.stopProcesses(); err != nil {
		return err
	}
	entries, err := os.ReadDir(c.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.Name() != "log" {
			err = errors.Join(err, os.RemoveAll(filepath.Join(c.Dir, entry.Name())))
		}
	}
	return err
}

// stopProcesses kills the supervisor: the kernel ends every process of its PID namespace with
// it, and with them go the namespaces and all mounts. The socket says who it is.
func (c Cluster) stopProcesses() error {
	pid, err := c.supervisorPID()
	if err != nil || pid == 0 {
		return errors.Join(err, removeCgroups(cgroupPrefix(c.Dir)+"*"))
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("ending the supervisor, PID %d: %w", pid, err)
	}
	if !until(func() bool { return !alive(pid) }) {
		return fmt.Errorf("the supervisor, PID %d, does not end", pid)
	}
	return removeCgroups(cgroupPrefix(c.Dir) + "*")
}

// alive is false for a zombie that this process has not waited for yet, too.
func alive(pid int) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(status), ") ")
	return !strings.HasPrefix(state, "Z") && !strings.HasPrefix(state, "X")
}

// Command runs a program on a node, in its namespaces.
func (c Cluster) Command(ctx context.Context, node string, args ...string) (*exec.Cmd, error) {
	supervisor, err := c.supervisorPID()
	if err != nil {
		return nil, err
	}
	status, err := c.Status(ctx)
	if err != nil {
		return nil, err
	}
	pid, ok := status.Nodes[node]
	if !ok {
		return nil, fmt.Errorf("no node %q is running", node)
	}
	enter := []string{
		fmt.Sprintf("--target=%d", supervisor), "--pid", "--mount", "--net", "--",
		"nsenter", fmt.Sprintf("--target=%d", pid), "--pid", "--mount", "--net", "--uts", "--ipc", "--",
	}
	return exec.CommandContext(ctx, "nsenter", append(enter, args...)...), nil
}

// Kubectl is kubectl with all rights.
func (c Cluster) Kubectl(ctx context.Context, args ...string) (*exec.Cmd, error) {
	binDir, err := controlplane.Build(ctx)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(binDir, "kubectl"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig())
	return cmd, nil
}
