package listener

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

// pieces is a connection whose reads return one piece each.
type pieces struct {
	net.Conn
	data [][]byte
}

func (c *pieces) Read(p []byte) (int, error) {
	for len(c.data) > 0 && len(c.data[0]) == 0 {
		c.data = c.data[1:]
	}
	if len(c.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.data[0])
	c.data[0] = c.data[0][n:]
	return n, nil
}

func (*pieces) SetReadDeadline(time.Time) error { return nil }

// unswept is the listener of connections without deadlines.
var unswept = newListener(nil, Limits{}, zap.NewNop())

func through(data string, at int) *headerConn {
	return newHeaderConn(newConn(&pieces{data: [][]byte{[]byte(data[:at]), []byte(data[at:])}}, unswept), Timeouts{})
}

// piped returns both ends of a connection whose deadlines are swept until the test ends.
func piped(t *testing.T, timeouts Timeouts) (ours *headerConn, theirs net.Conn) {
	t.Helper()
	below, theirs := net.Pipe()
	l := newListener(nil, Limits{Connections: 10, PerSource: 10}, zap.NewNop())
	c := newConn(below, l)
	c.held, _ = l.shares.take(c.source, 1)
	l.keep(c)
	ctx, cancel := context.WithCancel(t.Context())
	var sweeper sync.WaitGroup
	sweeper.Go(func() { l.Sweep(ctx) })
	t.Cleanup(func() {
		cancel()
		sweeper.Wait()
		_, _ = c.Close(), theirs.Close()
	})
	return newHeaderConn(c, timeouts), theirs
}

