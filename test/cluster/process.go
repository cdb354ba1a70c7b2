package cluster

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	// processEnv makes a program that calls Init one of the cluster's own processes.
	processEnv        = "IAM4KUBE_CLUSTER_PROCESS"
	supervisorProcess = "supervisor"
	nodeProcess       = "node"
	// dirEnv and nodeEnv say which.
	dirEnv  = "IAM4KUBE_CLUSTER_DIR"
	nodeEnv = "IAM4KUBE_CLUSTER_NODE"

	settingsFile = "settings.json"
	readyLine    = "ready"
)

// Init is the first that main or TestMain calls: the cluster's own processes are the calling
// program again, and do not come back from it.
func Init() {
	var run func(dir string) error
	switch os.Getenv(processEnv) {
	case "":
		return
	case supervisorProcess:
		run = runSupervisor
	case nodeProcess:
		run = runNode
	}
	if err := run(os.Getenv(dirEnv)); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// program is a child of the supervisor.
type program struct {
	cmd *exec.Cmd
	// done is closed when it has ended.
	done chan struct{}
}

// start runs a program whose output is appended to a log. It ends with the supervisor, which
// is PID 1 of its PID namespace.
func start(dir, log string, cmd *exec.Cmd) (*program, error) {
	output, err := os.OpenFile(filepath.Join(dir, "log", log+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = output, output
	p := &program{cmd: cmd, done: make(chan struct{})}
	err = cmd.Start()
	output.Close()
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", cmd.Path, err)
	}
	go func() {
		_ = cmd.Wait() // how it ended is in its log
		close(p.done)
	}()
	return p, nil
}

func (p *program) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

func (p *program) kill() {
	_ = p.cmd.Process.Kill() // it may have ended by itself
	<-p.done
}

// command runs one command to its end; its output is in the error.
func command(name string, args ...string) error {
	output, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(output)))
	}
	return nil
}

// ip runs each line with the command of iproute2.
func ip(lines ...string) error {
	for _, line := range lines {
		if err := command("ip", strings.Fields(line)...); err != nil {
			return err
		}
	}
	return nil
}

// freshProc shows the processes of the PID namespace of the caller, in a mount namespace from
// which no mount gets out.
func freshProc() error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	return nil
}

// patience with what takes seconds, on a machine that is busy with something else.
const patience = 3 * time.Minute

// until polls as long as there is patience, because the kernel and the programs do not tell when
// they are ready.
func until(there func() bool) bool {
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(patience); ; <-ticker.C {
		if there() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}
