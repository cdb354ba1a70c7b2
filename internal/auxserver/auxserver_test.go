package auxserver

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func get(handler http.Handler, method, path string) *httptest.ResponseRecorder {
	recorder := httptest.NewRecorder()
	handler.ServeHTTP(recorder, httptest.NewRequest(method, path, http.NoBody))
	return recorder
}

func TestHandler(t *testing.T) {
	registry := prometheus.NewRegistry()
	counter := prometheus.NewCounter(prometheus.CounterOpts{Name: "iam4kube_test_total", Help: "Test."})
	registry.MustRegister(counter)
	counter.Inc()
	var notReady error
	handler := auxHandler(registry, func() error { return notReady })

	for _, tc := range []struct {
		method, path string
		notReady     error
		status       int
		body         string
	}{
		{http.MethodGet, "/metrics", nil, 200, "iam4kube_test_total 1\n"},
		{http.MethodGet, "/healthz", nil, 200, "ok"},
		{http.MethodGet, "/readyz", nil, 200, "ok"},
		{http.MethodGet, "/readyz", errors.New("no pods yet"), 503, "not ready: no pods yet"},
		// What only delays readiness is no reason for a restart.
		{http.MethodGet, "/healthz", errors.New("no pods yet"), 200, "ok"},
		{http.MethodHead, "/readyz", nil, 200, ""},
		{http.MethodPost, "/metrics", nil, 405, ""},
		{http.MethodGet, "/", nil, 404, ""},
		{http.MethodGet, "/debug/pprof/", nil, 404, ""},
		{http.MethodGet, "/latest/meta-data/iam/security-credentials/", nil, 404, ""},
	} {
		notReady = tc.notReady
		answer := get(handler, tc.method, tc.path)
		if answer.Code != tc.status || !strings.Contains(answer.Body.String(), tc.body) {
			t.Errorf("%s %s: %d %s", tc.method, tc.path, answer.Code, answer.Body)
		}
	}
}

func TestDebug(t *testing.T) {
	handler := debugHandler(map[string]func() any{"pods": func() any { return []string{"default/app"} }})
	for path, body := range map[string]string{"/debug/pods": `"default/app"`, "/debug/pprof/": "goroutine", "/debug/pprof/cmdline": "test"} {
		if answer := get(handler, http.MethodGet, path); answer.Code != 200 || !strings.Contains(answer.Body.String(), body) {
			t.Errorf("%s: %d %s", path, answer.Code, answer.Body)
		}
	}
	if answer := get(handler, http.MethodGet, "/debug/other"); answer.Code != 404 {
		t.Errorf("%d %s", answer.Code, answer.Body)
	}
	if address := netip.MustParseAddrPort(DebugAddress); !address.Addr().IsLoopback() {
		t.Errorf("dumps are served on %s", address)
	}
}

// Profiles and dumps are for those who ask for them.
func TestEndpoints(t *testing.T) {
	for _, debug := range []bool{false, true} {
		var got []string
		for _, e := range Endpoints(":9090", debug, prometheus.NewRegistry(), func() error { return nil }, nil) {
			for _, path := range []string{"/readyz", "/debug/pprof/"} {
				if get(e.Handler, http.MethodGet, path).Code == http.StatusOK {
					got = append(got, e.Flag, e.Address+path)
				}
			}
		}
		want := []string{"--aux-listen-on", ":9090/readyz"}
		if debug {
			want = append(want, "--debug", DebugAddress+"/debug/pprof/")
		}
		if !slices.Equal(got, want) {
			t.Errorf("debug %t: got %q, want %q", debug, got, want)
		}
	}
}

func TestRegistryHasTheProgram(t *testing.T) {
	metrics := get(auxHandler(NewRegistry(), func() error { return nil }), http.MethodGet, "/metrics").Body.String()
	for _, name := range []string{
		"go_goroutines", "process_start_time_seconds",
		`iam4kube_build_info{goversion="` + runtime.Version() + `",revision="unknown",version="unreleased"}`,
	} {
		if !strings.Contains(metrics, "\n"+name+" ") {
			t.Errorf("no %s in %s", name, metrics)
		}
	}
}
