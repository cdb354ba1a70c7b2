// Package auxserver answers what operators and the kubelet ask of a program:
// metrics, health, readiness, and on request profiles and dumps. It does not know
// what makes the program ready.
package auxserver

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"runtime"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/iam4kube/iam4kube/internal/buildinfo"
	"github.com/iam4kube/iam4kube/internal/listener"
	"github.com/iam4kube/iam4kube/internal/program"
)

// DebugAddress is where profiles and dumps are served: on loopback, for kubectl
// port-forward.
const DebugAddress = "127.0.0.1:6060"

// The kubelet, a scraper or two and an operator ask, at an address that every pod may
// reach: many connections take nothing from anybody, many scrapes take memory.
var limits = listener.Limits{Connections: 256, PerSource: 32}

const (
	timeout       = 10 * time.Second
	scrapesAtOnce = 2
)

// NewRegistry returns a registry with what every program has to say of itself: what it
// was built from, and the metrics of the Go runtime and of the process.
func NewRegistry() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "iam4kube_build_info", Help: "1, with what the program was built from.",
			ConstLabels: prometheus.Labels{"version": buildinfo.Version(), "revision": buildinfo.Revision(), "goversion": runtime.Version()},
		}, func() float64 { return 1 }))
	return registry
}

// Endpoints are that of --aux-listen-on, first, and with debug another on DebugAddress.
// ready returns why the program is not ready, nil if it is. Dumps and page, which answers the
// paths of the debug listener that are nobody else's and may be nil, must not hold secrets.
func Endpoints(listenOn string, debug bool, gatherer prometheus.Gatherer, ready func() error, dumps map[string]func() any, page http.Handler) []program.Endpoint {
	endpoints := []program.Endpoint{{
		Flag: "--aux-listen-on", Address: listenOn, Handler: auxHandler(gatherer, ready),
		Limits: limits, ReadTimeout: timeout, WriteTimeout: timeout,
	}}
	if debug {
		// A profile takes as long as its reader says.
		endpoints = append(endpoints, program.Endpoint{Flag: "--debug", Address: DebugAddress, Handler: debugHandler(dumps, page), Limits: limits, ReadTimeout: timeout})
	}
	return endpoints
}

// CheckAddresses finds two flags that name one address, however each spells it.
func CheckAddresses(listenOn, auxListenOn string, debug bool) error {
	type address struct{ flag, text string }
	all := []address{{"--listen-on", listenOn}, {"--aux-listen-on", auxListenOn}}
	if debug {
		all = append(all, address{"--debug", DebugAddress})
	}
	for i, one := range all {
		for _, other := range all[i+1:] {
			if overlap(one.text, other.text) {
				return fmt.Errorf("%s %s and %s %s are one address, want two addresses", one.flag, one.text, other.flag, other.text)
			}
		}
	}
	return nil
}

// overlap is whether two sockets could not have these addresses at once. What is none is told of when
// it is listened on.
func overlap(one, other string) bool {
	a, portA, err := net.SplitHostPort(one)
	b, portB, err2 := net.SplitHostPort(other)
	if err != nil || err2 != nil || portA != portB || portA == "0" {
		return false
	}
	every := func(host string) bool {
		ip, err := netip.ParseAddr(host)
		return host == "" || err == nil && ip.IsUnspecified()
	}
	return a == b || every(a) || every(b)
}

// auxHandler answers /metrics, /healthz and /readyz.
func auxHandler(gatherer prometheus.Gatherer, ready func() error) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{MaxRequestsInFlight: scrapesAtOnce}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := ready(); err != nil {
			http.Error(w, "not ready: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintln(w, "ok")
	})
	return mux
}

// debugHandler answers net/http/pprof's paths, and /debug/NAME with the JSON of what
// each dump returns. The rest is page's.
func debugHandler(dumps map[string]func() any, page http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	for name, dump := range dumps {
		mux.HandleFunc("GET /debug/"+name, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			encoder := json.NewEncoder(w)
			encoder.SetIndent("", "  ")
			_ = encoder.Encode(dump()) // the client's connection, the client's loss
		})
	}
	if page != nil {
		mux.Handle("/", page)
	}
	return fromLoopback(mux)
}

// fromLoopback lets requests through whose Host is loopback's. One with another name comes from a
// browser on this machine that a foreign page has led here by DNS rebinding, and would show
// that page what is known here.
func fromLoopback(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if name, _, err := net.SplitHostPort(host); err == nil {
			host = name
		}
		address, err := netip.ParseAddr(strings.Trim(host, "[]"))
		if host != "localhost" && (err != nil || !address.Unmap().IsLoopback()) {
			http.Error(w, "the Host header must be localhost or a loopback address: use kubectl port-forward and http://127.0.0.1:PORT", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// connections tells of each server's connections.
type connections struct {
	servers       []*program.Server
	open, refused *prometheus.Desc
}

// CountConnections registers metrics of the servers' connections, by the flag that names a
// server's address.
func CountConnections(registry prometheus.Registerer, servers []*program.Server) {
	registry.MustRegister(&connections{
		servers: servers,
		open:    prometheus.NewDesc("iam4kube_connections", "Open connections.", []string{"listener"}, nil),
		refused: prometheus.NewDesc("iam4kube_connections_refused_total",
			"Connections that were reset because too many are open, of the source address or in total.", []string{"listener", "reason"}, nil),
	})
}

// Describe implements prometheus.Collector.
func (c *connections) Describe(descs chan<- *prometheus.Desc) {
	descs <- c.open
	descs <- c.refused
}

// Collect implements prometheus.Collector.
func (c *connections) Collect(metrics chan<- prometheus.Metric) {
	for _, s := range c.servers {
		name := strings.TrimLeft(s.Flag(), "-")
		for _, reason := range []listener.Refusal{listener.TooManyOfSource, listener.TooMany} {
			_, refused := s.Connections(reason)
			metrics <- prometheus.MustNewConstMetric(c.refused, prometheus.CounterValue, float64(refused), name, string(reason))
		}
		open, _ := s.Connections("")
		metrics <- prometheus.MustNewConstMetric(c.open, prometheus.GaugeValue, float64(open), name)
	}
}
