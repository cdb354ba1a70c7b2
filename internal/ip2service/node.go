//go:build !podonly

package ip2service

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"

	"github.com/iam4kube/iam4kube/internal/auxserver"
	"github.com/iam4kube/iam4kube/internal/ip2service/backends"
	"github.com/iam4kube/iam4kube/internal/kube"
	"github.com/iam4kube/iam4kube/internal/logging"
	"github.com/iam4kube/iam4kube/internal/program"
)

// Modes are what --mode accepts, the default first.
var Modes = []string{ModeNode, ModePod}

// comeBack is over what time the nodes of a cluster come back to an API server.
const comeBack = 10 * time.Second

// watchRetry is the pause before the kernel's notifications are asked for again.
const watchRetry = time.Second

// node is the parts that run.
type node struct {
	cfg        Config
	log        *zap.Logger
	registry   *prometheus.Registry
	reconciler *reconciler
	watches    *kube.Watches
	runs       []func(context.Context) error
	// hangUp closes the connections to the API server, after the parts have ended.
	hangUp func()
}

// runNode keeps the node's rules until ctx ends. The guard is in before the API server
// is asked for the first time, and at the end everything stays as it is.
func runNode(ctx context.Context, cfg Config, log *zap.Logger) error {
	kernel := newDataPaths(cfg, log)
	n := &node{cfg: cfg, log: log, registry: auxserver.NewRegistry()}
	n.registry.MustRegister(newPackets(kernel.rules, kernel.programs), kernel)
	n.reconciler = newReconciler(cfg, kernel, lookAtHost, newMetrics(n.registry), log)
	n.reconciler.netfilter = kernel.Netfilter
	n.reconciler.reconcile() // an error is repeated by Run
	if err := n.build(); err != nil {
		return err
	}
	defer n.hangUp()
	servers, err := program.Listen(ctx, log, auxserver.Endpoints(cfg.AuxListenOn, cfg.Debug, n.registry, n.ready, map[string]func() any{
		"endpoints": func() any { endpoints, _ := n.reconciler.set.Endpoints(); return endpoints },
	}, nil)...)
	if err != nil {
		return err
	}
	auxserver.CountConnections(n.registry, servers)
	log.Info("watching", zap.Stringer(logging.AuxAddress, servers[0].Addr()))
	for _, s := range servers {
		n.runs = append(n.runs, s.Run)
	}
	err = program.RunParts(ctx, n.reconciler.Run, append(n.runs, n.watchKernel(kernel), n.watches.Run)...)
	log.Info("stopped, the rules stay")
	return err
}

// build makes the parts that speak to the API server. It asks nothing of the network.
func (n *node) build() error {
	reach := &kube.Reach{}
	config, err := kube.Config(n.cfg.Kubeconfig, "iam4kube-ip2service", reach)
	if err != nil {
		return err
	}
	config.Dial = kube.Spread(config.Dial, comeBack)
	client, hangUp, err := kube.HTTPClient(config)
	if err != nil {
		return err
	}
	n.hangUp = hangUp
	discovery, err := kube.RESTClient(config, client, discoveryv1.SchemeGroupVersion, discoveryv1.AddToScheme)
	if err != nil {
		return err
	}
	n.watches = kube.NewWatches(reach, discovery, n.registry)
	n.reconciler.silence = n.watches.Silence
	proofs := &proofs{
		hearing:   func() bool { return n.watches.Hearing() == nil },
		endpoints: n.reconciler.set.Addresses,
		ask:       newAsker(), changed: n.reconciler.Trigger, log: n.log,
	}
	n.reconciler.doubted = proofs.Doubted
	n.runs = append(n.runs, proofs.Run, kube.Follow(n.watches, n.endpointSlices(discovery)))
	if n.cfg.StartupTaint != "" {
		core, err := kube.RESTClient(config, client, corev1.SchemeGroupVersion, corev1.AddToScheme)
		if err != nil {
			return err
		}
		t := &taint{core, n.cfg.NodeName, n.cfg.StartupTaint, n.reconciler.inSync, n.log}
		n.runs = append(n.runs, t.Run)
	}
	return nil
}

// endpointSlices are those of the Service, and no others.
func (n *node) endpointSlices(client rest.Interface) kube.Resource[*discoveryv1.EndpointSlice, backends.Slice] {
	get := func(options metav1.ListOptions) *rest.Request {
		return client.Get().Namespace(n.cfg.ServiceNamespace).Resource("endpointslices").VersionedParams(&options, metav1.ParameterCodec)
	}
	return kube.Resource[*discoveryv1.EndpointSlice, backends.Slice]{
		Name: "endpointslices",
		Selector: func(options *metav1.ListOptions) {
			options.LabelSelector = discoveryv1.LabelServiceName + "=" + n.cfg.ServiceName
		},
		List: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			list := &discoveryv1.EndpointSliceList{}
			return list, get(options).Do(ctx).Into(list)
		},
		Watch: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.Watch = true
			return get(options).Watch(ctx)
		},
		Keep: backends.Port(n.cfg.ServiceTargetPort).Keep,
		Sink: n.reconciler.set,
	}
}

// watchKernel triggers the reconciler when somebody changed the rules.
func (n *node) watchKernel(kernel dataPath) func(context.Context) error {
	return func(ctx context.Context) error {
		for ctx.Err() == nil {
			if err := kernel.Watch(ctx, n.reconciler.Trigger); err != nil {
				n.log.Error("changes to the rules by others are only noticed at the next resync", zap.Error(err))
			}
			timer := time.NewTimer(watchRetry)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
			}
		}
		return nil
	}
}

// ready is why this node's pods are not, or may not be, served.
func (n *node) ready() error {
	if err := n.reconciler.Err(); err != nil {
		return err
	}
	return n.watches.Broken()
}
