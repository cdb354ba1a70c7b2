package server

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/fakests"
)

// Of many requests that wait for as many different pods, one pod's event wakes one. The
// race detector allows 8,128 goroutines at a time, and a waiting connection has two; the
// benchmark has 10,000.
func TestOneEventWakesOneOfThousands(t *testing.T) {
	const others = 3000
	namespace := newNamespace(t, "thousands")
	w := newWorkload(namespace, "app")
	w.createAccount(t, w.annotations())
	cfg := env.Config(t)
	cfg.MaxWait = time.Hour
	s := env.Start(t, cfg)
	s.WaitReady(t)
	for i := range others {
		from := netip.AddrFrom4([4]byte{127, 200, byte(i >> 8), byte(i)})
		connection := waitOn(t, s, from, rolesPath)
		t.Cleanup(func() { _ = connection.Close() })
	}
	awaitWaiting(t, s, diagnosis.Pod, others)
	credentials := ask(t.Context(), t, s, w.from, w.path())
	awaitWaiting(t, s, diagnosis.Pod, others+1)
	w.createPod(t)
	checkOwner(t, receive(t, credentials), w)
	awaitWaiting(t, s, diagnosis.Pod, others)
	if n := s.Metric(t, "iam4kube_wait_duration_seconds", "missing", "pod", "outcome", "answered"); n != 1 {
		t.Errorf("%v requests were answered, want 1", n)
	}
}

// waitOn opens a connection from the address and sends a request on it; what comes back
// is the caller's to read. It costs no goroutine.
func waitOn(t testing.TB, s *environment.Server, from netip.Addr, path string) net.Conn {
	t.Helper()
	connection, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}}).DialContext(t.Context(), "tcp", s.Address)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(connection, "GET "+path+" HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	return connection
}

