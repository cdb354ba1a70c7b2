package server

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/test/environment"
)

// untilClosed reads until the server ends the connection and returns what came and how
// long that took.
func untilClosed(t *testing.T, connection net.Conn, within time.Duration) (string, time.Duration) {
	t.Helper()
	start := time.Now()
	_ = connection.SetReadDeadline(start.Add(within))
	var answer bytes.Buffer
	if _, err := io.Copy(&answer, connection); isTimeout(err) {
		t.Fatalf("still open after %v: %q", within, answer.String())
	}
	return answer.String(), time.Since(start)
}

// A header that does not come, or byte by byte, is not waited for longer than the header
// time-out, 3 s, however regularly the bytes come; others are served meanwhile.
func TestHeaderByteByByte(t *testing.T) {
	t.Parallel()
	s, w := startWarm(t, "slow-header")
	silent, connection := dialFrom(t, s, w.from), dialFrom(t, s, w.from)
	stop := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		ticker := time.NewTicker(100 * time.Millisecond)
		defer ticker.Stop()
		for _, b := range []byte(request(http.MethodGet, w.path(), "X: "+strings.Repeat("x", 10000))) {
			select {
			case <-ticker.C:
			case <-stop:
				return
			}
			if _, err := connection.Write([]byte{b}); err != nil {
				return
			}
		}
	}()
	if status, body := s.Get(t, w.from, w.path()); status != http.StatusOK {
		t.Errorf("another request of the pod: %d %s", status, body)
	}
	answer, took := untilClosed(t, connection, time.Minute)
	close(stop)
	<-stopped
	checkNoSecret(t, "half a header", answer)
	if took < 2*time.Second {
		t.Errorf("closed after %v", took)
	}
	if answer, _ := untilClosed(t, silent, time.Minute); answer != "" {
		t.Errorf("nothing was asked, and the answer is %q", answer)
	}
}

// Nothing reads bodies. A request that announces one is answered at once, whether it comes
// or not, and its bytes are never taken for another request: the connection ends.
func TestBodies(t *testing.T) {
	t.Parallel()
	s, w := startWarm(t, "bodies")
	inner := request(http.MethodGet, w.path())
	for _, tc := range []struct {
		name, method, path string
		lines              []string
		body               string
		status             int
	}{
		{"never comes", http.MethodPut, tokenPath, []string{ttlLine + "60", "Content-Length: 10"}, "", 200},
		{"half comes", http.MethodPut, tokenPath, []string{ttlLine + "60", "Content-Length: 10"}, "12345", 200},
		{"comes", http.MethodPut, tokenPath, []string{ttlLine + "60", "Content-Length: 10"}, "1234567890", 200},
		{"huge, never comes", http.MethodPut, tokenPath, []string{ttlLine + "60", "Content-Length: 9223372036854775807"}, "", 200},
		{"chunk never ends", http.MethodPut, tokenPath, []string{ttlLine + "60", "Transfer-Encoding: chunked"}, "ffffff\r\nabc", 200},
		{"chunks", http.MethodPut, tokenPath, []string{ttlLine + "60", "Transfer-Encoding: chunked"}, "3\r\nabc\r\n0\r\n\r\n", 200},
		{"bad chunks", http.MethodPut, tokenPath, []string{ttlLine + "60", "Transfer-Encoding: chunked"}, "zz\r\n", 200},
		{"awaits 100 Continue", http.MethodPut, tokenPath, []string{ttlLine + "60", "Content-Length: 10", "Expect: 100-continue"}, "", 200},
		{"of GET, never comes", http.MethodGet, w.path(), []string{"Content-Length: 10"}, "", 200},
		{"of GET, comes", http.MethodGet, w.path(), []string{"Content-Length: 2"}, "{}", 200},
		{"of POST to nothing", http.MethodPost, "/x", []string{"Content-Length: 10"}, "", 404},
		{"is a request", http.MethodPost, "/x", []string{fmt.Sprintf("Content-Length: %d", len(inner))}, inner, 404},
		{"is a request, and one follows", http.MethodPost, "/x", []string{fmt.Sprintf("Content-Length: %d", len(inner))}, inner + inner, 404},
		{"is half a request", http.MethodPost, "/x", []string{"Content-Length: 10"}, inner, 404},
		{"chunked, and a request follows", http.MethodPost, "/x", []string{"Transfer-Encoding: chunked"}, "0\r\n\r\n" + inner, 404},
		{"both lengths, and a request follows", http.MethodPost, "/x", []string{"Content-Length: 6", "Transfer-Encoding: chunked"}, "0\r\n\r\n" + inner, 404},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			connection := dialFrom(t, s, w.from)
			if _, err := io.WriteString(connection, request(tc.method, tc.path, tc.lines...)+tc.body); err != nil {
				t.Fatal(err)
			}
			raw, took := untilClosed(t, connection, time.Minute)
			a := parse(t, raw, tc.method)[0]
			if a.StatusCode != tc.status || !a.Close {
				t.Errorf("%d, closes: %v, %s", a.StatusCode, a.Close, a.body)
			}
			if took > 10*time.Second {
				t.Errorf("open for %v", took)
			}
		})
	}
}

