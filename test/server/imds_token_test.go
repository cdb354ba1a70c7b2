package server

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
)

// Every row of the API's line on PUT /latest/api/token.
func TestTokenRequests(t *testing.T) {
	t.Parallel()
	s, w := startWarm(t, "token-requests")
	for _, ttl := range []string{"1", "10", "60", "300", "600", "21600"} {
		a := send(t, s, w.from, http.MethodPut, tokenPath, ttlLine+ttl)
		if a.StatusCode != http.StatusOK || a.Header.Get("X-Aws-Ec2-Metadata-Token-Ttl-Seconds") != ttl ||
			a.Header.Get("Server") != "iam4kube" || a.Header.Get("Content-Type") != "text/plain" {
			t.Errorf("TTL %s: %d %v %s", ttl, a.StatusCode, a.Header, a.body)
		}
		// Clients put it into headers as it is, and some trim or cut lines.
		if len(a.body) < 32 || strings.Trim(a.body, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=") != "" {
			t.Errorf("TTL %s: token %q", ttl, a.body)
		}
		if ttl == "1" {
			continue // its second may be over by now
		}
		if a := send(t, s, w.from, http.MethodGet, w.path(), tokenLine+a.body); a.StatusCode != http.StatusOK {
			t.Errorf("TTL %s: %d %s", ttl, a.StatusCode, a.body)
		}
	}
	for _, tc := range []struct {
		name   string
		status int
		lines  []string
	}{
		{"no TTL", 400, nil},
		{"empty TTL", 400, []string{ttlLine}},
		{"TTL 0", 400, []string{ttlLine + "0"}},
		{"TTL -1", 400, []string{ttlLine + "-1"}},
		{"TTL 21601", 400, []string{ttlLine + "21601"}},
		{"TTL 1e3", 400, []string{ttlLine + "1e3"}},
		{"TTL 1.0", 400, []string{ttlLine + "1.0"}},
		{"TTL 0x10", 400, []string{ttlLine + "0x10"}},
		{"TTL 1_0", 400, []string{ttlLine + "1_0"}},
		{"TTL +5", 400, []string{ttlLine + "+5"}},
		{"TTL 5s", 400, []string{ttlLine + "5s"}},
		{"TTL 5 6", 400, []string{ttlLine + "5 6"}},
		{"TTL 5, 6", 400, []string{ttlLine + "5, 6"}},
		{"TTL \"5\"", 400, []string{ttlLine + `"5"`}},
		{"full-width digit", 400, []string{ttlLine + "\uff15"}},
		{"TTL 2^32+60", 400, []string{ttlLine + "4294967356"}},
		{"TTL 2^64+60", 400, []string{ttlLine + "18446744073709551676"}},
		{"huge TTL", 400, []string{ttlLine + strings.Repeat("9", 3000)}},
		{"TTL twice", 400, []string{ttlLine + "60", ttlLine + "60"}},
		{"name of the TTL misspelt", 400, []string{"X-aws-ec2-metadata-token-ttl: 60"}},
		{"spaces around the TTL", 200, []string{ttlLine + "  5\t"}},
		{"name in lower case", 200, []string{strings.ToLower(ttlLine) + "60"}},
		{"name in upper case", 200, []string{strings.ToUpper(ttlLine) + "60"}},
		{"a token that is not valid", 200, []string{ttlLine + "60", tokenLine + "x"}}, // SDKs may resend an old one
		{"X-Forwarded-For", 403, []string{ttlLine + "60", "X-Forwarded-For: 10.0.0.1"}},
		{"X-Forwarded-For in lower case", 403, []string{ttlLine + "60", "x-forwarded-for: 10.0.0.1"}},
		{"empty X-Forwarded-For", 403, []string{ttlLine + "60", "X-Forwarded-For:"}},
		{"Forwarded", 403, []string{ttlLine + "60", "Forwarded: for=10.0.0.1"}},
		{"Via", 403, []string{ttlLine + "60", "Via: 1.1 proxy"}},
		{"X-Forwarded-For and no TTL", 403, []string{"X-Forwarded-For: 10.0.0.1"}},
	} {
		a := send(t, s, w.from, http.MethodPut, tokenPath, tc.lines...)
		if a.StatusCode != tc.status || a.Header.Get("Server") != "iam4kube" {
			t.Errorf("%s: %d %v %s", tc.name, a.StatusCode, a.Header, a.body)
		}
		if tc.status != http.StatusOK {
			// The error text must not do as a token.
			if a := send(t, s, w.from, http.MethodGet, w.path(), tokenLine+a.body); a.StatusCode != http.StatusUnauthorized {
				t.Errorf("%s: its answer as a token: %d", tc.name, a.StatusCode)
			}
		}
	}
}

