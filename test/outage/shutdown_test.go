package outage

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/fakests"
)

// At SIGTERM the program is not ready at once, goes on accepting until the drain is over,
// lets clients move to other replicas, answers what waits, and exits with 0.
func TestSIGTERMUnderLoad(t *testing.T) {
	t.Parallel()
	const drain, maxWait = 2 * time.Second, 6 * time.Second
	namespace := newNamespace(t, "sigterm")
	s, process := env.StartProcess(t, "--drain", drain.String(), "--max-wait", maxWait.String())
	var warmed []workload
	for i := range 4 {
		warmed = append(warmed, newWorkload(namespace, fmt.Sprint("warm-", i)).create(t))
	}
	warm(t, s, warmed...)
	s.WaitReady(t)

	// One request whose pod comes during the drain, one whose pod never comes, one whose
	// credentials never come.
	late, never, hung := newWorkload(namespace, "late"), newWorkload(namespace, "never"), newWorkload(namespace, "hung")
	fault(t, hung.arn, fakests.Fault{Effect: fakests.Hang})
	hung.create(t)
	lateAnswer, neverAnswer, hungAnswer := late.request(t, s), never.request(t, s), hung.request(t, s)
	environment.Eventually(t, 10*time.Second, func() error {
		if s.Metric(t, "iam4kube_waiting_requests", "missing", "pod") != 2 || s.Metric(t, "iam4kube_waiting_requests", "missing", "credentials") != 1 {
			return errors.New("the requests do not wait yet")
		}
		return nil
	})
	var mu sync.Mutex
	var kept []time.Time // answers that did not end their connection
	load := startLoad(t, s, func(at time.Time, response *http.Response) {
		mu.Lock()
		defer mu.Unlock()
		if !response.Close {
			kept = append(kept, at)
		}
	}, warmed...)

	environment.Eventually(t, 10*time.Second, func() error {
		mu.Lock()
		defer mu.Unlock()
		if len(kept) < 20 {
			return errors.New("no load yet")
		}
		return nil
	})
	told := time.Now()
	if err := process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	environment.Eventually(t, time.Second, func() error {
		if status, body := s.Readyz(t); status != http.StatusServiceUnavailable || !strings.Contains(body, "draining") {
			return fmt.Errorf("/readyz: %d %s", status, body)
		}
		return nil
	})
	unready := time.Now()
	t.Logf("not ready %v after SIGTERM", unready.Sub(told))
	late.create(t)
	if err := <-lateAnswer; err != nil {
		t.Errorf("a pod that came during the drain: %v", err)
	}
	for name, answer := range map[string]<-chan error{"no pod": neverAnswer, "no credentials": hungAnswer} {
		if err := <-answer; err == nil || !strings.Contains(err.Error(), "status 503") {
			t.Errorf("%s: %v, want the 503 that ends the wait", name, err)
		}
	}
	<-s.Done()
	ended := time.Now()
	t.Logf("ended %v after SIGTERM", ended.Sub(told))
	if ended.Sub(told) > drain+maxWait+2*time.Second {
		t.Errorf("the end took %v", ended.Sub(told))
	}
	if err := s.Stop(); err != nil {
		t.Errorf("exit: %v", err)
	}

	requests, failures := load.stop()
	for _, f := range failures {
		if f.at.Before(told.Add(drain)) || errors.Is(f.err, io.ErrUnexpectedEOF) {
			t.Errorf("%v after SIGTERM: %v", f.at.Sub(told), f.err)
		}
	}
	t.Logf("%d requests, %d failed, the first %v after SIGTERM", requests, len(failures), failures[0].at.Sub(told))
	mu.Lock()
	defer mu.Unlock()
	for _, at := range kept {
		if at.After(unready.Add(50 * time.Millisecond)) { // sent before, read later
			t.Errorf("an answer %v after SIGTERM kept its connection", at.Sub(told))
		}
	}
	if c, err := net.Dial("tcp", s.Address); err == nil {
		_ = c.Close()
		t.Error("somebody still listens")
	}
}

// A second signal ends the program without a drain.
func TestSecondSignalEndsAtOnce(t *testing.T) {
	t.Parallel()
	s, process := env.StartProcess(t, "--drain", "1h")
	if err := process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Logs.Wait(t.Context(), "draining"); err != nil {
		t.Fatal(err)
	}
	// The log does not wait for the program to be ready for its second signal.
	environment.Eventually(t, 5*time.Second, func() error {
		_ = process.Signal(syscall.SIGTERM) // it may have ended
		select {
		case <-s.Done():
			return nil
		default:
			return errors.New("the program goes on draining")
		}
	})
	err := s.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
		t.Fatalf("ended with %v, want SIGTERM", err)
	}
}