// A client that asks and asks and never reads holds one connection, until the answers have
// filled it and the write time-out is over; others are served meanwhile.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	w := newWorkload(newNamespace(t, "slow-reader"), "app").create(t)
	cfg := env.Config(t)
	cfg.MaxWait = 0 // the write time-out follows from it
	s := env.Start(t, cfg)
	s.WaitReady(t)
	connection := dialFrom(t, s, w.from)
	_ = connection.SetReadBuffer(1)
	pipeline := []byte(strings.Repeat(request(http.MethodGet, w.path()), 1000))
	var sent int
	for { // until neither side's buffers take more
		_ = connection.SetWriteDeadline(time.Now().Add(time.Second))
		n, err := connection.Write(pipeline[sent%len(pipeline):])
		if sent += n; err != nil {
			if !isTimeout(err) {
				t.Fatal(err)
			}
			break
		}
	}
	for range 20 {
		if status, body := s.Get(t, w.from, w.path()); status != http.StatusOK {
			t.Errorf("another request: %d %s", status, body)
		}
	}
	_ = connection.SetWriteDeadline(time.Now().Add(90 * time.Second))
	if _, err := connection.Write(bytes.Repeat([]byte{'x'}, 64<<20)); err == nil || isTimeout(err) {
		t.Errorf("the connection is still open: %v", err)
	}
}

func TestSizes(t *testing.T) {
	t.Parallel()
	s, w := startWarm(t, "sizes")
	for _, tc := range []struct {
		name, raw string
		status    int
	}{
		{"3 KB of header", request(http.MethodGet, w.path(), "X: "+strings.Repeat("x", 3<<10)), 200},
		{"5 KB of header", request(http.MethodGet, w.path(), "X: "+strings.Repeat("x", 5<<10)), 431},
		{"200 header lines", request(http.MethodGet, w.path(), slices.Repeat([]string{"X: x"}, 200)...), 431},
		{"100 KB of header", request(http.MethodGet, w.path(), "X: "+strings.Repeat("x", 100<<10)), 431},
		{"10,000 header lines", request(http.MethodGet, w.path(), slices.Repeat([]string{"X: x"}, 10000)...), 431},
		{"3 KB of path", request(http.MethodGet, rolesPath+strings.Repeat("x", 3<<10)), 404},
		{"100 KB of path", request(http.MethodGet, rolesPath+strings.Repeat("x", 100<<10)), 431},
		{"3 KB of query", request(http.MethodGet, readyPath+"?wait=0s&"+strings.Repeat("x", 3<<10)), 204},
		{"100 KB of method", request(strings.Repeat("X", 100<<10), "/"), 431},
		{"3 KB of Host", "GET " + w.path() + " HTTP/1.1\r\nHost: " + strings.Repeat("1", 3<<10) + "\r\n\r\n", 403},
		{"10 MB without an end", "GET " + w.path() + " HTTP/1.1\r\nX: " + strings.Repeat("x", 10<<20), 431},
	} {
		raw := exchange(t, s, w.from, tc.raw)
		if raw == "" && tc.status == http.StatusRequestHeaderFieldsTooLarge {
			continue // the refusal was lost in the reset that follows data which nobody reads
		}
		if a := parse(t, raw, http.MethodGet)[0]; a.StatusCode != tc.status {
			t.Errorf("%s: %d %s", tc.name, a.StatusCode, a.body)
		}
	}
}

