package controlplane

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

// process is a child that does not outlive the test process, however that ends.
type process struct {
	cmd     *exec.Cmd
	logPath string
	// done is closed once the process has ended and its exit state is in cmd.
	done chan struct{}
}

// startProcess runs a program with its output appended to logPath.
//
// The kernel sends Pdeathsig when the thread that forked ends, not the process. So
// the child is started by a thread that this package keeps for as long as the child
// runs; otherwise a test that discards a locked thread could kill the API server.
func startProcess(logPath, program string, args ...string) (*process, error) {
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p := &process{cmd: cmd, logPath: logPath, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer log.Close()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		// The exit state is in cmd.ProcessState; a killed child is no error here.
		_ = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s: %w", program, err)
	}
	return p, nil
}

// kill ends the process and returns once it is gone.
func (p *process) kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("ending %s: %w", p.cmd.Path, err)
	}
	<-p.done
	return nil
}

// exited describes why the process ended, with the end of its log.
func (p *process) exited() error {
	const tail = 4 << 10
	log, err := os.ReadFile(p.logPath)
	if err != nil {
		log = []byte(err.Error())
	}
	if len(log) > tail {
		log = log[len(log)-tail:]
	}
	return fmt.Errorf("%s ended (%s); the end of %s:\n%s",
		p.cmd.Path, p.cmd.ProcessState, p.logPath, bytes.TrimSpace(log))
}

// port is a TCP port on 127.0.0.1 that stays reserved while nobody listens on it: a
// socket is bound to it that never listens. Connections are refused until somebody
// listens, which SO_REUSEADDR (set by Go's net package) allows; no other process is
// given the port meanwhile.
type port struct {
	fd     int
	number int
}

func reservePort() (port, error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return port{}, fmt.Errorf("reserving a port: %w", err)
	}
	bind := func() error {
		if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err != nil {
			return err
		}
		return syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	}
	if err := bind(); err != nil {
		syscall.Close(fd)
		return port{}, fmt.Errorf("reserving a port: %w", err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		syscall.Close(fd)
		return port{}, fmt.Errorf("reserving a port: %w", err)
	}
	return port{fd: fd, number: name.(*syscall.SockaddrInet4).Port}, nil
}

func (p port) addr() string { return net.JoinHostPort("127.0.0.1", fmt.Sprint(p.number)) }

func (p port) release() { syscall.Close(p.fd) }
