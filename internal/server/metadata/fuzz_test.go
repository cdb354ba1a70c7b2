package metadata

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// conn is a connection whose client has sent everything and then closed its side.
type conn struct {
	request *bytes.Reader
	mu      sync.Mutex
	answer  bytes.Buffer
	closed  chan struct{}
	once    sync.Once
}

func newConn(request []byte) *conn {
	return &conn{request: bytes.NewReader(request), closed: make(chan struct{})}
}

func (c *conn) Read(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.request.Read(b)
}

func (c *conn) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.answer.Write(b)
}

func (c *conn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

// CloseWrite is what net/http calls before it waits half a second for the client to read
// a refusal. Nothing comes after it.
func (c *conn) CloseWrite() error { return c.Close() }

func (*conn) LocalAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(169, 254, 169, 254), Port: 80} }

func (*conn) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.ParseIP(podAddress), Port: 4567} }
func (*conn) SetDeadline(time.Time) error      { return nil }
func (*conn) SetReadDeadline(time.Time) error  { return nil }
func (*conn) SetWriteDeadline(time.Time) error { return nil }

// listener accepts the conns that are sent to it.
type listener chan net.Conn

func (l listener) Accept() (net.Conn, error) {
	if c, open := <-l; open {
		return c, nil
	}
	return nil, net.ErrClosed
}

func (l listener) Close() error { return nil }
func (listener) Addr() net.Addr { return &net.TCPAddr{} }

// errorLog is net/http's, which tells of panics there.
type errorLog struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (e *errorLog) Write(b []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.text.Write(b)
}

func (e *errorLog) take() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	defer e.text.Reset()
	return e.text.String()
}

// serveRaw is a function that serves the bytes of a connection of the pod by net/http
// and the handler, with the server's settings, and returns all that the client gets.
func serveRaw(t testing.TB, s *Server) (serve func([]byte) []byte, errs *errorLog) {
	t.Helper()
	accept, errs := make(listener), &errorLog{}
	server := &http.Server{Handler: s, MaxHeaderBytes: 32 << 10, DisableGeneralOptionsHandler: true, ErrorLog: log.New(errs, "", 0)}
	go func() { _ = server.Serve(accept) }()
	t.Cleanup(func() { close(accept) })
	return func(request []byte) []byte {
		c := newConn(request)
		accept <- c
		<-c.closed
		c.mu.Lock()
		defer c.mu.Unlock()
		return bytes.Clone(c.answer.Bytes())
	}, errs
}

var (
	// allowed is the request line of credentials, written down here once more and by
	// other means than in the handler.
	allowed = regexp.MustCompile(`(?m)^GET /+(?:latest|\d{4}-\d\d-\d\d)/+meta-data/+iam/+security-credentials/+([^/? ]+)/* HTTP/1\.[01]\r?$`)
	// statuses are those that the contract names, and those by which net/http refuses
	// what is not HTTP/1: such an answer does not come from the handler.
	statuses    = map[int]bool{200: true, 204: true, 400: true, 401: true, 403: true, 404: true, 405: true, 429: true, 503: true}
	notHandlers = map[int]bool{400: true, 413: true, 417: true, 431: true, 501: true, 505: true}
)

// asksForCredentials reports whether a line of the input asks for the pod's credentials
// in the one way there is.
func asksForCredentials(request []byte) bool {
	for _, match := range allowed.FindAllSubmatch(request, -1) {
		if name, err := url.PathUnescape(string(match[1])); err == nil && name == roleName {
			return true
		}
	}
	return false
}

func checkAnswers(t *testing.T, request, answers []byte) {
	t.Helper()
	if bytes.Contains(answers, []byte(secretKey)) || bytes.Contains(answers, []byte(sessionKey)) {
		if !asksForCredentials(request) {
			t.Errorf("%q opens the credentials:\n%s", request, answers)
		}
	}
	reader := bufio.NewReader(bytes.NewReader(answers))
	for {
		if _, err := reader.Peek(1); err != nil {
			return
		}
		// The method matters only for answers without a body.
		answer, err := http.ReadResponse(reader, nil)
		if err != nil {
			t.Fatalf("%q: %v in\n%s", request, err, answers)
		}
		if _, err := io.Copy(io.Discard, answer.Body); err != nil && (!errors.Is(err, io.ErrUnexpectedEOF) || !isHead(request)) {
			t.Fatalf("%q: %v in\n%s", request, err, answers)
		}
		_ = answer.Body.Close()
		if answer.StatusCode == http.StatusContinue {
			continue
		}
		if len(answer.Header["Location"]) > 0 {
			t.Errorf("%q is redirected:\n%s", request, answers)
		}
		if ours := answer.Header.Get("Server") == "iam4kube"; ours && !statuses[answer.StatusCode] || !ours && !notHandlers[answer.StatusCode] {
			t.Errorf("%q: status %d, by the handler: %v", request, answer.StatusCode, ours)
		}
		if isHead(request) {
			return // where an answer to HEAD ends cannot be told without knowing which one it is
		}
	}
}