// What clients of all ages do with a connection.
func TestConnections(t *testing.T) {
	t.Parallel()
	s, w := startWarm(t, "connections")
	t.Run("pipelining", func(t *testing.T) {
		t.Parallel()
		raw := exchange(t, s, w.from, request(http.MethodGet, rolesPath)+request(http.MethodGet, w.path())+request(http.MethodGet, "/x")+
			request(http.MethodHead, w.path())+request(http.MethodPut, tokenPath, ttlLine+"60")+request(http.MethodGet, w.path(), "Connection: close")+
			request(http.MethodGet, w.path()))
		all := parse(t, raw, "GET", "GET", "GET", "HEAD", "PUT", "GET")
		for i, status := range []int{200, 200, 404, 405, 200, 200} {
			if all[i].StatusCode != status {
				t.Errorf("answer %d: %d %s", i+1, all[i].StatusCode, all[i].body)
			}
		}
		if rolesPath+all[0].body != w.path() || all[3].body != "" || all[1].body != all[5].body {
			t.Errorf("answers in disorder: %q", raw)
		}
	})
	t.Run("keep-alive", func(t *testing.T) {
		t.Parallel()
		connection := dialFrom(t, s, w.from)
		reader := bufio.NewReader(connection)
		for _, path := range []string{w.path(), "/x", rolesPath, w.path()} {
			if _, err := io.WriteString(connection, request(http.MethodGet, path)); err != nil {
				t.Fatal(err)
			}
			response, err := http.ReadResponse(reader, nil)
			if err != nil {
				t.Fatal(err)
			}
			if body, err := io.ReadAll(response.Body); err != nil || response.Close || int64(len(body)) != response.ContentLength {
				t.Errorf("%s: %v, closes: %v, %d bytes of %d", path, err, response.Close, len(body), response.ContentLength)
			}
			_ = response.Body.Close()
		}
	})
	t.Run("HTTP/2 with prior knowledge", func(t *testing.T) {
		t.Parallel()
		connection := dialFrom(t, s, w.from)
		if _, err := io.WriteString(connection, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"); err != nil {
			t.Fatal(err)
		}
		raw, _ := untilClosed(t, connection, time.Minute)
		if a := parse(t, raw, "PRI")[0]; a.StatusCode != http.StatusNotFound {
			t.Errorf("%q", raw)
		}
	})
	t.Run("upgrade", func(t *testing.T) {
		t.Parallel()
		for _, lines := range [][]string{
			{"Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"},
			{"Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="},
		} {
			if a := send(t, s, w.from, http.MethodGet, "/x", lines...); a.StatusCode != http.StatusNotFound {
				t.Errorf("%v: %d", lines, a.StatusCode)
			}
		}
	})
}

// A wait that is longer than the header's and the body's time-outs is not cut by them: its
// answer is complete, and the connection goes on where it can.
func TestLongWaitIsAnsweredWhole(t *testing.T) {
	t.Parallel()
	namespace := newNamespace(t, "long-wait")
	cfg := env.Config(t)
	cfg.MaxWait = 12 * time.Second
	s := env.Start(t, cfg)
	s.WaitReady(t)
	t.Run("nothing comes", func(t *testing.T) {
		t.Parallel()
		from := env.Address()
		connection := dialFrom(t, s, from)
		reader := bufio.NewReader(connection)
		for _, tc := range []struct {
			path   string
			status int
		}{{rolesPath, 503}, {"/x", 404}} { // the second on the same connection
			start := time.Now()
			if _, err := io.WriteString(connection, request(http.MethodGet, tc.path)); err != nil {
				t.Fatal(err)
			}
			response, err := http.ReadResponse(reader, nil)
			if err != nil {
				t.Fatalf("%s after %v: %v", tc.path, time.Since(start), err)
			}
			body, err := io.ReadAll(response.Body)
			if err != nil || response.StatusCode != tc.status || response.Close {
				t.Errorf("%s: %d, closes: %v, %v: %s", tc.path, response.StatusCode, response.Close, err, body)
			}
			_ = response.Body.Close()
			if tc.status == http.StatusServiceUnavailable && (time.Since(start) < cfg.MaxWait || !strings.Contains(string(body), "missing pod") || !strings.Contains(string(body), from.String())) {
				t.Errorf("after %v: %s", time.Since(start), body)
			}
		}
	})
	for name, lines := range map[string][]string{"plain": nil, "with-body": {"Content-Length: 2"}, "without-its-body": {"Content-Length: 20"}} {
		t.Run("the pod comes, "+name, func(t *testing.T) {
			t.Parallel()
			w := newWorkload(namespace, name)
			connection := dialFrom(t, s, w.from)
			body := ""
			if lines != nil {
				body = "{}"
			}
			if _, err := io.WriteString(connection, request(http.MethodGet, w.path(), append(lines, "Connection: close")...)+body); err != nil {
				t.Fatal(err)
			}
			late := time.NewTimer(3 * time.Second) // over the time-out of bodies
			defer late.Stop()
			<-late.C
			w.create(t)
			raw, _ := untilClosed(t, connection, time.Minute)
			a := parse(t, raw, http.MethodGet)[0]
			if a.StatusCode != http.StatusOK {
				t.Fatalf("%d %s", a.StatusCode, a.body)
			}
			if arn, _ := owner(t, a.body); arn != w.arn {
				t.Errorf("credentials of %s", arn)
			}
		})
	}
}

