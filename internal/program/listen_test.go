package program

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/iam4kube/iam4kube/internal/listener"
)

// serve listens for one endpoint and runs it until the end of ctx, which the result tells of.
func serve(ctx context.Context, t *testing.T, e Endpoint) (address string, ended <-chan error) {
	t.Helper()
	e.Flag, e.Address, e.Limits = "--listen-on", "127.0.0.1:0", listener.Limits{Connections: 100, PerSource: 50}
	servers, err := Listen(ctx, zap.NewNop(), e)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- servers[0].Run(ctx) }()
	return servers[0].Addr().String(), done
}

// send sends a request on a connection of its own, which ends with the test.
func send(t *testing.T, address, request string) net.Conn {
	t.Helper()
	connection, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = connection.Close() })
	if err := connection.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(connection, request); err != nil {
		t.Fatal(err)
	}
	return connection
}

// answer reads the answer of a connection.
func answer(connection net.Conn) (status int, body string, err error) {
	response, err := http.ReadResponse(bufio.NewReader(connection), nil)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = response.Body.Close() }()
	content, err := io.ReadAll(response.Body)
	return response.StatusCode, string(content), err
}

const get = "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"

// held answers a request when the test says so.
type held struct{ asked, release chan struct{} }

func (h held) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.asked <- struct{}{}
	select {
	case <-h.release:
		_, _ = io.WriteString(w, "answer")
	case <-r.Context().Done():
	}
}

func newHeld() held { return held{make(chan struct{}), make(chan struct{})} }

func wantNobodyListens(t *testing.T, address string) {
	t.Helper()
	if connection, err := net.Dial("tcp", address); err == nil {
		_ = connection.Close()
		t.Errorf("somebody listens on %s", address)
	}
}

