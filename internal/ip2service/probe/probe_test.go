package probe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

var ofPod = Probe{
	Address: netip.MustParseAddrPort("169.254.169.254:80"),
	Behind:  []netip.AddrPort{netip.MustParseAddrPort("10.96.0.7:80")},
	PodIPs:  []netip.Addr{netip.MustParseAddr("10.244.0.2"), netip.MustParseAddr("fd00::2")},
}

// says checks that a text has these parts.
func says(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q does not say %q", text, part)
		}
	}
}

func TestJudge(t *testing.T) {
	const own = "10.244.0.2"
	for _, tc := range []struct {
		name           string
		status         int
		server, source string
		body           string
		without        Without
		failure        []string // empty: none
	}{
		{name: "credentials", status: 204, server: "iam4kube", source: own},
		{name: "credentials by IPv6", status: 204, server: "iam4kube", source: "fd00::2"},
		{name: "an IPv4 address in the form of a dual-stack listener", status: 204, server: "iam4kube", source: "::ffff:10.244.0.2"},
		{name: "no role", status: 404, server: "iam4kube", source: own, body: "missing role-annotation", without: "missing role-annotation"},
		{name: "missing", status: 503, server: "iam4kube", source: own, body: "missing credentials", without: "missing credentials"},
		{name: "denied", status: 403, server: "iam4kube", source: own, body: "denied", without: "denied"},
		{name: "no text", status: 503, server: "iam4kube", source: own, without: "503 Service Unavailable"},
		{name: "not iam4kube's", status: 204, server: "EC2ws", source: own, failure: []string{"not iam4kube's", "status 204", `server "EC2ws"`, "169.254.169.254:80"}},
		{name: "a name that only begins so", status: 204, server: "iam4kube/2", source: own, failure: []string{"not iam4kube's"}},
		{name: "no name", status: 404, source: own, failure: []string{"not iam4kube's", `server ""`}},
		{name: "no source", status: 404, server: "iam4kube", failure: []string{"not iam4kube's", "status 404"}},
		{name: "a source that is no address", status: 204, server: "iam4kube", source: "pod", failure: []string{"not iam4kube's"}},
		{name: "another source", status: 204, server: "iam4kube", source: "10.0.0.1", failure: []string{"10.0.0.1", "10.244.0.2, fd00::2", "masquerade", "another interface"}},
		{name: "another source and a denial", status: 403, server: "iam4kube", source: "10.0.0.1", body: "is a node's", failure: []string{"10.0.0.1", "masquerade"}},
		{name: "another source and no role", status: 404, server: "iam4kube", source: "fd00::3", failure: []string{"fd00::3"}},
		{name: "success of another kind", status: 200, server: "iam4kube", source: own, body: "hello", failure: []string{"200 OK", "hello", "version"}},
		{name: "bad request", status: 400, server: "iam4kube", source: own, body: "wait must be", failure: []string{"400", "wait must be"}},
		{name: "redirect", status: 302, server: "iam4kube", source: own, failure: []string{"302"}},
		{name: "error", status: 500, server: "iam4kube", source: own, failure: []string{"500"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			header := http.Header{"Server": {tc.server}, "X-Iam4kube-Source-Ip": {tc.source}}
			response := &http.Response{StatusCode: tc.status, Status: fmt.Sprint(tc.status, " ", http.StatusText(tc.status)), Header: header}
			without, err := ofPod.judge(response, tc.body)
			if without != tc.without || (err != nil) != (tc.failure != nil) {
				t.Fatalf("got %q, %v", without, err)
			}
			if err != nil {
				says(t, err.Error(), tc.failure...)
			}
			if _, again := err.(*unreached); again { //nolint:errorlint // the type itself: judge wraps nothing
				t.Error("it is tried again")
			}
		})
	}
}

// The likely cause is told from what the kernel says of the connection.
func TestExplain(t *testing.T) {
	dial := func(err error) error { return &net.OpError{Op: "dial", Net: "tcp", Err: err} }
	for _, tc := range []struct {
		err  error
		want string
	}{
		{dial(os.NewSyscallError("connect", syscall.ECONNREFUSED)), "there is no ready server"},
		{dial(os.NewSyscallError("connect", syscall.EHOSTUNREACH)), "no route"},
		{dial(os.NewSyscallError("connect", syscall.ENETUNREACH)), "no route"},
		{dial(os.NewSyscallError("connect", syscall.EACCES)), "a firewall rejects"}, // ICMPv6: administratively prohibited
		{dial(os.NewSyscallError("connect", syscall.ETIMEDOUT)), "nobody answers"},
		{dial(os.ErrDeadlineExceeded), "socketLB.hostNamespaceOnly=true"},
		{dial(context.DeadlineExceeded), "nobody answers"},
		{&net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNRESET)}, "the connection broke"},
		{io.ErrUnexpectedEOF, "the connection broke"},
	} {
		says(t, ofPod.explain(tc.err).Error(), tc.want, tc.err.Error(), "169.254.169.254:80", "10.96.0.7:80")
	}
}

