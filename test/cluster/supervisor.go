package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/iam4kube/iam4kube/test/netns"
)

// The nodes' network: a bridge in the supervisor's network namespace.
const (
	bridge       = "nodes"
	gateway      = "172.30.0.1"
	serviceRange = "10.96.0.0/16"
	apiService   = "10.96.0.1"
	dnsService   = "10.96.0.10"
	apiPort      = 6443
)

// PodNetwork has the addresses of all pods.
const PodNetwork = "10.244.0.0/16"

func nodeAddress(index int) string { return fmt.Sprintf("172.30.0.%d", 11+index) }

func podRange(index int) string { return fmt.Sprintf("10.244.%d.0/24", index+1) }

// supervisor is PID 1 of the cluster.
type supervisor struct {
	settings
	pki     *pki
	reports io.WriteCloser
	started time.Time

	mutex    sync.Mutex
	nodes    map[string]*program
	programs map[string]*program
}

func runSupervisor(dir string) error {
	s := &supervisor{
		reports: os.NewFile(4, "reports"), started: time.Now(),
		nodes: map[string]*program{}, programs: map[string]*program{},
	}
	text, err := os.ReadFile(filepath.Join(dir, settingsFile))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, &s.settings); err != nil {
		return err
	}
	if err := s.run(); err != nil {
		fmt.Fprintln(s.reports, err)
		return err
	}
	fmt.Fprintln(s.reports, readyLine)
	s.reports.Close()
	select {} // until Stop kills it
}

func (s *supervisor) say(format string, args ...any) {
	fmt.Fprintf(s.reports, "%5.1f s  %s\n", time.Since(s.started).Seconds(), fmt.Sprintf(format, args...))
}

func (s *supervisor) run() error {
	if err := freshProc(); err != nil {
		return err
	}
	if err := s.serveControl(); err != nil {
		return err
	}
	if err := s.makeNetwork(); err != nil {
		return err
	}
	if err := s.makeCredentials(); err != nil {
		return err
	}
	go s.forwardAPI()
	for i := range s.Nodes {
		if err := s.startNode(s.Nodes[i].Name); err != nil {
			return err
		}
	}
	return s.startControlPlane()
}

// makeNetwork makes the bridge between the nodes and the far side of a cloud's machine, after
// proving that it is not in the machine's own network namespace.
func (s *supervisor) makeNetwork() error {
	here, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return err
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		return err
	}
	if here == s.Left || len(interfaces) > 1 {
		return fmt.Errorf("not in a network namespace of its own: %s, with %d interfaces", here, len(interfaces))
	}
	if err := ip(
		"link set lo up",
		"link add "+bridge+" type bridge",
		"address add "+gateway+"/24 dev "+bridge,
		"link set "+bridge+" up",
	); err != nil {
		return err
	}
	// What a pod asks the metadata service is answered, too, not only what a node does.
	for i := range s.Nodes {
		if err := ip("route add " + podRange(i) + " via " + nodeAddress(i)); err != nil {
			return err
		}
	}
	return s.answerMetadata()
}

// answerMetadata stands for the cloud's metadata service, and for whoever has the addresses of
// container credentials.
func (s *supervisor) answerMetadata() error {
	for _, address := range slices.Concat(netns.MetadataAddresses, netns.ContainerAddresses) {
		ip, bits := net.ParseIP(address), "/128"
		if ip.To4() != nil {
			bits = "/32"
		}
		if err := command("ip", "address", "add", address+bits, "dev", "lo", "nodad"); err != nil {
			return err
		}
		listener, err := net.Listen("tcp", net.JoinHostPort(address, "80"))
		if err != nil {
			return err
		}
		answer := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, netns.NodeRole) })
		go func() { _ = http.Serve(listener, answer) }()
	}
	return netns.CountLeaks()
}

// forwardAPI leads the machine's port on 127.0.0.1 to the API server.
func (s *supervisor) forwardAPI() {
	file := os.NewFile(3, "api")
	listener, err := net.FileListener(file)
	if err != nil {
		panic(err) // Start gave it to us
	}
	file.Close()
	for {
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		go forward(connection, net.JoinHostPort(nodeAddress(0), fmt.Sprint(apiPort)))
	}
}

func forward(from net.Conn, address string) {
	defer from.Close()
	to, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer to.Close()
	go func() {
		_, _ = io.Copy(to, from)
		_ = to.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(from, to)
}

func (s *supervisor) index(node string) (int, error) {
	i := slices.IndexFunc(s.Nodes, func(n Node) bool { return n.Name == node })
	if i < 0 {
		return 0, fmt.Errorf("no node %q", node)
	}
	return i, nil
}

// startNode starts a node's PID 1 and gives it its link.
func (s *supervisor) startNode(name string) error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	i, err := s.index(name)
	if err != nil {
		return err
	}
	if n, ok := s.nodes[name]; ok && n.running() {
		return errors.New("it is running")
	}
	if err := s.makeCgroups(name); err != nil {
		return err
	}
	node := exec.Command("/proc/self/exe")
	node.Env = append(os.Environ(), processEnv+"="+nodeProcess, dirEnv+"="+s.Dir, nodeEnv+"="+name)
	node.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
	}
	hold, err := node.StdinPipe()
	if err != nil {
		return err
	}
	defer hold.Close() // it waits for this
	if s.nodes[name], err = start(s.Dir, name, node); err != nil {
		return err
	}
	link := fmt.Sprintf("node%d", i)
	// That of a node that was powered off goes some time after it.
	_ = command("ip", "link", "delete", link)
	return ip(
		fmt.Sprintf("link add %s type veth peer name eth0 netns %d", link, node.Process.Pid),
		fmt.Sprintf("link set %s master %s up", link, bridge),
	)
}

func (s *supervisor) stopNode(name string) error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	n, ok := s.nodes[name]
	if !ok || !n.running() {
		return errors.New("it is not running")
	}
	i, err := s.index(name)
	if err != nil {
		return err
	}
	// Before the processes end, whose connections the kernel would reset.
	if err := ip(fmt.Sprintf("link set node%d down", i)); err != nil {
		return err
	}
	n.kill()
	return nil
}

func (s *supervisor) stopProgram(name string) error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	p, ok := s.programs[name]
	if !ok || !p.running() {
		return errors.New("it is not running")
	}
	p.kill()
	return nil
}

func (s *supervisor) status() (Status, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	status := Status{Nodes: map[string]int{}}
	for name, n := range s.nodes {
		if n.running() {
			status.Nodes[name] = n.cmd.Process.Pid
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.programs)) {
		if s.programs[name].running() {
			status.Programs = append(status.Programs, name)
		}
	}
	var err error
	status.Leaks, err = netns.Leaks()
	return status, err
}