// 10,000 connections, each from an address of its own, that do nothing more: others are
// served as before.
func TestIdleConnections(t *testing.T) {
	t.Parallel()
	namespace := newNamespace(t, "idle")
	idle, busy := newWorkload(namespace, "idle").create(t), newWorkload(namespace, "busy").create(t)
	s, process := env.StartProcess(t)
	s.WaitReady(t)
	before := latency(t, s, busy)
	memory := residentMB(t, process)
	const connections = 10000
	kept := make([]net.Conn, 0, connections)
	defer func() {
		for _, connection := range kept {
			_ = connection.Close()
		}
	}()
	// An address that is no pod's gets its answer at once where there is nothing to wait for.
	first, raw := []byte(request(http.MethodGet, "/x")), []byte(request(http.MethodGet, rolesPath))
	buffer := make([]byte, 4096)
	for i := range connections {
		from := net.IPv4(127, 201, byte(i>>8), byte(i))
		if i == connections-1 {
			from = idle.from.AsSlice()
		}
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: from}, Timeout: rawTimeout}
		connection, err := dialer.Dial("tcp", s.Address)
		if err != nil {
			t.Fatalf("connection %d: %v", len(kept)+1, err)
		}
		kept = append(kept, connection)
		// One request on each: what never says anything is closed after the header time-out.
		if _, err := connection.Write(first); err != nil {
			t.Fatal(err)
		}
		if _, err := connection.Read(buffer); err != nil {
			t.Fatal(err)
		}
	}
	after := latency(t, s, busy)
	t.Logf("median of a request on a new connection: %v before, %v with %d idle connections, which take %d MB of the program built with -race",
		before, after, connections, residentMB(t, process)-memory)
	if after > 10*before+50*time.Millisecond {
		t.Errorf("a request takes %v, %v before", after, before)
	}
	// They are still open, and still serve.
	last := kept[len(kept)-1]
	if _, err := last.Write(raw); err != nil {
		t.Fatal(err)
	}
	if n, err := last.Read(buffer); err != nil || !bytes.HasPrefix(buffer[:n], []byte("HTTP/1.1 200 ")) {
		t.Errorf("%v: %q", err, buffer[:n])
	}
}

// latency is the median time of a request for credentials on a new connection.
func latency(t *testing.T, s *environment.Server, w workload) time.Duration {
	t.Helper()
	times := latencies(t, s, w)
	return times[len(times)/2]
}

// residentMB is VmRSS of a process.
func residentMB(t *testing.T, process *os.Process) int {
	t.Helper()
	return statusMB(t, process, "VmRSS:")
}

// statusMB is a field of proc_pid_status(5) that is in kB.
func statusMB(t *testing.T, process *os.Process, field string) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(status), field)
	var kB int
	if _, err := fmt.Sscan(after, &kB); err != nil {
		t.Fatal(err)
	}
	return kB / 1024
}