func isHead(request []byte) bool { return bytes.Contains(request, []byte("HEAD")) }

// FuzzRequest feeds the bytes of whole connections: nothing panics, nothing is
// redirected, and credentials come only for the one request that asks for them.
func FuzzRequest(f *testing.F) {
	s := newServer(f, 0)
	serve, errs := serveRaw(f, s)
	const path = "/latest/meta-data/iam/security-credentials/"
	const end = " HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n"
	get := "GET " + path + roleName + end
	if answer := serve([]byte(get)); !bytes.Contains(answer, []byte(secretKey)) {
		f.Fatalf("the pod has no credentials, so nothing could be opened: %s", answer)
	}
	for _, seed := range []string{
		get,
		get + get,
		"GET " + path + url.PathEscape(roleName) + end,
		"GET " + path + "%61%2bb%3dc%2cd.e%40f-g_h" + end,
		"GET " + path + roleName + "/" + end,
		"GET " + path + "/" + roleName + end,
		"GET " + path + "x/../" + roleName + end,
		"GET " + path + roleName + "?" + end,
		"GET " + path + "%2e%2e/" + roleName + end,
		"GET http://169.254.169.254" + path + roleName + end,
		"GET http://example.com" + path + roleName + end,
		"GET //" + strings.TrimPrefix(path, "/") + roleName + end,
		"HEAD " + path + roleName + end,
		"POST " + path + roleName + end,
		"get " + path + roleName + end,
		"GET " + path + roleName + " HTTP/1.0\n\n",
		"GET " + path + roleName + "\r\n\r\n",
		"GET " + path + roleName + " HTTP/1.1\r\n\r\n",
		"GET " + path + roleName + " HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"GET " + path + roleName + " HTTP/1.1\r\nHost: 169.254.169.254\r\nX-Forwarded-For: 10.0.0.1\r\n\r\n",
		"GET " + path + roleName + " HTTP/1.1\r\nHost: 169.254.169.254\r\nX-aws-ec2-metadata-token: " + s.token(f) + "\r\n\r\n",
		"GET " + path + roleName + " HTTP/1.1\r\nHost: 169.254.169.254\r\nX-aws-ec2-metadata-token:\r\n\r\n",
		"POST /x HTTP/1.1\r\nHost: 169.254.169.254\r\nContent-Length: 200\r\n\r\n" + get,
		"POST /x HTTP/1.1\r\nHost: 169.254.169.254\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + get,
		"POST /x HTTP/1.1\r\nHost: 169.254.169.254\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
		"GET " + path + end,
		"GET /latest/meta-data/placement/availability-zone/" + end,
		"GET /latest/meta-data/placement/region" + end,
		"GET /latest/dynamic/instance-identity/document" + end,
		"GET /iam4kube/ready?wait=5s" + end,
		"GET /iam4kube/ready?wait=%zz;" + end,
		"GET /latest/user-data" + end,
		"PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\nX-aws-ec2-metadata-token-ttl-seconds: 21600\r\n\r\n",
		"PUT /latest/api/token" + end,
		"OPTIONS * HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n",
		"CONNECT 169.254.169.254:80" + end,
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
		"",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, request []byte) {
		checkAnswers(t, request, serve(request))
		if text := errs.take(); strings.Contains(text, "panic") {
			t.Errorf("%q: %s", request, text)
		}
	})
}

// FuzzRoute: whatever the request target is, credentials are asked for by no other than
// the one path.
func FuzzRoute(f *testing.F) {
	for _, seed := range []string{
		"/latest/meta-data/iam/security-credentials/" + roleName, "/2009-04-04/meta-data/iam/security-credentials/%41",
		"/latest/meta-data/iam/security-credentials/", "/latest/../x", "*", "",
		"//latest///meta-data//iam/security-credentials//a/", "/latest/meta-data/iam/security-credentials//",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, target string) {
		got := route(target)
		if got.endpoint != endpointCredentials {
			return
		}
		if !regexp.MustCompile(`^/+[^/?]+/+meta-data/+iam/+security-credentials/+[^/?]+/*$`).MatchString(target) {
			t.Errorf("%q asks for %q", target, got.role)
		}
	})
}
