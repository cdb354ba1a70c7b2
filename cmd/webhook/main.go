// The webhook puts ip2service as the first init container into the pods of namespaces that
// opted in.
package main

import (
	"os"
	"time"

	"github.com/iam4kube/iam4kube/internal/flags"
	"github.com/iam4kube/iam4kube/internal/program"
	"github.com/iam4kube/iam4kube/internal/webhook"
)

var command = program.Program[webhook.Config]{Name: "webhook", Flags: add, Run: webhook.Run}

func main() { os.Exit(command.Main()) }

func add(f *flags.Set) (config func() webhook.Config) {
	const longest = 24 * time.Hour
	var cfg webhook.Config
	f.Address(&cfg.AuxListenOn, "aux-listen-on", ":9090", "address for /metrics, /healthz and /readyz")
	f.Bool(&cfg.Debug, "debug", "false", "serve profiles and dumps on 127.0.0.1:6060")
	f.File(&cfg.Kubeconfig, "kubeconfig", "kubeconfig file; empty: that of the pod")
	f.Address(&cfg.ListenOn, "listen-on", ":9443", "address for the API server's reviews, with TLS")
	f.String(&cfg.CertDir, "cert-dir", "/etc/iam4kube/tls", "folder with the certificate in tls.crt and its key in tls.key; both may come and change at any time")
	f.String(&cfg.ServiceNamespace, "service-namespace", "iam4kube", "namespace of the Service that pods are led to, and of iam4kube")
	f.String(&cfg.ServiceName, "service-name", "iam4kube", "name of the Service that pods are led to")
	f.String(&cfg.InitImage, "init-image", "", "image of ip2service for the init container; required")
	f.Choice(&cfg.InitPullPolicy, "init-image-pull-policy", webhook.PullPolicies[0], webhook.PullPolicies, "when kubelets pull it")
	f.Bool(&cfg.AllowDNS, "allow-dns", "false", "passed to the init container: let DNS to the metadata service's address pass, where that is a cloud's resolver, too")
	f.IPs(&cfg.Intercept, "intercept-ip", "", "passed to the init container: address to lead to the Service, may be repeated; empty: those of the metadata service")
	f.Duration(&cfg.ProbeTimeout, "probe-timeout", "60s", 0, longest, "passed to the init container: time after which a way that does not work fails the pod's start; 0: no probe")
	f.Duration(&cfg.Wait, "wait", "5s", 0, longest, "passed to the init container: time that the server may wait for what it has not seen yet of the pod")
	return func() webhook.Config { return cfg }
}
