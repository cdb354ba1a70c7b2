// Package webhook puts the parts of the admission webhook together and runs them: TLS with
// a certificate that may change, the Service that pods are led to, readiness. What happens
// to a pod is decided in package inject.
package webhook

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"time"

	"github.com/go-logr/zapr"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/iam4kube/iam4kube/internal/auxserver"
	"github.com/iam4kube/iam4kube/internal/kube"
	"github.com/iam4kube/iam4kube/internal/listener"
	"github.com/iam4kube/iam4kube/internal/logging"
	"github.com/iam4kube/iam4kube/internal/program"
	"github.com/iam4kube/iam4kube/internal/webhook/inject"
)

// Paths are where the API server sends its reviews, each for one entry of the
// configurations: which namespace of a pod asked for what, only the API server can say.
const (
	Path          = "/inject"
	PathToken     = "/token"
	PathTokenOnly = "/token-only"
)

// webhooks are the paths' names in metrics and logs.
var webhooks = []string{webhookInject, webhookToken}

const (
	webhookInject = "inject"
	webhookToken  = "token"
)

const (
	// readTimeout is that of a review, which the API server sends at once.
	readTimeout = 10 * time.Second
	// answerTimeout is over the API server's longest time-out for a webhook, 30 s.
	answerTimeout = 35 * time.Second
	// drain is for the API server's kept connections that are in use.
	drain = time.Second
)

// Each replica of the API server has a connection for each of its reviews at one time, and
// keeps 25 for 90 s, for each change of the caBundle. It may be all that comes from its
// address.
var limits = listener.Limits{Connections: 1024, PerSource: 512, LargeBodies: true}

// webhook is the parts that run.
type webhook struct {
	cfg         Config
	log         *zap.Logger
	registry    *prometheus.Registry
	metrics     *metrics
	cluster     *cluster
	certificate *certificate
	watches     *kube.Watches
	runs        []func(context.Context) error
	// hangUp closes the connections to the API server, after the parts have ended.
	hangUp func()
}

// Run serves until ctx ends. Its error is a failure to start, or of a part that should
// have gone on.
func Run(ctx context.Context, cfg Config, log *zap.Logger) error {
	ctrllog.SetLogger(zapr.NewLogger(logging.Sampled(log.With(zap.String(logging.Library, "controller-runtime")))))
	w := &webhook{cfg: cfg, log: log, registry: auxserver.NewRegistry(), cluster: &cluster{}}
	w.certificate = newCertificate(cfg.CertDir, log)
	w.metrics = newMetrics(w.registry, w.certificate)
	if err := w.build(); err != nil {
		return err
	}
	defer w.hangUp()
	servers, err := program.Listen(ctx, log, w.endpoints()...)
	if err != nil {
		return err
	}
	auxserver.CountConnections(w.registry, servers)
	log.Info("serving", zap.Stringer(logging.Address, servers[0].Addr()), zap.Stringer(logging.AuxAddress, servers[1].Addr()))
	for _, aux := range servers[1:] {
		w.runs = append(w.runs, aux.Run)
	}
	err = program.RunParts(ctx, servers[0].Run, w.runs...)
	log.Info("stopped")
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
	w.watches = kube.NewWatches(reach, core, w.registry)
	w.runs = []func(context.Context) error{
		kube.Follow(w.watches, w.cluster.services(core, w.cfg.ServiceNamespace, w.cfg.ServiceName)),
		w.watches.Run, w.certificate.Run,
	}
	return nil
}

// endpoints are that of the reviews, first, and the auxiliary ones.
func (w *webhook) endpoints() []program.Endpoint {
	reviews := program.Endpoint{
		Flag: "--listen-on", Address: w.cfg.ListenOn, Handler: w.reviews(),
		TLS:         &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: w.certificate.Get},
		Limits:      limits,
		ReadTimeout: readTimeout, WriteTimeout: answerTimeout, Drain: drain, Grace: answerTimeout,
	}
	return append([]program.Endpoint{reviews}, auxserver.Endpoints(w.cfg.AuxListenOn, w.cfg.Debug, w.registry, w.ready, map[string]func() any{
		"service": func() any { return w.cluster.Service() },
	}, nil)...)
}

// reviews has a handler for each path. Their bodies are bounded together.
func (w *webhook) reviews() http.Handler {
	config := inject.Config{
		Namespace: w.cfg.ServiceNamespace, Image: w.cfg.InitImage, PullPolicy: corev1.PullPolicy(w.cfg.InitPullPolicy),
		AllowDNS: w.cfg.AllowDNS, Intercept: w.cfg.Intercept, ProbeTimeout: w.cfg.ProbeTimeout, Wait: w.cfg.Wait,
	}
	handlers, mux := http.NewServeMux(), http.NewServeMux()
	bounded := w.metrics.timed(newBodies(handlers, w.log))
	handle := func(path, name string, decide func(namespace string, pod []byte) inject.Decision) {
		handlers.Handle(path, &admission.Webhook{Handler: &handler{webhook: name, decide: decide, metrics: w.metrics, log: w.log}})
		mux.Handle("POST "+path, bounded)
	}
	handle(Path, webhookInject, func(namespace string, pod []byte) inject.Decision {
		return config.Decide(namespace, pod, w.cluster.Service())
	})
	handle(PathToken, webhookToken, func(namespace string, pod []byte) inject.Decision {
		return config.DecideToken(namespace, pod, false)
	})
	handle(PathTokenOnly, webhookToken, func(namespace string, pod []byte) inject.Decision {
		return config.DecideToken(namespace, pod, true)
	})
	return mux
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