// The end cuts nothing that is under way, and takes nothing new.
func TestRunEndsGracefully(t *testing.T) {
	h := newHeld()
	ctx, cancel := context.WithCancel(t.Context())
	address, ended := serve(ctx, t, Endpoint{Handler: h, Grace: time.Minute})
	connection := send(t, address, get)
	<-h.asked
	cancel()
	// The listener is closed first, and nothing else tells that the end has begun.
	for {
		c, err := net.Dial("tcp", address)
		if err != nil {
			break
		}
		_ = c.Close()
	}
	select {
	case err := <-ended:
		t.Fatalf("ended with %v before the answer", err)
	default:
	}
	close(h.release)
	if status, body, err := answer(connection); status != http.StatusOK || body != "answer" || err != nil {
		t.Errorf("got %d %q, %v", status, body, err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// While it drains, a kept connection is answered once more, and new ones are.
func TestRunDrains(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	address, ended := serve(ctx, t, Endpoint{Handler: http.NotFoundHandler(), Drain: time.Second})
	kept := send(t, address, get)
	reader := bufio.NewReader(kept)
	response, err := http.ReadResponse(reader, nil)
	if err != nil || response.Close {
		t.Fatalf("got %v, %v", response, err)
	}
	_, _ = io.Copy(io.Discard, response.Body)
	_ = response.Body.Close()
	cancel()
	for closes := false; !closes; closes = response.Close { // what the end tells first
		if response, err = http.ReadResponse(bufio.NewReader(send(t, address, get)), nil); err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
	}
	if _, err := io.WriteString(kept, get); err != nil {
		t.Fatal(err)
	}
	if response, err = http.ReadResponse(reader, nil); err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	if !response.Close || response.StatusCode != http.StatusNotFound {
		t.Errorf("got %v", response)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	wantNobodyListens(t, address)
}

func TestRunCutsWhatOutlastsItsGrace(t *testing.T) {
	for _, grace := range []time.Duration{0, time.Millisecond} {
		t.Run(grace.String(), func(t *testing.T) {
			h := newHeld()
			ctx, cancel := context.WithCancel(t.Context())
			address, ended := serve(ctx, t, Endpoint{Handler: h, Grace: grace})
			connection := send(t, address, get)
			<-h.asked
			cancel()
			if status, body, err := answer(connection); err == nil {
				t.Errorf("got %d %q", status, body)
			}
			// Without grace, nobody was promised anything.
			if err := <-ended; errors.Is(err, context.DeadlineExceeded) != (grace > 0) {
				t.Errorf("ended with %v", err)
			}
			wantNobodyListens(t, address)
		})
	}
}

func TestRunReturnsTheListenersError(t *testing.T) {
	servers, err := Listen(t.Context(), zap.NewNop(), Endpoint{Address: "127.0.0.1:0", Handler: http.NotFoundHandler(), Grace: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	_ = servers[0].listener.Close()
	if err := servers[0].Run(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

// A context that has ended before is no other.
func TestRunEndsAtOnce(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	servers, err := Listen(ctx, zap.NewNop(), Endpoint{Address: "127.0.0.1:0", Handler: http.NotFoundHandler(), Grace: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := servers[0].Run(ctx); err != nil {
		t.Error(err)
	}
	wantNobodyListens(t, servers[0].Addr().String())
}

// A start that fails leaves no listener, and says by which flag it failed.
func TestListenOpensAllOrNone(t *testing.T) {
	// Nobody else's connections leave from this address.
	free, err := net.Listen("tcp", "127.127.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	_ = free.Close()
	_, err = Listen(t.Context(), zap.NewNop(), Endpoint{Flag: "--listen-on", Address: address}, Endpoint{Flag: "--aux-listen-on", Address: address})
	if err == nil || !strings.HasPrefix(err.Error(), "--aux-listen-on: ") || !strings.Contains(err.Error(), address) {
		t.Errorf("got %v", err)
	}
	wantNobodyListens(t, address)
}

// The bounds are those of every endpoint.
func TestHeadersAreBounded(t *testing.T) {
	reached := make(chan string, 1)
	address, _ := serve(t.Context(), t, Endpoint{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { reached <- r.RequestURI })})
	sized := func(size int) string {
		const start, end = "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Long: ", "\r\n\r\n"
		return start + strings.Repeat("x", size-len(start)-len(end)) + end
	}
	lines := func(n int) string {
		return "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + strings.Repeat("A: b\r\n", n-2) + "\r\n"
	}
	for name, request := range map[string]string{
		"a byte over 4 KiB": sized(4097), "8 KiB": sized(8192), "100 KiB": sized(100 << 10), "101 lines": lines(101), "600 lines": lines(600),
	} {
		if status, _, err := answer(send(t, address, request)); status != http.StatusRequestHeaderFieldsTooLarge || err != nil {
			t.Errorf("%s: got %d, %v", name, status, err)
		}
	}
	for name, request := range map[string]string{
		"4 KiB": sized(4096), "100 lines": lines(100), "4 KiB without a Host": strings.Replace(sized(4096), "Host", "Hosp", 1),
	} {
		if status, _, err := answer(send(t, address, request)); status != http.StatusOK || err != nil {
			t.Errorf("%s: got %d, %v", name, status, err)
			continue
		}
		<-reached
	}
	if status, _, err := answer(send(t, address, "OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")); status != http.StatusOK || err != nil {
		t.Errorf("got %d, %v", status, err)
	}
	if got := <-reached; got != "*" {
		t.Errorf("the handler was asked for %q", got)
	}
}

func TestTLS(t *testing.T) {
	example := httptest.NewUnstartedServer(nil)
	example.StartTLS()
	certificates, client := example.TLS.Certificates, example.Client()
	example.Close()
	address, _ := serve(t.Context(), t, Endpoint{Handler: http.NotFoundHandler(), TLS: &tls.Config{MinVersion: tls.VersionTLS12, Certificates: certificates}})
	response, err := client.Get("https://" + address)
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	client.CloseIdleConnections()
	if response.TLS == nil || response.StatusCode != http.StatusNotFound {
		t.Errorf("got %s", response.Status)
	}
}

// Clients that open connection after connection and leave them are answered all the same: each
// answer ends its connection once there are many.
func TestIdleConnectionsMakeRoom(t *testing.T) {
	address, _ := serve(t.Context(), t, Endpoint{Handler: http.NotFoundHandler()}) // 50 of one source
	closed := 0
	for i := range 200 {
		response, err := http.ReadResponse(bufio.NewReader(send(t, address, get)), nil)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		_ = response.Body.Close()
		if response.Close {
			closed++
		}
	}
	if closed < 150 {
		t.Errorf("%d connections were ended with their answers", closed)
	}
}