// From one address 64 requests may wait; more get 429 with Retry-After at once, also when
// there are thousands of them. Other addresses, and what needs no wait, are not touched.
func TestWaitersOfOnePodAreLimited(t *testing.T) {
	const limit, flood = 64, 1000
	namespace := newNamespace(t, "limited")
	warm, late := newWorkload(namespace, "warm").create(t), newWorkload(namespace, "late")
	late.createAccount(t, late.annotations())
	hostile := env.Address()
	cfg := env.Config(t)
	cfg.MaxWait = time.Hour
	s := env.Start(t, cfg)
	s.WaitReady(t)
	for range limit {
		connection := waitOn(t, s, hostile, rolesPath)
		t.Cleanup(func() { _ = connection.Close() })
	}
	awaitWaiting(t, s, diagnosis.Pod, limit)
	waits := ask(t.Context(), t, s, late.from, late.path())
	awaitWaiting(t, s, diagnosis.Pod, limit+1)

	for range flood {
		connection := waitOn(t, s, hostile, rolesPath)
		_ = connection.SetReadDeadline(time.Now().Add(patience)) // if it fails, so does the read
		response, err := http.ReadResponse(bufio.NewReader(connection), nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		_ = connection.Close()
		if response.StatusCode != http.StatusTooManyRequests || response.Header.Get("Retry-After") != "1" {
			t.Fatalf("one too many got %d, %v", response.StatusCode, response.Header)
		}
	}
	if status, body := s.Get(t, warm.from, warm.path()); status != http.StatusOK {
		t.Errorf("warm pod: %d %s", status, body)
	}
	awaitWaiting(t, s, diagnosis.Pod, limit+1)
	late.createPod(t)
	checkOwner(t, receive(t, waits), late)
}

// Hundreds of addresses that are no pod's, and all pods of a namespace, ask as often as they
// can and take every place to wait: pods of others wait for what they miss all the same. The
// memory limit makes 1,024 places, half for each of the two.
func TestOthersWaitThroughAFlood(t *testing.T) {
	const half, hostilePods, requestsEach = 512, 20, 64
	t.Setenv("GOMEMLIMIT", "128MiB")
	hostile, namespace := newNamespace(t, "flood-hostile"), newNamespace(t, "flood-others")
	s, _ := env.StartProcess(t, "--max-wait", "1h", "--drain", "0s")
	s.WaitReady(t)
	flood := func(from netip.Addr, requests int) {
		for range requests {
			connection := waitOn(t, s, from, rolesPath)
			t.Cleanup(func() { _ = connection.Close() })
		}
	}
	for i := range 256 {
		flood(netip.AddrFrom4([4]byte{127, 202, 0, byte(i)}), 2*half/256)
	}
	for i := range hostilePods {
		w := newWorkload(hostile, fmt.Sprint("hostile-", i)) // its ServiceAccount never comes
		w.createPod(t)
		environment.Eventually(t, patience, func() error { // before it is known, it is one of the others
			if status, body := s.Get(t, w.from, "/iam4kube/ready"); !strings.Contains(body, "missing service-account") {
				return fmt.Errorf("%d %s", status, body)
			}
			return nil
		})
		flood(w.from, requestsEach)
	}
	awaitAllWaiting(t, s, map[diagnosis.Piece]int{diagnosis.Pod: half, diagnosis.ServiceAccount: half})

	late, known := newWorkload(namespace, "late"), newWorkload(namespace, "known")
	late.createAccount(t, late.annotations())
	known.createPod(t)
	forLate := ask(t.Context(), t, s, late.from, late.path())
	forKnown := ask(t.Context(), t, s, known.from, known.path())
	late.createPod(t)
	known.createAccount(t, known.annotations())
	checkOwner(t, receive(t, forLate), late)
	checkOwner(t, receive(t, forKnown), known)
	if n := s.Metric(t, "iam4kube_http_requests_total", "endpoint", "role", "code", "429"); n < half/2 {
		t.Errorf("%v requests were refused", n)
	}
}

// What an init container asks before its pod starts: /iam4kube/ready.
func TestReady(t *testing.T) {
	namespace := newNamespace(t, "ready")
	warm := newWorkload(namespace, "warm").create(t)
	late, none, noAccount := newWorkload(namespace, "late"), newWorkload(namespace, "none"), newWorkload(namespace, "no-account")
	noRole, denied, hangs := newWorkload(namespace, "no-role"), newWorkload(namespace, "denied"), newWorkload(namespace, "hangs")
	late.createAccount(t, late.annotations())
	noAccount.createPod(t)
	noRole.createAccount(t, nil)
	noRole.createPod(t)
	env.STS.RemoveRole(denied.arn)
	denied.create(t)
	s := env.Start(t, env.Config(t))
	s.WaitReady(t)
	setFault(t, hangs, fakests.Fault{Effect: fakests.Hang})
	hangs.create(t)

	for name, c := range map[string]struct {
		from   netip.Addr
		query  string
		status int
		least  time.Duration
		says   string
	}{
		"warm":            {warm.from, "?wait=5s", 204, 0, ""},
		"warm, no wait":   {warm.from, "", 204, 0, ""},
		"no pod":          {none.from, "?wait=300ms", 503, 300 * time.Millisecond, "missing pod"},
		"no pod, no wait": {none.from, "", 503, 0, "missing pod"},
		"no account":      {noAccount.from, "?wait=300ms", 503, 300 * time.Millisecond, "missing service-account"},
		"no role":         {noRole.from, "?wait=1h", 404, 0, "missing role-annotation"},
		"no credentials":  {hangs.from, "?wait=300ms", 503, 300 * time.Millisecond, "missing credentials"},
		"denied":          {denied.from, "?wait=1h", 403, 0, "AccessDenied: User: "},
		"malformed":       {warm.from, "?wait=5", 400, 0, "wait must be a duration"},
		"negative":        {warm.from, "?wait=-5s", 400, 0, "wait must be a duration"},
		"too large":       {warm.from, "?wait=9999999999h", 400, 0, "wait must be a duration"},
		"of an hour":      {warm.from, "?wait=1h", 204, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := receive(t, ask(t.Context(), t, s, c.from, "/iam4kube/ready"+c.query))
			if took := got.at.Sub(got.sent); got.StatusCode != c.status || took < c.least || !strings.Contains(got.body, c.says) {
				t.Errorf("%d after %v, want %d after %v with %q: %s", got.StatusCode, took, c.status, c.least, c.says, got.body)
			}
			if source := got.Header.Get("X-Iam4kube-Source-Ip"); source != c.from.String() {
				t.Errorf("X-Iam4kube-Source-Ip is %q", source)
			}
			if leak := env.Leak(fmt.Sprint(got.Header, got.body)); leak != "" || strings.Contains(got.body, "AccessKeyId") {
				t.Errorf("credentials: %s", got.body)
			}
		})
	}
	t.Run("late pod", func(t *testing.T) {
		waits := ask(t.Context(), t, s, late.from, "/iam4kube/ready?wait=1h")
		awaitWaiting(t, s, diagnosis.Pod, 1)
		late.createPod(t)
		if got := receive(t, waits); got.StatusCode != http.StatusNoContent {
			t.Errorf("%d %s", got.StatusCode, got.body)
		}
	})
}
