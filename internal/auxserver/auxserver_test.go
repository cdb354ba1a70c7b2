package auxserver

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/iam4kube/iam4kube/internal/program"
)

func get(handler http.Handler, method, path string) *httptest.ResponseRecorder {
	recorder := httptest.NewRecorder()
	request := httptest.NewRequest(method, path, http.NoBody)
	request.Host = "localhost:6060"
	handler.ServeHTTP(recorder, request)
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
	handler := debugHandler(map[string]func() any{"pods": func() any { return []string{"default/app"} }}, nil)
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

// A page that a browser on this machine has open reads nothing here by a name that it has made
// lead to loopback.
func TestDebugIsReadByLoopbackAlone(t *testing.T) {
	page := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "the page") })
	handler := debugHandler(map[string]func() any{"pods": func() any { return []string{"default/app"} }}, page)
	for host, status := range map[string]int{
		"localhost": 200, "localhost:6060": 200, "127.0.0.1:41234": 200, "127.0.0.1": 200, "[::1]:6060": 200, "[::1]": 200,
		"rebound.example": 403, "rebound.example:6060": 403, "localhost.rebound.example": 403, "127.0.0.1.rebound.example:6060": 403,
		"10.0.0.1:6060": 403, "": 403, "[::]:6060": 403, "0.0.0.0:6060": 403,
	} {
		for path, body := range map[string]string{"/": "the page", "/debug/pods": "default/app", "/debug/pprof/cmdline": "test"} {
			request := httptest.NewRequest(http.MethodGet, path, http.NoBody)
			request.Host = host
			answer := httptest.NewRecorder()
			handler.ServeHTTP(answer, request)
			if answer.Code != status || strings.Contains(answer.Body.String(), body) != (status == 200) {
				t.Errorf("%q %s: %d %s", host, path, answer.Code, answer.Body)
			}
		}
	}
}

// Profiles and dumps are for those who ask for them.
func TestEndpoints(t *testing.T) {
	for _, debug := range []bool{false, true} {
		var got []string
		for _, e := range Endpoints(":9090", debug, prometheus.NewRegistry(), func() error { return nil }, nil, nil) {
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

// Scrapes take memory, so few are answered at once; they hold up no probe.
func TestFewScrapesAtOnce(t *testing.T) {
	registry := prometheus.NewRegistry()
	scraping, release := make(chan struct{}), make(chan struct{})
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "iam4kube_test", Help: "Test."}, func() float64 {
		scraping <- struct{}{}
		<-release
		return 1
	}))
	handler := auxHandler(registry, func() error { return nil })
	answers := make(chan int, scrapesAtOnce)
	for range scrapesAtOnce {
		go func() { answers <- get(handler, http.MethodGet, "/metrics").Code }()
		<-scraping
	}
	if answer := get(handler, http.MethodGet, "/metrics"); answer.Code != http.StatusServiceUnavailable {
		t.Errorf("one more: %d", answer.Code)
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		if answer := get(handler, http.MethodGet, path); answer.Code != http.StatusOK {
			t.Errorf("%s: %d", path, answer.Code)
		}
	}
	close(release)
	for range scrapesAtOnce {
		if code := <-answers; code != http.StatusOK {
			t.Errorf("a scrape: %d", code)
		}
	}
}

func TestConnectionsAreCounted(t *testing.T) {
	registry := prometheus.NewRegistry()
	endpoints := Endpoints("127.0.0.1:0", false, registry, func() error { return nil }, nil, nil)
	servers, err := program.Listen(t.Context(), zap.NewNop(), endpoints...)
	if err != nil {
		t.Fatal(err)
	}
	CountConnections(registry, servers)
	go func() { _ = servers[0].Run(t.Context()) }()
	url := "http://" + servers[0].Addr().String() + "/metrics"
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	metrics, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		`iam4kube_connections{listener="aux-listen-on"} 1`,
		`iam4kube_connections_refused_total{listener="aux-listen-on",reason="source"} 0`,
		`iam4kube_connections_refused_total{listener="aux-listen-on",reason="total"} 0`,
	} {
		if !strings.Contains(string(metrics), line+"\n") {
			t.Errorf("no %s in %s", line, metrics)
		}
	}
}

// Addresses that one socket alone can have are told apart from those that two can, however they are spelled.
func TestAddressesOfTwoFlags(t *testing.T) {
	for _, tc := range []struct {
		listenOn, auxListenOn string
		debug                 bool
		says                  string
	}{
		{":8080", ":9090", true, ""},
		{":0", ":0", false, ""},
		{"10.0.0.1:8080", "127.0.0.1:8080", false, ""},
		{"[::1]:6060", ":9090", true, ""},
		{"8080", "8080", false, ""}, // no addresses at all
		{":8080", ":8080", false, "--listen-on :8080 and --aux-listen-on :8080"},
		{":8080", "0.0.0.0:8080", false, "--aux-listen-on 0.0.0.0:8080"},
		{"[::]:8080", "10.0.0.1:8080", false, "--aux-listen-on 10.0.0.1:8080"},
		{":6060", ":9090", true, "--listen-on :6060 and --debug 127.0.0.1:6060"},
		{":6060", ":9090", false, ""},
		{":8080", "127.0.0.1:6060", true, "--aux-listen-on 127.0.0.1:6060 and --debug"},
	} {
		err := CheckAddresses(tc.listenOn, tc.auxListenOn, tc.debug)
		if (err != nil) != (tc.says != "") || err != nil && !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%+v: %v", tc, err)
		}
	}
}
