package controlplane

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// echo is a server that sends back each line.
func echo(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	return listener.Addr().String()
}

func newGate(t *testing.T, target string) *Gate {
	t.Helper()
	gate, err := NewGate(target)
	must(t, err)
	t.Cleanup(gate.Close)
	return gate
}

func dial(t *testing.T, gate *Gate) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", gate.Addr())
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// say sends a line and reads one back.
func say(conn net.Conn, line string) (string, error) {
	if _, err := io.WriteString(conn, line+"\n"); err != nil {
		return "", err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSuffix(answer, "\n"), err
}

func wantAnswer(t *testing.T, conn net.Conn, line string) {
	t.Helper()
	if answer, err := say(conn, line); err != nil || answer != line {
		t.Errorf("got %q, %v, want %q", answer, err, line)
	}
}

func TestGateRefuses(t *testing.T) {
	gate := newGate(t, echo(t))
	before := dial(t, gate)
	wantAnswer(t, before, "one")

	must(t, gate.Set(Refuse))
	if _, err := say(before, "two"); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("a connection from before: %v, want reset", err)
	}
	if _, err := net.Dial("tcp", gate.Addr()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a new connection: %v, want refused", err)
	}
	must(t, gate.Set(Pass))
	wantAnswer(t, dial(t, gate), "three")
}

func TestGateIsABlackHole(t *testing.T) {
	gate := newGate(t, echo(t))
	before := dial(t, gate)
	wantAnswer(t, before, "one")

	must(t, gate.Set(BlackHole))
	during := dial(t, gate)
	for name, conn := range map[string]net.Conn{"before": before, "during": during} {
		must(t, conn.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
		if answer, err := say(conn, name); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("a connection from %s the black hole: %q, %v, want a time-out", name, answer, err)
		}
		must(t, conn.SetReadDeadline(time.Time{}))
	}
	must(t, gate.Set(Pass))
	for name, conn := range map[string]net.Conn{"before": before, "during": during} {
		if answer, err := bufio.NewReader(conn).ReadString('\n'); err != nil || answer != name+"\n" {
			t.Errorf("what was held: %q, %v, want %q", answer, err, name)
		}
	}
}

func TestGateRefusesWhatABlackHoleHeld(t *testing.T) {
	gate := newGate(t, echo(t))
	must(t, gate.Set(BlackHole))
	held := dial(t, gate)
	eventually(t, "the gate to have the connection", func() bool { return gate.Connections() == 1 })
	must(t, gate.Set(Refuse))
	if _, err := held.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a held connection: %v, want reset", err)
	}
}

func TestGateResetsAndStaysOpen(t *testing.T) {
	gate := newGate(t, echo(t))
	before := dial(t, gate)
	wantAnswer(t, before, "one")
	gate.ResetAll()
	if _, err := before.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a connection from before: %v, want reset", err)
	}
	wantAnswer(t, dial(t, gate), "two")
}

func TestGatePassesTheEndOfAStream(t *testing.T) {
	gate := newGate(t, echo(t))
	conn := dial(t, gate)
	const size = 4 << 20
	go func() {
		_, _ = conn.Write(make([]byte, size))
		_ = conn.(*net.TCPConn).CloseWrite()
	}()
	if all, err := io.ReadAll(conn); err != nil || len(all) != size {
		t.Errorf("got %d bytes, %v, want %d", len(all), err, size)
	}
	conn.Close()
	eventually(t, "the gate to forget the connection", func() bool { return gate.Connections() == 0 })
}

func TestGateInFrontOfTheAPIServer(t *testing.T) {
	namespace := newNamespace(t)
	gate := newGate(t, shared.Config().Host)
	config := gate.Config(reader(t, namespace))
	config.Timeout = time.Second
	pods := client(t, config).CoreV1().Pods(namespace)
	get := func() error {
		_, err := pods.Get(t.Context(), "none", metav1.GetOptions{})
		return err
	}
	if err := get(); !apierrors.IsNotFound(err) {
		t.Errorf("through the gate: %v, want not found", err)
	}
	must(t, gate.Set(BlackHole))
	if err := get(); !os.IsTimeout(err) {
		t.Errorf("through a black hole: %v, want a time-out", err)
	}
	must(t, gate.Set(Refuse))
	// client-go tries again after a reset, so which error it is depends on the time.
	if err := get(); err == nil || apierrors.ReasonForError(err) != metav1.StatusReasonUnknown {
		t.Errorf("through a closed gate: %v, want an error that is no answer", err)
	}
	must(t, gate.Set(Pass))
	if err := get(); !apierrors.IsNotFound(err) {
		t.Errorf("through the gate again: %v, want not found", err)
	}
	config.CAData = nil
	if _, err := client(t, config).CoreV1().Pods(namespace).Get(t.Context(), "none", metav1.GetOptions{}); err == nil ||
		!strings.Contains(err.Error(), "certificate") {
		t.Errorf("without the CA: %v, want a certificate error", err)
	}
}

func listening(p port) bool {
	conn, err := net.Dial("tcp", p.addr())
	if err == nil {
		conn.Close()
	}
	return err == nil
}