// server is where the intercepted address would lead; the answers are given one after
// the other, and the last one again and again.
type server struct {
	*httptest.Server
	asked, connections atomic.Int64
}

func newServer(t *testing.T, answers ...http.HandlerFunc) (*server, Probe) {
	t.Helper()
	s := &server{}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := int(s.asked.Add(1))
		answers[min(n, len(answers))-1](w, r)
	}))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			s.connections.Add(1)
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	loopback := netip.MustParseAddr("127.0.0.1")
	return s, Probe{Address: netip.MustParseAddrPort(s.Listener.Addr().String()), PodIPs: []netip.Addr{loopback}, Wait: time.Second, Timeout: time.Minute}
}

func answer(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Server", "iam4kube")
		w.Header().Set("X-Iam4kube-Source-Ip", "127.0.0.1")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

func broken(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

// truncated ends in the middle of the text.
func truncated(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Length", "100")
	answer(http.StatusNotFound, "missing")(w, r)
}

// garbage is no HTTP.
func garbage(w http.ResponseWriter, _ *http.Request) {
	conn, buffer, err := w.(http.Hijacker).Hijack() //nolint:errcheck // a panic tells as much
	if err != nil {
		panic(err)
	}
	_, _ = buffer.WriteString("SSH-2.0-OpenSSH\r\n")
	_ = buffer.Flush()
	_ = conn.Close()
}

// Each try is a connection of its own, which may lead to another server.
func TestRunTriesAgainUntilThereIsAnAnswer(t *testing.T) {
	tooMany := answer(http.StatusTooManyRequests, "too many")
	s, p := newServer(t, broken, tooMany, truncated, garbage, answer(http.StatusNotFound, " no role\n"))
	without, err := p.Run(t.Context())
	if without != "no role" || err != nil {
		t.Errorf("got %q, %v", without, err)
	}
	if asked, connections := s.asked.Load(), s.connections.Load(); asked != 5 || connections != 5 {
		t.Errorf("asked %d times by %d connections, want 5 by 5", asked, connections)
	}
}

func TestRunAsksOnceForWhatDecides(t *testing.T) {
	for _, status := range []int{204, 404, 503, 403, 500, 302} {
		s, p := newServer(t, answer(status, ""))
		_, err := p.Run(t.Context())
		if failed := status == 500 || status == 302; (err != nil) != failed || s.asked.Load() != 1 {
			t.Errorf("%d: asked %d times, %v", status, s.asked.Load(), err)
		}
	}
}

func TestRequestIsWhatTheServerReads(t *testing.T) {
	_, p := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		host, err := netip.ParseAddrPort(r.Host)
		if r.Method != http.MethodGet || r.RequestURI != "/iam4kube/ready?wait=1m30s" || err != nil || !host.IsValid() {
			t.Errorf("%s %s, Host %s", r.Method, r.RequestURI, r.Host)
		}
		answer(http.StatusNoContent, "")(w, r)
	})
	p.Wait = 90 * time.Second
	if without, err := p.Run(t.Context()); without != "" || err != nil {
		t.Errorf("got %q, %v", without, err)
	}
}

func TestLongTextIsCut(t *testing.T) {
	_, p := newServer(t, answer(http.StatusServiceUnavailable, strings.Repeat("missing ", 1<<17)))
	if without, err := p.Run(t.Context()); len(without) == 0 || len(without) > maxBody || err != nil {
		t.Errorf("%d bytes, %v", len(without), err)
	}
}

func TestRunGivesUpWhenTheTimeIsOver(t *testing.T) {
	s, p := newServer(t, broken)
	p.Timeout = 300 * time.Millisecond
	begin := time.Now()
	_, err := p.Run(t.Context())
	if took := time.Since(begin); err == nil || took < p.Timeout {
		t.Fatalf("after %v: %v", took, err)
	}
	says(t, err.Error(), "the connection broke")
	// With pauses of at least 50, 100 and 200 ms.
	if asked := s.asked.Load(); asked < 2 || asked > 5 {
		t.Errorf("asked %d times", asked)
	}
	s.Close() // now nobody listens
	p.Timeout = time.Nanosecond
	_, err = p.Run(t.Context())
	says(t, fmt.Sprint(err), "refused")
}

// Whoever waits hears why, once, when it takes long.
func TestRunTellsWhenItIsLate(t *testing.T) {
	late := make(chan error, 10)
	_, p := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		if len(late) == 0 {
			broken(w, r)
		}
		answer(http.StatusNoContent, "")(w, r)
	})
	p.Late = func(err error) { late <- err }
	begin := time.Now()
	if without, err := p.Run(t.Context()); without != "" || err != nil {
		t.Errorf("got %q, %v", without, err)
	}
	if took := time.Since(begin); took < lateAfter || len(late) != 1 {
		t.Fatalf("told %d times, answered after %v", len(late), took)
	}
	says(t, fmt.Sprint(<-late), "the connection broke")
}

