// Package webhook puts the parts of the admission webhook together and runs them: TLS with
// a certificate that may change, the Service that pods are led to, readiness. What happens
// to a pod is decided in package inject.
package webhook

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/go-logr/zapr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	k8smetadata "k8s.io/client-go/metadata"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/iam4kube/iam4kube/internal/auxserver"
	"github.com/iam4kube/iam4kube/internal/kube"
	"github.com/iam4kube/iam4kube/internal/logging"
	"github.com/iam4kube/iam4kube/internal/webhook/inject"
)

// Path is where the API server sends its reviews.
const Path = "/inject"

const (
	// requestTimeout is over the API server's longest time-out for a webhook, 30 s.
	requestTimeout = 35 * time.Second
	headerTimeout  = 10 * time.Second
	idleTimeout    = 2 * time.Minute
	maxHeaderBytes = 32 << 10
)

// webhook is the parts that run.
type webhook struct {
	cfg         Config
	log         *zap.Logger
	registry    *prometheus.Registry
	metrics     *metrics
	cluster     *cluster
	certificate *certificate
	watches     *kube.Watches
	listener    net.Listener
	runs        []func(context.Context) error
	// hangUp closes the connections to the API server, after the parts have ended.
	hangUp func()
}

// Run serves until ctx ends. Its error is a failure to start, or of a part that should
// have gone on.
func Run(ctx context.Context, cfg Config, log *zap.Logger) error {
	ctrllog.SetLogger(zapr.NewLogger(logging.Sampled(log.With(zap.String(logging.Library, "controller-runtime")))))
	w := &webhook{cfg: cfg, log: log, registry: prometheus.NewRegistry(), cluster: &cluster{}}
	w.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	w.certificate = newCertificate(cfg.CertDir, log)
	w.metrics = newMetrics(w.registry, w.certificate)
	if err := w.build(); err != nil {
		return err
	}
	if err := w.listen(ctx); err != nil {
		return err
	}
	// The parts outlive ctx until the last request is answered.
	working, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, working := errgroup.WithContext(working)
	for _, run := range w.runs {
		group.Go(func() error { return run(working) })
	}
	group.Go(func() error {
		defer stop()
		return w.serve(ctx, working)
	})
	err := group.Wait()
	w.hangUp()
	return err
}

// build makes the parts. It asks nothing of the network.
func (w *webhook) build() error {
	reach := &kube.Reach{}
	config, err := kube.Config(w.cfg.Kubeconfig, "iam4kube-webhook", reach)
	if err != nil {
		return err
	}
	client, hangUp, err := kube.HTTPClient(config)
	if err != nil {
		return err
	}
	w.hangUp = hangUp
	core, err := kube.RESTClient(config, client, corev1.SchemeGroupVersion, corev1.AddToScheme)
	if err != nil {
		return err
	}
	metadataClient, err := k8smetadata.NewForConfigAndClient(k8smetadata.ConfigFor(config), client)
	if err != nil {
		return fmt.Errorf("make a client for the API server: %w", err)
	}
	w.watches = kube.NewWatches(reach, core, w.registry)
	w.runs = []func(context.Context) error{
		kube.Follow(w.watches, w.cluster.services(core, w.cfg.ServiceNamespace, w.cfg.ServiceName)),
		kube.Follow(w.watches, w.cluster.namespaces(metadataClient)),
		w.watches.Run, w.certificate.Run,
	}
	return nil
}

// listen opens every listener, so that a port that is taken ends the start.
func (w *webhook) listen(ctx context.Context) error {
	handlers := map[string]http.Handler{w.cfg.AuxListenOn: auxserver.Handler(w.registry, w.ready)}
	if w.cfg.Debug {
		handlers[auxserver.DebugAddress] = auxserver.Debug(map[string]func() any{"service": func() any { return w.cluster.Service() }})
	}
	var config net.ListenConfig
	reviews, err := config.Listen(ctx, "tcp", w.cfg.ListenOn)
	if err != nil {
		return fmt.Errorf("--listen-on: %w", err)
	}
	aux := ""
	for address, handler := range handlers {
		listener, err := config.Listen(ctx, "tcp", address)
		if err != nil {
			_ = reviews.Close() // nothing was accepted yet
			return fmt.Errorf("--aux-listen-on or --debug: %w", err)
		}
		if address == w.cfg.AuxListenOn {
			aux = listener.Addr().String()
		}
		w.runs = append(w.runs, func(ctx context.Context) error { return auxserver.Serve(ctx, listener, handler, w.log) })
	}
	w.listener = reviews
	w.log.Info("serving", zap.Stringer(logging.Address, reviews.Addr()), zap.String(logging.AuxAddress, aux))
	return nil
}

// ready is why the API server should ask another replica.
func (w *webhook) ready() error {
	if err := w.certificate.Err(); err != nil {
		return err
	}
	if s := w.cluster.Service(); s.Reason == inject.NotSynced {
		return errors.New("the API server has not told of the Service yet")
	}
	return w.watches.Broken()
}

// serve answers reviews until ctx ends, or until working ends because a part has failed.
func (w *webhook) serve(ctx, working context.Context) error {
	handler := &handler{
		config: inject.Config{
			Namespace: w.cfg.ServiceNamespace, Image: w.cfg.InitImage,
			ProbeTimeout: w.cfg.ProbeTimeout, Wait: w.cfg.Wait,
		},
		cluster: w.cluster, metrics: w.metrics, log: w.log,
	}
	mux := http.NewServeMux()
	mux.Handle("POST "+Path, w.metrics.timed(&admission.Webhook{Handler: handler}))
	server := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       requestTimeout,
		WriteTimeout:      requestTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          logging.ForHTTP(w.log),
		TLSConfig:         &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: w.certificate.Get},
	}
	failed := make(chan error, 1)
	go func() { failed <- server.ServeTLS(w.listener, "", "") }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve: %w", err)
	case <-working.Done():
	case <-ctx.Done():
	}
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
	defer cancel()
	err := server.Shutdown(ending)
	if err != nil {
		err = errors.Join(err, server.Close())
	}
	if serveErr := <-failed; !errors.Is(serveErr, http.ErrServerClosed) {
		err = errors.Join(err, serveErr)
	}
	w.log.Info("stopped")
	return err
}
