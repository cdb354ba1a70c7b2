package auxserver

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
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
	handler := Handler(registry, func() error { return notReady })

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
	handler := Debug(map[string]func() any{"pods": func() any { return []string{"default/app"} }})
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

func TestServeEndsWithItsContext(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, listener, Handler(prometheus.NewRegistry(), func() error { return nil }), zap.NewNop())
	}()
	response, err := http.Get("http://" + listener.Addr().String() + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(response.Body); err != nil || string(body) != "ok\n" {
		t.Errorf("%q, %v", body, err)
	}
	_ = response.Body.Close()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if connection, err := net.Dial("tcp", listener.Addr().String()); err == nil {
		_ = connection.Close()
		t.Error("still listening")
	}
}

func TestServeReturnsTheListenersError(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = listener.Close()
	if err := Serve(t.Context(), listener, http.NotFoundHandler(), zap.NewNop()); err == nil {
		t.Error("no error")
	}
}