// A token that is there is checked, also where requests need none.
func TestTokenChecks(t *testing.T) {
	t.Parallel()
	s, w := startWarm(t, "token-checks")
	other := newWorkload("token-checks", "other").create(t)
	if status, body := s.Get(t, other.from, other.path()); status != http.StatusOK {
		t.Fatalf("%d %s", status, body)
	}
	token := newToken(t, s, w.from, "600")
	paths := []string{w.path(), rolesPath, infoPath, zonePath, regionPath, docPath, readyPath, "/", "/latest/user-data", tokenPath}
	refused := func(name string, lines ...string) {
		t.Helper()
		for _, path := range paths {
			a := send(t, s, w.from, http.MethodGet, path, lines...)
			checkNoSecret(t, name, a.body)
			if a.StatusCode != http.StatusUnauthorized || a.Header.Get("Server") != "iam4kube" {
				t.Errorf("%s: %s: %d %s", name, path, a.StatusCode, a.body)
			}
		}
	}
	refused("empty", tokenLine)
	refused("two", tokenLine+token, tokenLine+token)
	refused("two, one empty", tokenLine+token, tokenLine)
	refused("two in one", tokenLine+token+", "+token)
	refused("padded", tokenLine+token+"==")
	refused("quoted", tokenLine+`"`+token+`"`)
	refused("bearer", tokenLine+"Bearer "+token)
	refused("another pod's", tokenLine+newToken(t, s, other.from, "600"))
	refused("long", tokenLine+strings.Repeat("A", 3<<10))
	paths = paths[:1]
	for i := range token {
		flipped := []byte(token)
		if flipped[i] = 'A'; token[i] == 'A' {
			flipped[i] = 'B'
		}
		refused(fmt.Sprintf("byte %d changed", i), tokenLine+string(flipped))
		refused(fmt.Sprintf("cut to %d bytes", i), tokenLine+token[:i])
	}
	for _, line := range []string{tokenLine, strings.ToLower(tokenLine), strings.ToUpper(tokenLine), "x-AWS-ec2-METADATA-token:\t  "} {
		if a := send(t, s, w.from, http.MethodGet, w.path(), line+token); a.StatusCode != http.StatusOK {
			t.Errorf("%s: %d %s", line, a.StatusCode, a.body)
		}
	}
	short := newToken(t, s, w.from, "1")
	environment.Eventually(t, 20*time.Second, func() error {
		if a := send(t, s, w.from, http.MethodGet, w.path(), tokenLine+short); a.StatusCode != http.StatusUnauthorized {
			return fmt.Errorf("a token for one second: %d", a.StatusCode)
		}
		return nil
	})
	if a := send(t, s, w.from, http.MethodGet, w.path(), tokenLine+token); a.StatusCode != http.StatusOK {
		t.Errorf("its neighbour: %d %s", a.StatusCode, a.body)
	}
}

func TestIMDSv1Off(t *testing.T) {
	t.Parallel()
	w := newWorkload(newNamespace(t, "v1-off"), "app").create(t)
	cfg := env.Config(t)
	cfg.IMDSv1 = false
	s := env.Start(t, cfg)
	s.WaitReady(t)
	token := newToken(t, s, w.from, "600")
	// A region and a zone are not known here, which is an answer too.
	for path, status := range map[string]int{w.path(): 200, rolesPath: 200, strings.TrimSuffix(rolesPath, "/"): 200, zonePath: 404, regionPath: 404, docPath: 200, infoPath: 200, "/": 404, "/latest/user-data": 404, tokenPath: 405} {
		a := send(t, s, w.from, http.MethodGet, path)
		checkNoSecret(t, path, a.body)
		if a.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s without a token: %d %s", path, a.StatusCode, a.body)
		}
		if a := send(t, s, w.from, http.MethodGet, path, tokenLine+token); a.StatusCode != status {
			t.Errorf("%s: %d %s", path, a.StatusCode, a.body)
		}
	}
	// The init container has no token, and gets no credentials.
	if a := send(t, s, w.from, http.MethodGet, readyPath+"?wait=5s"); a.StatusCode != http.StatusNoContent || a.body != "" {
		t.Errorf("ready: %d %s", a.StatusCode, a.body)
	}
}

// SDKs give the token one second, and then either fail or go on without: it waits for
// nothing, neither for the pod to be known nor for the API server. It measures milliseconds, and
// so is not beside the parallel tests.
func TestTokenNeverWaits(t *testing.T) {
	w := newWorkload(newNamespace(t, "token-at-once"), "app").create(t)
	config, err := env.ServiceAccountConfig(t.Context(), environment.Namespace, environment.ServiceAccount)
	if err != nil {
		t.Fatal(err)
	}
	gate, err := controlplane.NewGate(config.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(gate.Close)
	cfg := env.Config(t)
	cfg.Kubeconfig = env.Kubeconfig(t, gate.Config(config))
	s := env.Start(t, cfg)
	s.WaitReady(t)
	if status, body := s.Get(t, w.from, w.path()); status != http.StatusOK {
		t.Fatalf("%d %s", status, body)
	}
	atOnce := func(what string) {
		t.Helper()
		best := time.Hour // of some tries, because the machine may be busy with something else
		for range 10 {
			unknown, start := env.Address(), time.Now()
			newToken(t, s, unknown, "21600")
			best = min(best, time.Since(start))
		}
		if best > 100*time.Millisecond {
			t.Errorf("%s: a token takes %v", what, best)
		}
		if a := send(t, s, w.from, http.MethodGet, w.path(), tokenLine+newToken(t, s, w.from, "60")); a.StatusCode != http.StatusOK {
			t.Errorf("%s: %d %s", what, a.StatusCode, a.body)
		}
	}
	atOnce("no pod on the address")
	for _, mode := range []controlplane.GateMode{controlplane.BlackHole, controlplane.Refuse} {
		if err := gate.Set(mode); err != nil {
			t.Fatal(err)
		}
		atOnce("API server gone, " + strconv.Itoa(int(mode)))
	}
	if waited := s.Metric(t, "iam4kube_wait_duration_seconds", "missing", "pod"); waited != 0 {
		t.Errorf("%v requests waited for a pod", waited)
	}
	if err := gate.Set(controlplane.Pass); err != nil {
		t.Fatal(err)
	}
}
