// Package netns puts a test binary into a network namespace of its own, in which it may
// use any address, above all 169.254.169.254, and makes namespaces of pods below it.
//
// It owns the proof that a test is in such a namespace. What runs in the namespaces,
// and packet filters, belong to the tests.
package netns

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// marker is the environment variable that a re-executed test binary finds: the network
// namespace that it came from, such as "net:[4026531840]".
const marker = "IAM4KUBE_TEST_LEFT_NETNS"

// Main is the body of a TestMain whose tests need a network namespace of their own: it
// runs the test binary again in one, with lo up and nothing else, and passes on its
// exit status. Inside it calls run, or m.Run if run is nil. It does not return. What
// needs the network, such as controlplane.Build, has to be done before.
//
// The caller need not be root where the kernel allows user namespaces.
func Main(m *testing.M, run func() int) {
	Enter()
	if run == nil {
		run = m.Run
	}
	os.Exit(run())
}

// Enter does for a program that is no test what Main does for one: it returns only in
// the namespace.
func Enter() {
	if os.Getenv(marker) == "" {
		os.Exit(reexecute(&syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		}))
	}
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, "netns:", err)
		os.Exit(1)
	}
}

func reexecute(into *syscall.SysProcAttr) (status int) {
	here, err := current()
	if err != nil {
		fmt.Fprintln(os.Stderr, "netns:", err)
		return 1
	}
	child := exec.Command("/proc/self/exe", os.Args[1:]...)
	child.Args[0] = os.Args[0]
	child.Env = append(os.Environ(), marker+"="+here)
	child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
	child.SysProcAttr = into
	// go test kills this process on a time-out; its child must not stay.
	child.SysProcAttr.Pdeathsig = syscall.SIGKILL
	// Pdeathsig follows the thread that forks, so it has to live as long as the child.
	runtime.LockOSThread()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	if err := child.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "netns: making namespaces (does the kernel allow it?):", err)
		return 1
	}
	go func() {
		for s := range signals {
			_ = child.Process.Signal(s)
		}
	}()
	if err := child.Wait(); err != nil && child.ProcessState.ExitCode() < 0 {
		fmt.Fprintln(os.Stderr, "netns: the test binary:", err)
		return 1
	}
	return child.ProcessState.ExitCode()
}

// prepare makes of the new namespace what a node is: it forwards.
func prepare() error {
	// First of all: nothing below may happen anywhere else.
	if err := Check(); err != nil {
		return err
	}
	if err := ip("link", "set", "lo", "up"); err != nil {
		return err
	}
	for _, setting := range []string{
		"net/ipv4/ip_forward=1",
		"net/ipv6/conf/all/forwarding=1",
		// AddLocal: a local route alone lets IPv4 addresses be bound, not IPv6 ones.
		"net/ipv6/ip_nonlocal_bind=1",
		noDAD,
	} {
		if err := sysctl(setting); err != nil {
			return err
		}
	}
	return nil
}

// noDAD keeps the kernel from looking for another owner of each IPv6 address for a
// second or two: there is none.
const noDAD = "net/ipv6/conf/default/accept_dad=0"

// sysctl changes a setting of the network namespace of the calling thread.
func sysctl(setting string) error {
	name, value, _ := strings.Cut(setting, "=")
	return os.WriteFile("/proc/sys/"+name, []byte(value), 0)
}

// Require ends the test unless Check finds nothing.
func Require(t testing.TB) {
	t.Helper()
	if err := Check(); err != nil {
		t.Fatal(err)
	}
}

// Check proves that the calling thread is in a network namespace that Main made and from
// which no packet gets out, or says what is against it. Whoever adds an address such as
// 169.254.169.254 or connects to it asks first: on a cloud's machine that address is
// the machine's own metadata service.
func Check() error {
	left := os.Getenv(marker)
	if left == "" {
		return errors.New("not in a network namespace made for tests: TestMain does not call netns.Main")
	}
	here, err := current()
	if err != nil {
		return err
	}
	if here == left {
		return fmt.Errorf("still in the network namespace %s that the test came from", here)
	}
	// Without the rights to read it, it is not ours either.
	if first, err := os.Readlink("/proc/1/ns/net"); err == nil && first == here {
		return fmt.Errorf("in the network namespace %s of PID 1", here)
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		return fmt.Errorf("listing interfaces: %w", err)
	}
	for _, i := range interfaces {
		if i.Flags&net.FlagLoopback == 0 && !strings.HasPrefix(i.Name, devicePrefix) {
			return fmt.Errorf("interface %s was not made by this package", i.Name)
		}
	}
	return nil
}

func current() (string, error) {
	name, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return "", fmt.Errorf("reading the network namespace: %w", err)
	}
	return filepath.Base(name), nil
}

// AddLocal makes an address or a whole prefix, such as 169.254.169.254/32 or 10.1.0.0/16,
// local to the namespace: one can listen on it and connect from it. It stays until the
// test ends.
func AddLocal(t testing.TB, prefixes ...string) {
	t.Helper()
	for _, prefix := range prefixes {
		if err := MakeLocal(prefix); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := ip("route", "del", "local", prefix, "dev", "lo"); err != nil {
				t.Error(err)
			}
		})
	}
}

// MakeLocal is AddLocal for the life of the namespace.
func MakeLocal(prefix string) error {
	if err := Check(); err != nil {
		return err
	}
	return ip("route", "add", "local", prefix, "dev", "lo")
}

// ip runs the command of iproute2 in the namespace of the calling thread.
func ip(args ...string) error {
	output, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(output)))
	}
	return nil
}