// What comes out is what went in but for the lines that are added, wherever the bytes are
// cut, and however few are read at a time.
func TestBytesPass(t *testing.T) {
	const token = "PUT /latest/api/token HTTP/1.1\r\nX-Ttl: 60\r\nHost: 169.254.169.254\r\n\r\n"
	for name, tc := range map[string]struct{ in, out string }{
		"plain":       {token, token},
		"pipelined":   {token + token + "GET / HTTP/1.0\r\n\r\n" + token, token + token + "GET / HTTP/1.0\r\n\r\n" + token},
		"bare feeds":  {"GET / HTTP/1.1\nhost: a\n\n" + token, "GET / HTTP/1.1\nhost: a\n\n" + token},
		"empty line":  {"\r\n" + token, "\r\n" + token},
		"only a body": {"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\n\r\n\r\nGET " + token, "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\n\r\n\r\nGET " + token},
		"no body":     {"PUT / HTTP/1.1\r\nHost: a\r\ncontent-length:0\r\n\r\n" + token, "PUT / HTTP/1.1\r\nHost: a\r\ncontent-length:0\r\n\r\n" + token},
		"no Host":     {"GET / HTTP/1.1\r\nX: y\r\n\r\n" + token, "GET / HTTP/1.1\r\nX: y\r\nHost: \r\n\r\n" + token},
		"no header":   {"GET / HTTP/1.1\r\n\r\n" + token, "GET / HTTP/1.1\r\nHost: \r\n\r\n" + token},
		"no Host and a body": {
			"PUT / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc" + token, "PUT / HTTP/1.1\r\nContent-Length: 3\r\nHost: \r\n\r\nabc" + token,
		},
		"no Host behind a body": {
			"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\n\r\n", "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: \r\n\r\n",
		},
		"no Host twice": {"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n", "GET /1 HTTP/1.1\r\nHost: \r\n\r\nGET /2 HTTP/1.1\r\nHost: \r\n\r\n"},
		"HTTP/1.0":      {"GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.0\r\n\r\n"},
		"HTTP/2":        {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
		"chunks":        {"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n", "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n"},
		"two lengths":   {"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx"},
		"odd length":    {"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx", "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\nConnection: close\r\n\r\nx"},
		"folded":        {"PUT / HTTP/1.1\r\nHost: a\r\nX: y\r\n Content-Length: 1\r\n\r\nx", "PUT / HTTP/1.1\r\nHost: a\r\nX: y\r\n Content-Length: 1\r\nConnection: close\r\n\r\nx"},
		"no name":       {"GET / HTTP/1.1\r\n:\r\nHost: a\r\n\r\n", "GET / HTTP/1.1\r\n:\r\nHost: a\r\n\r\n"},
		"long body":     {"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9000\r\n\r\n" + strings.Repeat("\n", 9000) + token, "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9000\r\n\r\n" + strings.Repeat("\n", 9000) + token},
	} {
		t.Run(name, func(t *testing.T) {
			step := 1 + len(tc.in)/1000*12 // odd, so that both readers below see cuts of all kinds
			for at := 0; at < len(tc.in); at += step {
				var reader io.Reader = through(tc.in, at)
				if at%2 == 1 {
					reader = iotest.OneByteReader(reader)
				}
				if at > 200 {
					reader = bufio.NewReaderSize(reader, 4096)
				}
				out, err := io.ReadAll(reader)
				if string(out) != tc.out || err != nil {
					t.Fatalf("cut at %d: %v, got\n%q, want\n%q", at, err, out, tc.out)
				}
			}
		})
	}
}

// Nothing of a header that is too large is kept but its first line, and what follows it is
// never taken for another request.
func TestTooLargeHeaderNeverEnds(t *testing.T) {
	const next = "GET /next HTTP/1.1\r\nHost: a\r\n\r\n"
	for name, large := range map[string]string{
		"bytes":             "GET /long HTTP/1.1\r\nX: " + strings.Repeat("y", MaxHeaderBytes) + "\r\n\r\n",
		"lines":             "GET /long HTTP/1.1\r\n" + strings.Repeat("a:b\r\n", maxHeaderLines) + "\r\n",
		"without a line":    strings.Repeat("G", MaxHeaderBytes+1),
		"without an end":    "GET /long HTTP/1.1\r\nX: " + strings.Repeat("y", 10*MaxHeaderBytes),
		"in the first line": "GET /" + strings.Repeat("y", MaxHeaderBytes) + " HTTP/1.1\r\n\r\n",
	} {
		for _, cut := range []int{0, 1, 20, 400, MaxHeaderBytes / 2, len(large)} {
			reader := through(large+next, min(cut, len(large)))
			out, err := io.ReadAll(io.LimitReader(reader, 100<<10))
			if err != nil || len(out) != 100<<10 || bytes.Contains(out, []byte("\r\n\r\n")) || bytes.Contains(out, []byte("/next")) {
				t.Errorf("%s, cut at %d: %v, %d bytes: %.60q", name, cut, err, len(out), out)
			}
			if kept := cap(reader.kept); kept > MaxHeaderBytes+1024 {
				t.Errorf("%s, cut at %d: %d bytes are kept", name, cut, kept)
			}
		}
	}
}

// within fails unless do fails for its deadline after that time, as exactly as deadlines are
// swept.
func within(t *testing.T, what string, after time.Duration, do func() error) {
	t.Helper()
	start := time.Now()
	err := do()
	if took := time.Since(start); !errors.Is(err, os.ErrDeadlineExceeded) || took < after-sweepEvery || took > after+sweepEvery {
		t.Errorf("%s: %v after %v, want %v", what, err, took, after)
	}
}

// A program that was not given a processor for an hour cuts nobody for it.
func TestTimeLostIsNotTheClients(t *testing.T) {
	l := newListener(nil, Limits{Connections: 10, PerSource: 10}, zap.NewNop())
	now := l.start
	connect := func() (*headerConn, net.Conn) {
		below, theirs := net.Pipe()
		c := newConn(below, l)
		c.held, _ = l.shares.take(c.source, 1)
		l.keep(c)
		t.Cleanup(func() { _, _ = c.Close(), theirs.Close() })
		return newHeaderConn(c, Timeouts{}), theirs
	}
	before, _ := connect()
	now = now.Add(time.Hour)
	// Accepted before the sweeper is given its processor.
	between, _ := connect()
	l.sweep(now)
	after, _ := connect()
	for range HeaderTimeout/sweepEvery - 3 {
		now = now.Add(sweepEvery)
		l.sweep(now)
	}
	if before.readPassed() || between.readPassed() || after.readPassed() {
		t.Error("cut for time that was lost")
	}
	for range 4 {
		now = now.Add(sweepEvery)
		l.sweep(now)
	}
	if !before.readPassed() || !between.readPassed() || !after.readPassed() {
		t.Error("not cut in time")
	}
}

// A header has three seconds from its first byte, the first one from the connection's start,
// the next request and an answer have their own times, and the reader's deadline changes
// nothing about that.
func TestTimeouts(t *testing.T) {
	const request = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
	timeouts := Timeouts{Idle: time.Minute, Answer: 20 * time.Second}
	for name, test := range map[string]func(*testing.T, *headerConn, net.Conn){
		"nothing comes": func(t *testing.T, c *headerConn, _ net.Conn) {
			t.Helper()
			within(t, "the first byte", HeaderTimeout, func() error { return readAll(c, time.Hour) })
		},
		"half a header": func(t *testing.T, c *headerConn, theirs net.Conn) {
			t.Helper()
			go func() {
				time.Sleep(2 * time.Second) //nolint:forbidigo // the bubble's clock
				write(t, theirs, "GET")
				time.Sleep(time.Second) //nolint:forbidigo // the bubble's clock
				_ = c.SetReadDeadline(time.Time{})
				write(t, theirs, " /")
			}()
			within(t, "the end of a header", 2*time.Second+HeaderTimeout, func() error { return readAll(c, time.Hour) })
		},
		"idle, and half a header then": func(t *testing.T, c *headerConn, theirs net.Conn) {
			t.Helper()
			go write(t, theirs, request)
			read(t, c, request)
			_ = c.SetWriteDeadline(time.Time{})
			go func() {
				time.Sleep(50 * time.Second) //nolint:forbidigo // the bubble's clock
				write(t, theirs, "GET")
			}()
			within(t, "the end of a header", 50*time.Second+HeaderTimeout, func() error { return readAll(c, 0) })
		},
		"idle": func(t *testing.T, c *headerConn, theirs net.Conn) {
			t.Helper()
			go write(t, theirs, request)
			read(t, c, request)
			_ = c.SetWriteDeadline(time.Time{})
			within(t, "the next request", timeouts.Idle, func() error { return readAll(c, 0) })
		},
		"an answer that nobody takes": func(t *testing.T, c *headerConn, theirs net.Conn) {
			t.Helper()
			go write(t, theirs, request)
			read(t, c, request)
			within(t, "the answer", timeouts.Answer, func() error { _, err := c.Write([]byte("answer")); return err })
		},
		"an answer to a request that came early": func(t *testing.T, c *headerConn, theirs net.Conn) {
			t.Helper()
			go write(t, theirs, request+request)
			read(t, c, request+request)
			_ = c.SetWriteDeadline(time.Time{})
			within(t, "the second answer", timeouts.Answer, func() error { _, err := c.Write([]byte("answer")); return err })
		},
		"a request that waits": func(t *testing.T, c *headerConn, theirs net.Conn) {
			t.Helper()
			go write(t, theirs, request)
			read(t, c, request)
			within(t, "the reader's deadline", time.Hour, func() error { return readAll(c, time.Hour) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, theirs := piped(t, timeouts)
				test(t, c, theirs)
			})
		})
	}
}