// A way that leads nowhere is told from an answer that is wrong.
func TestUnreached(t *testing.T) {
	for name, tc := range map[string]struct {
		answer http.HandlerFunc
		want   bool
	}{
		"broken": {broken, true}, "too many": {answer(http.StatusTooManyRequests, ""), true},
		"of another pod": {as("other/app"), false},
		"another's":      {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }, false},
		"an error":       {answer(http.StatusInternalServerError, ""), false},
	} {
		_, p := newServer(t, tc.answer)
		p.Timeout, p.Pod = 0, "shop/app"
		if _, err := p.Run(t.Context()); err == nil || errors.Is(err, ErrUnreached) != tc.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// When there is an answer elsewhere, no more is tried where nobody answers; but whoever is
// taken for another pod asks on.
func TestEnough(t *testing.T) {
	enough := make(chan struct{})
	close(enough)
	s, p := newServer(t, broken)
	p.Enough = enough
	if _, err := p.Run(t.Context()); !errors.Is(err, ErrUnreached) || s.asked.Load() != 1 {
		t.Errorf("asked %d times, %v", s.asked.Load(), err)
	}
	s, p = newServer(t, as("other/app"), as("third/app"), as("shop/app"))
	p.Enough, p.Pod = enough, "shop/app"
	if _, err := p.Run(t.Context()); err != nil || s.asked.Load() != 3 {
		t.Errorf("asked %d times, %v", s.asked.Load(), err)
	}
}

// as answers to a pod of this NAMESPACE/NAME that its credentials are there.
func as(pod string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Iam4kube-Pod", pod)
		answer(http.StatusNoContent, "")(w, r)
	}
}

// Whom the server takes the pod for is compared, if both say so, whatever else the answer
// says; and asked again, because the address may just have changed hands.
func TestAnswerIsForThisPod(t *testing.T) {
	as := func(pod string, status int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Iam4kube-Pod", pod)
			answer(status, "text")(w, r)
		}
	}
	for _, tc := range []struct {
		name    string
		pod     string
		answers []http.HandlerFunc
		asked   int64
	}{
		{"this one", "shop/app", []http.HandlerFunc{as("shop/app", 204)}, 1},
		{"an older server", "shop/app", []http.HandlerFunc{answer(204, "")}, 1},
		{"an older webhook", "", []http.HandlerFunc{as("other/app", 204)}, 1},
		{"the one before", "shop/app", []http.HandlerFunc{as("other/app", 204), as("other/app", 404), as("shop/ap", 403), as("shop/app", 204)}, 4},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, p := newServer(t, tc.answers...)
			p.Pod = tc.pod
			if without, err := p.Run(t.Context()); without != "" || err != nil || s.asked.Load() != tc.asked {
				t.Errorf("asked %d times, %q, %v", s.asked.Load(), without, err)
			}
		})
	}
	t.Run("another until the end", func(t *testing.T) {
		_, p := newServer(t, as("other/app", 204))
		p.Pod, p.Timeout = "shop/app", time.Millisecond
		_, err := p.Run(t.Context())
		says(t, fmt.Sprint(err), "127.0.0.1", `"other/app"`, "this is shop/app", "changed hands", "another node")
	})
}

// The time-out is for a way that does not work. A server that was found in time and waits
// for what is missing is heard.
func TestTimeoutCutsNoAnswerOff(t *testing.T) {
	_, p := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		<-time.After(200 * time.Millisecond)
		answer(http.StatusServiceUnavailable, "missing pod")(w, r)
	})
	p.Timeout = time.Millisecond
	if without, err := p.Run(t.Context()); without != "missing pod" || err != nil {
		t.Errorf("got %q, %v", without, err)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	t.Run("between tries", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		_, p := newServer(t, func(w http.ResponseWriter, r *http.Request) {
			cancel()
			broken(w, r)
		})
		_, err := p.Run(ctx)
		says(t, fmt.Sprint(err), "stopped before a server answered")
	})
	t.Run("in a try", func(t *testing.T) {
		listener, err := net.Listen("tcp", "127.0.0.1:0") // whose requests are never answered
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = listener.Close() }()
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			conn, err := listener.Accept()
			if err == nil {
				_, _ = bufio.NewReader(conn).ReadByte()
			}
			cancel()
		}()
		p := Probe{Address: netip.MustParseAddrPort(listener.Addr().String()), Wait: time.Hour, Timeout: time.Hour}
		_, err = p.Run(ctx)
		says(t, fmt.Sprint(err), "stopped before a server answered")
	})
}