// A part that fails ends the program, which says why, with status 1. Here the kernel takes
// its listener away.
func TestFailedPartEndsTheProgram(t *testing.T) {
	t.Parallel()
	for _, listener := range []string{"metadata", "aux"} {
		t.Run(listener, func(t *testing.T) {
			t.Parallel()
			s, process := env.StartProcess(t, "--drain", "1h", "--max-wait", "1h")
			s.WaitReady(t)
			address := map[string]string{"metadata": s.Address, "aux": s.Aux}[listener]
			start := time.Now()
			shutListener(t, process.Pid, address)
			err := s.Wait()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 1 {
				t.Fatalf("ended with %v, want exit status 1", err)
			}
			t.Logf("ended after %v", time.Since(start))
			if last := s.Logs.String(); !strings.Contains(last, "\nserver: ") || !strings.Contains(last, address) {
				t.Errorf("nothing says why: %s", last[max(0, len(last)-500):])
			}
		})
	}
}

// shutListener lets the accept of another process's socket fail.
func shutListener(t *testing.T, pid int, address string) {
	t.Helper()
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	for fd := range 64 {
		if socket, err := unix.PidfdGetfd(pidfd, fd, 0); err == nil {
			shut := listensOn(socket, address) && unix.Shutdown(socket, unix.SHUT_RD) == nil
			_ = unix.Close(socket)
			if shut {
				return
			}
		}
	}
	t.Fatalf("process %d does not listen on %s", pid, address)
}

func listensOn(socket int, address string) bool {
	listening, err := unix.GetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil || listening == 0 {
		return false
	}
	name, err := unix.Getsockname(socket)
	in4, ok := name.(*unix.SockaddrInet4)
	return err == nil && ok && address == fmt.Sprintf("127.0.0.1:%d", in4.Port)
}

// Whatever is under way, Run ends soon after the drain, and leaves no goroutine behind.
func TestStopLeavesNothingBehind(t *testing.T) {
	const drain, maxWait, grace = 100 * time.Millisecond, 2 * time.Second, 2 * time.Second
	namespace := newNamespace(t, "stop")
	for _, stop := range []struct {
		name string
		// before the server starts, and once it serves.
		before, during func(t *testing.T, gate *controlplane.Gate, s *environment.Server)
		most           time.Duration
	}{
		{name: "idle", most: drain},
		{name: "never-reached-the-API-server", most: drain, before: func(t *testing.T, gate *controlplane.Gate, _ *environment.Server) {
			t.Helper()
			set(t, gate, controlplane.BlackHole)
		}},
		{name: "API-server-refuses", most: drain, during: func(t *testing.T, gate *controlplane.Gate, _ *environment.Server) {
			t.Helper()
			set(t, gate, controlplane.Refuse)
			pass(t, time.Second)
		}},
		{name: "API-server-is-a-black-hole", most: drain, during: func(t *testing.T, gate *controlplane.Gate, _ *environment.Server) {
			t.Helper()
			set(t, gate, controlplane.BlackHole)
		}},
		{name: "requests-wait", most: maxWait, during: func(t *testing.T, _ *controlplane.Gate, s *environment.Server) {
			t.Helper()
			for i := range 10 {
				newWorkload(namespace, fmt.Sprint("never-", i)).request(t, s)
			}
			environment.Eventually(t, 10*time.Second, func() error {
				if n := s.Metric(t, "iam4kube_waiting_requests", "missing", "pod"); n != 10 {
					return fmt.Errorf("%v requests wait", n)
				}
				return nil
			})
		}},
		{name: "STS-hangs", most: drain, during: func(t *testing.T, _ *controlplane.Gate, _ *environment.Server) {
			t.Helper()
			for i := range 3 {
				w := newWorkload(namespace, fmt.Sprint("hung-", i))
				fault(t, w.arn, fakests.Fault{Effect: fakests.Hang})
				w.createAccount(t)
				waitAttempt(t, w.arn, func(fakests.Attempt) bool { return true })
			}
		}},
	} {
		t.Run(stop.name, func(t *testing.T) {
			gate, cfg := newGate(t)
			sts := stsGate(t)
			cfg.Drain, cfg.MaxWait = drain, maxWait
			before := goleak.IgnoreCurrent()
			if stop.before != nil {
				stop.before(t, gate, nil)
			}
			s := env.Start(t, cfg)
			if stop.before == nil {
				s.WaitReady(t)
			}
			if stop.during != nil {
				stop.during(t, gate, s)
			}
			start := time.Now()
			if err := s.Stop(); err != nil {
				t.Fatal(err)
			}
			took := time.Since(start)
			t.Logf("stopped after %v", took)
			if took > stop.most+grace {
				t.Errorf("stopped after %v, want %v and a little", took, stop.most)
			}
			set(t, gate, controlplane.Pass) // so that it learns which connections were closed
			environment.Eventually(t, time.Second, func() error {
				if n := gate.Connections(); n > 0 {
					return fmt.Errorf("%d connections to the API server were left open", n)
				}
				return nil
			})
			gate.Close()
			// The AWS SDK keeps idle connections and has no call that closes them.
			sts.Close()
			if err := goleak.Find(before); err != nil {
				t.Error(err)
			}
		})
	}
}