func write(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Error(err)
	}
}

func read(t *testing.T, c net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("%q, %v", got, err)
	}
}

// readAll reads to the end, with a deadline unless that is 0.
func readAll(c net.Conn, deadline time.Duration) error {
	if deadline > 0 {
		_ = c.SetReadDeadline(time.Now().Add(deadline))
	}
	_, err := io.Copy(io.Discard, c)
	return err
}

// A reader that is told to give up does, also in the midst of a header, and goes on later.
func TestReaderGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, theirs := piped(t, Timeouts{})
		go func() { _, _ = io.WriteString(theirs, "GET / HTTP/1.1\r\n") }()
		failed := make(chan error)
		go func() {
			_, err := c.Read(make([]byte, 1)) // as net/http does beside a handler
			failed <- err
		}()
		synctest.Wait()
		_ = c.SetReadDeadline(time.Now())
		if err := <-failed; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Time{})
		go func() { _, _ = io.WriteString(theirs, "Host: a\r\n\r\n") }()
		if r, err := http.ReadRequest(bufio.NewReader(c)); err != nil || r.Host != "a" {
			t.Errorf("%v, %v", r, err)
		}
	})
}

// Whatever comes, net/http understands the same requests, but for those that it refuses
// without a Host, and those after a body of unknown length.
func FuzzHeaders(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\nPUT /x HTTP/1.1\r\nHost: b\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.0\r\n\r\n"), uint16(20))
	f.Add([]byte("PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), uint16(3))
	f.Fuzz(func(t *testing.T, data []byte, cut uint16) {
		if len(data) > MaxHeaderBytes {
			return
		}
		plain, ours := bufio.NewReader(bytes.NewReader(data)), bufio.NewReader(through(string(data), min(int(cut), len(data))))
		for {
			a, errA := http.ReadRequest(plain)
			b, errB := http.ReadRequest(ours)
			if errA != nil {
				return
			}
			if errB != nil || a.Method != b.Method || a.RequestURI != b.RequestURI || a.Host != b.Host || a.ContentLength != b.ContentLength {
				if lines := bytes.Count(data, []byte{'\n'}); lines > maxHeaderLines {
					return
				}
				t.Fatalf("%+v, %v; want %+v", b, errB, a)
			}
			if b.Close && !a.Close {
				return
			}
			bodyA, errA := io.ReadAll(a.Body)
			bodyB, errB := io.ReadAll(b.Body)
			if !bytes.Equal(bodyA, bodyB) || (errA == nil) != (errB == nil) {
				t.Fatalf("%q, %v; want %q, %v", bodyB, errB, bodyA, errA)
			}
		}
	})
}
