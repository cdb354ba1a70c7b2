// Package auxserver serves what operators and the kubelet ask of a program:
// metrics, health, readiness, and on request profiles and dumps. It does not know
// what makes the program ready.
package auxserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"

	"github.com/iam4kube/iam4kube/internal/logging"
)

// DebugAddress is where Debug listens: on loopback, for kubectl port-forward.
const DebugAddress = "127.0.0.1:6060"

const headerTimeout = 10 * time.Second

// Handler answers /metrics, /healthz and /readyz. ready returns why the program is
// not ready, nil if it is.
func Handler(gatherer prometheus.Gatherer, ready func() error) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{}))
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

// Debug answers net/http/pprof's paths, and /debug/NAME with the JSON of what each
// dump returns. Dumps must not hold secrets.
func Debug(dumps map[string]func() any) http.Handler {
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
	return mux
}

// Serve answers on the listener until ctx ends.
func Serve(ctx context.Context, listener net.Listener, handler http.Handler, log *zap.Logger) error {
	server := &http.Server{Handler: handler, ReadHeaderTimeout: headerTimeout, ErrorLog: logging.ForHTTP(log)}
	stopped := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stopped()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
