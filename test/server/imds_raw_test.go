package server

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/test/environment"
)

// rawTimeout bounds an exchange that should take milliseconds.
const rawTimeout = 30 * time.Second

// dialFrom opens a connection that comes from this address and ends with the test.
func dialFrom(t testing.TB, s *environment.Server, from netip.Addr) *net.TCPConn {
	t.Helper()
	connection, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}, Timeout: rawTimeout}).Dial("tcp", s.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = connection.Close() })
	tcp, ok := connection.(*net.TCPConn)
	if !ok {
		t.Fatalf("%T", connection)
	}
	return tcp
}

// exchange sends the bytes on a connection of their own, then closes the sending side, and
// returns all that comes back. Whether it may hold secrets is the test's to say.
func exchange(t testing.TB, s *environment.Server, from netip.Addr, raw string) string {
	t.Helper()
	connection := dialFrom(t, s, from)
	defer func() { _ = connection.Close() }()
	_ = connection.SetDeadline(time.Now().Add(rawTimeout)) // fails on a closed connection, as what follows
	// Both may fail where the server has refused before the end: the answer tells.
	if _, err := io.WriteString(connection, raw); err == nil {
		_ = connection.CloseWrite()
	}
	var answer bytes.Buffer
	if _, err := io.Copy(&answer, connection); isTimeout(err) {
		t.Fatalf("%.200q: no end of the answer: %v, so far %q", raw, err, answer.String())
	}
	return answer.String()
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// answered is one response of a raw exchange.
type answered struct {
	*http.Response
	body string
}

// parse reads the responses to requests with these methods, and fails if there are more
// or fewer, or one is cut.
func parse(t testing.TB, raw string, methods ...string) []answered {
	t.Helper()
	reader := bufio.NewReader(strings.NewReader(raw))
	var all []answered
	for _, method := range methods {
		response, err := http.ReadResponse(reader, &http.Request{Method: method})
		if err != nil {
			t.Fatalf("answer %d: %v in %q", len(all)+1, err, raw)
		}
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatalf("answer %d is cut: %v in %q", len(all)+1, err, raw)
		}
		_ = response.Body.Close()
		all = append(all, answered{response, string(body)})
	}
	if rest, _ := io.ReadAll(reader); len(rest) > 0 {
		t.Fatalf("more than %d answers: %q", len(methods), raw)
	}
	return all
}

// request is an HTTP/1.1 request with the Host of EC2's service and further header lines.
func request(method, target string, lines ...string) string {
	return method + " " + target + " HTTP/1.1\r\n" + strings.Join(append([]string{"Host: 169.254.169.254"}, lines...), "\r\n") + "\r\n\r\n"
}

// send is one request and its one answer.
func send(t testing.TB, s *environment.Server, from netip.Addr, method, target string, lines ...string) answered {
	t.Helper()
	return parse(t, exchange(t, s, from, request(method, target, lines...)), method)[0]
}

const (
	tokenPath  = "/latest/api/token"
	readyPath  = "/iam4kube/ready"
	infoPath   = "/latest/meta-data/iam/info"
	tokenLine  = "X-aws-ec2-metadata-token: "
	ttlLine    = "X-aws-ec2-metadata-token-ttl-seconds: "
	regionPath = "/latest/meta-data/placement/region"
	zonePath   = "/latest/meta-data/placement/availability-zone"
	docPath    = "/latest/dynamic/instance-identity/document"
)

// newToken gets a session token.
func newToken(t testing.TB, s *environment.Server, from netip.Addr, ttl string) string {
	t.Helper()
	a := send(t, s, from, http.MethodPut, tokenPath, ttlLine+ttl)
	if a.StatusCode != http.StatusOK {
		t.Fatalf("token: %d %s", a.StatusCode, a.body)
	}
	return a.body
}

// startWarm starts a server with a pod whose credentials it has.
func startWarm(t *testing.T, namespace string) (*environment.Server, workload) {
	t.Helper()
	w := newWorkload(newNamespace(t, namespace), "app").create(t)
	s := env.Start(t, env.Config(t))
	s.WaitReady(t)
	if status, body := s.Get(t, w.from, w.path()); status != http.StatusOK {
		t.Fatalf("the pod has no credentials, so nothing could be opened: %d %s", status, body)
	}
	return s, w
}
