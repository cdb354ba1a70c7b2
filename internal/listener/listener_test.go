package listener

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
)

func tryDial(from string, l *Listener) (net.Conn, error) {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	return dialer.Dial("tcp", l.Addr().String())
}

func dial(t *testing.T, from string, l *Listener) net.Conn {
	t.Helper()
	c, err := tryDial(from, l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// What is over the limits is reset, others get in, and a connection that ends makes room.
func TestConnectionsAreLimited(t *testing.T) {
	l, err := Listen(t.Context(), "127.0.0.1:0", Limits{Connections: 10, PerSource: 2}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan net.Conn, 10)
	go func() {
		defer close(accepted)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	defer func() {
		_ = l.Close()
		for c := range accepted {
			_ = c.Close()
		}
	}()
	dial(t, "127.0.0.2", l)
	dial(t, "127.0.0.2", l)
	first, second := <-accepted, <-accepted
	over, err := tryDial("127.0.0.2", l)
	if err == nil {
		_ = over.SetReadDeadline(time.Now().Add(time.Minute))
		_, err = over.Read(make([]byte, 1))
		_ = over.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v", err)
	}
	dial(t, "127.0.0.3", l)
	if c := <-accepted; sourceOf(c).String() != "127.0.0.3" {
		t.Errorf("from %v", c.RemoteAddr())
	}
	// Twice, as net/http does: it gives back one.
	_, _ = first.Close(), first.Close()
	dial(t, "127.0.0.2", l)
	<-accepted
	if open, refused := l.Connections(TooManyOfSource); open != 3 || refused != 1 {
		t.Errorf("%d open, %d refused", open, refused)
	}
	_ = second.Close()
}

// What a connection's client sends and nobody reads stays in its own memory.
func TestUnreadBytesAreBounded(t *testing.T) {
	l, err := Listen(t.Context(), "127.0.0.1:0", Limits{Connections: 10, PerSource: 2}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	client := dial(t, "127.0.0.2", l)
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if tcp, ok := client.(*net.TCPConn); !ok || tcp.SetWriteBuffer(4<<10) != nil {
		t.Fatal("the client's buffer is not bounded")
	}
	if _, err := client.Write([]byte{0}); err != nil { // something, however late the machine is after that
		t.Fatal(err)
	}
	_ = client.SetWriteDeadline(time.Now().Add(time.Second))
	sent, err := client.Write(make([]byte, 10<<20))
	if !errors.Is(err, os.ErrDeadlineExceeded) || sent > 100<<10 {
		t.Errorf("%d bytes were sent, %v", sent, err)
	}
	_ = client.Close()
	if n, err := io.Copy(io.Discard, c); err != nil || n == 0 {
		t.Errorf("%d bytes of those arrived, %v", n, err)
	}
}
