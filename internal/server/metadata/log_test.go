package metadata

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iam4kube/iam4kube/internal/logging"
)

// logged lets the server log into a buffer from now on, and returns a function that takes
// the lines since it was last called.
func (e *edge) logged(t *testing.T) func() []map[string]any {
	t.Helper()
	var text bytes.Buffer
	log, err := logging.New(&text, "info", "json")
	if err != nil {
		t.Fatal(err)
	}
	e.cfg.Log = log
	return func() (lines []map[string]any) {
		for line := range strings.Lines(text.String()) {
			var fields map[string]any
			if err := json.Unmarshal([]byte(line), &fields); err != nil {
				t.Fatalf("%v: %s", err, line)
			}
			lines = append(lines, fields)
		}
		text.Reset()
		return lines
	}
}

// send sends a request with these headers; Host is one of them.
func (e *edge) send(t *testing.T, from, path string, header http.Header) *httptest.ResponseRecorder {
	t.Helper()
	request := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://169.254.169.254/", nil)
	request.RequestURI, request.RemoteAddr, request.Header = path, from+":40000", header
	if host := header.Get("Host"); host != "" {
		request.Host = host
	}
	recorder := httptest.NewRecorder()
	e.ServeHTTP(recorder, request)
	return recorder
}

// Whoever tries what his pod may not do is named in the log, with what he tried, unless that
// is a secret.
func TestRefusedRequestsAreLogged(t *testing.T) {
	const secret = "a-token-that-may-be-another's"
	hostile := "\x1b[2J\u202e\r\n" + strings.Repeat("x", 1000)
	for name, c := range map[string]struct {
		path   string
		header http.Header
		status int
		kind   string
		value  any
	}{
		"token":      {list, http.Header{headerToken: {secret}}, 401, "token", nil},
		"two tokens": {list, http.Header{headerToken: {secret, secret}}, 401, "token", nil},
		"other role": {list + "admin", nil, 404, "other-role", `"admin"`},
		"hostile role": {
			list + "%1b%5B2J%e2%80%ae" + strings.Repeat("y", 100), nil, 404, "other-role",
			`"\x1b[2J\u202e` + strings.Repeat("y", 57) + `"...`,
		},
		"host name":    {list, http.Header{"Host": {"rebound.example"}}, 403, "host", `"rebound.example"`},
		"hostile host": {list, http.Header{"Host": {hostile}}, 403, "host", `"\x1b[2J\u202e\r\n` + strings.Repeat("x", 55) + `"...`},
		"proxy":        {list, http.Header{"X-Forwarded-For": {hostile}}, 403, "proxy", nil},
		"RFC 7239":     {"/x", http.Header{"Forwarded": {"for=10.0.0.1"}}, 403, "proxy", nil},
		"RFC 9110":     {pathReady, http.Header{"Via": {"1.1 proxy"}}, 403, "proxy", nil},
	} {
		for pods, known := range map[string]bool{"known pod": true, "unknown pod": false} {
			t.Run(name+", "+pods, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					e := newEdge(t, 0, newHub())
					lines := e.logged(t)
					if known {
						e.setAccount(account("a", "one"))
						e.setPod(pod("a", ip, 0))
					}
					if c.kind == "other-role" && !known {
						return // 503: it is not known whose it is
					}
					if got := e.send(t, ip, c.path, c.header); got.Code != c.status {
						t.Errorf("%d %s", got.Code, got.Body)
					}
					all := lines()
					if len(all) != 1 {
						t.Fatalf("%v", all)
					}
					line := all[0]
					if line["msg"] != "refused a request" || line[logging.Kind] != c.kind || line[logging.SourceIP] != ip ||
						line[logging.Status] != float64(c.status) || line[logging.Value] != c.value {
						t.Errorf("%v, want the value %v", line, c.value)
					}
					if named := line[logging.Namespace] == "ns" && line[logging.Pod] == "a"; named != known {
						t.Errorf("the pod is named: %v: %v", named, line)
					}
					if text := fmt.Sprint(line); strings.Contains(text, secret) || len(text) > 700 {
						t.Errorf("%s", text)
					}
				})
			})
		}
	}
}

// Nobody who is refused all the time keeps others out of the log, or fills it.
func TestLogUnderAttack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEdge(t, 0, newHub())
		lines := e.logged(t)
		forged := http.Header{headerToken: {"forged"}}
		const seconds, perSecond = 60, 1000
		refused := 0
		for range seconds {
			for range perSecond {
				e.send(t, "10.0.0.1", list, forged)
				refused++
			}
			time.Sleep(time.Second) //nolint:forbidigo // the bubble's clock
		}
		written := lines()
		if len(written) != seconds/10 {
			t.Errorf("%d lines about one source in %d s", len(written), seconds)
		}
		e.send(t, "10.0.0.2", list, forged)
		other := lines()
		if len(other) != 1 || other[0][logging.SourceIP] != "10.0.0.2" {
			t.Fatalf("of another source: %v", other)
		}
		refused++
		suppressed := 0.0
		for _, line := range append(written, other...) {
			n, _ := line[logging.Suppressed].(float64)
			suppressed += n
		}
		if int(suppressed)+len(written)+len(other) != refused {
			t.Errorf("%d lines were written and %v suppressed of %d", len(written)+len(other), suppressed, refused)
		}
	})
}

// Of many sources and kinds, lines are bounded for each kind and altogether.
func TestSampler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSampler()
		count := func(kinds int) (written int) {
			for second := range 10 {
				for i := range 2000 {
					source := netip.AddrFrom4([4]byte{10, byte(second), byte(i >> 8), byte(i)})
					if _, ok := s.admit(fmt.Sprint("kind-", i%kinds), source); ok {
						written++
					}
				}
				time.Sleep(time.Second) //nolint:forbidigo // the bubble's clock
			}
			return written
		}
		if n, most := count(1), kindAtOnce+9*kindPerSecond; n > most || n < most/2 {
			t.Errorf("%d lines of one kind in 10 s, want up to %d", n, most)
		}
		time.Sleep(time.Minute) //nolint:forbidigo // the bubble's clock
		if n, most := count(10), allAtOnce+9*allPerSecond; n > most || n < most/2 {
			t.Errorf("%d lines of 10 kinds in 10 s, want up to %d", n, most)
		}
	})
}
