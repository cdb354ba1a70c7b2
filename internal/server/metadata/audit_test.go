package metadata

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/iam4kube/iam4kube/internal/server/audit"
)

// audited lets the server write an audit log from now on, and returns a function that ends it
// and reads the records.
func (e *edge) audited(t *testing.T) func() (all []audit.Record, text string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "audit.log")
	log, err := audit.Open(path, prometheus.NewRegistry(), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	e.cfg.Audit = log
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- log.Run(ctx) }()
	return func() (all []audit.Record, text string) {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		bytes, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(bytes)) {
			var r audit.Record
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				t.Fatalf("%v: %s", err, line)
			}
			all = append(all, r)
		}
		return all, string(bytes)
	}
}

// Whoever is refused has his name in the audit log, whatever he sent, and no secret is in it.
func TestAudit(t *testing.T) {
	const secret = "a-token-that-may-be-another's"
	e := newEdge(t, 0, newHub())
	records := e.audited(t)
	e.setAccount(account("a", "one"))
	e.setPod(pod("a", ip, 0))
	for _, request := range []struct {
		path   string
		header http.Header
	}{
		{list, http.Header{headerToken: {secret}}},
		{list + "admin", nil},
		{list, http.Header{"Host": {"rebound.example"}}},
		{list, http.Header{"X-Forwarded-For": {secret}}},
		{pathContainer, http.Header{"Authorization": {""}}},
		{pathContainer, http.Header{"Authorization": {secret, secret}}},
		{list, nil}, // is served
	} {
		e.send(t, ip, request.path, request.header)
	}
	all, text := records()
	var kinds []string
	for _, r := range all {
		kinds = append(kinds, r.Kind)
		if r.Event != audit.Refused || r.SourceIP.String() != ip || !slices.Equal(r.SourcePods, []string{"ns/a"}) || r.Status < 400 || r.Cause == "" {
			t.Errorf("%+v", r)
		}
	}
	if want := []string{"token", "other-role", "host", "proxy", "bad-token", "bad-token"}; !slices.Equal(kinds, want) {
		t.Errorf("%q, want %q", kinds, want)
	}
	if all[1].Value != `"admin"` || all[2].Value != `"rebound.example"` || strings.Contains(text, secret) {
		t.Errorf("%s", text)
	}
}

// Two pods on an address, and an address that nobody may be told from: who they are is there.
func TestAuditOfAddresses(t *testing.T) {
	e := newEdge(t, 0, newHub())
	records := e.audited(t)
	e.setAccount(account("a", "one"))
	e.setPod(pod("a", ip, 0))
	e.setPod(pod("b", ip, 0))
	e.send(t, ip, list, nil)
	e.send(t, "10.9.9.9", list, nil) // missing is not denied
	all, text := records()
	if len(all) != 1 || all[0].Event != audit.Denied || all[0].Kind != "single-pod" || len(all[0].SourcePods) != 2 || all[0].Pod != "" {
		t.Errorf("%s", text)
	}
}

// One knows from the metric when everybody sends tokens.
func TestVersionsOfIMDS(t *testing.T) {
	e := newEdge(t, 0, newHub())
	e.setAccount(account("a", "one"))
	e.setPod(pod("a", ip, 0))
	want := func(v1, v2 float64) {
		t.Helper()
		registry, ok := e.cfg.Registry.(prometheus.Gatherer)
		if !ok {
			t.Fatalf("%T gathers nothing", e.cfg.Registry)
		}
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, family := range families {
			if family.GetName() != "iam4kube_imds_requests_total" {
				continue
			}
			if n1, n2 := family.GetMetric()[0].GetCounter().GetValue(), family.GetMetric()[1].GetCounter().GetValue(); n1 != v1 || n2 != v2 {
				t.Errorf("%v without a token and %v with one, want %v and %v", n1, n2, v1, v2)
			}
			return
		}
		t.Error("no metric")
	}
	e.send(t, ip, list, nil)
	want(1, 0)
	e.send(t, ip, list, http.Header{headerToken: {"forged"}})
	e.send(t, ip, pathReady, nil)
	e.send(t, ip, pathContainer, nil)
	e.send(t, ip, "/latest/user-data", nil)
	want(1, 0)
	s := newServer(t, 0)
	withToken := http.Header{headerToken: {s.token(t)}}
	e.Server = s
	e.send(t, podAddress, list, withToken)
	want(0, 1)
	s.cfg.IMDSv1 = false
	if got := e.send(t, podAddress, list, nil); got.Code != http.StatusUnauthorized {
		t.Errorf("%d", got.Code)
	}
	want(1, 1)
}
