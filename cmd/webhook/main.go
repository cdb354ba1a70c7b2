// The webhook puts ip2service as the first init container into the pods of namespaces that
// opted in.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/iam4kube/iam4kube/internal/flags"
	"github.com/iam4kube/iam4kube/internal/logging"
	"github.com/iam4kube/iam4kube/internal/webhook"
)

const (
	exitFailure = 1
	exitUsage   = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	// A second signal ends the program at once.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, arguments []string, stdout, stderr io.Writer) int {
	cfg, level, encoding, err := parse(arguments, stdout)
	switch {
	case errors.Is(err, flags.ErrHelp):
		return 0
	case err != nil:
		return say(stderr, exitUsage, err)
	}
	log, err := logging.New(stderr, level, encoding)
	if err != nil {
		return say(stderr, exitUsage, err)
	}
	logging.TakeOverKlog(log)
	if err := webhook.Run(ctx, cfg, log); err != nil {
		return say(stderr, exitFailure, err)
	}
	return 0
}

// say prints the one line that explains the exit code.
func say(stderr io.Writer, code int, err error) int {
	_, _ = fmt.Fprintf(stderr, "webhook: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
	return code
}

func parse(arguments []string, help io.Writer) (cfg webhook.Config, level, encoding string, err error) {
	const longest = 24 * time.Hour
	f := flags.New("webhook")
	f.Choice(&level, "log-level", "info", logging.Levels, "least level that is logged")
	f.Choice(&encoding, "log-encoding", "json", logging.Encodings, "form of a log line")
	f.Address(&cfg.AuxListenOn, "aux-listen-on", ":9090", "address for /metrics, /healthz and /readyz")
	f.Bool(&cfg.Debug, "debug", "false", "serve profiles and dumps on 127.0.0.1:6060")
	f.File(&cfg.Kubeconfig, "kubeconfig", "kubeconfig file; empty: that of the pod")
	f.Address(&cfg.ListenOn, "listen-on", ":9443", "address for the API server's reviews, with TLS")
	f.String(&cfg.CertDir, "cert-dir", "/etc/iam4kube/tls", "folder with the certificate in tls.crt and its key in tls.key; both may come and change at any time")
	f.String(&cfg.ServiceNamespace, "service-namespace", "iam4kube", "namespace of the Service that pods are led to, and of iam4kube")
	f.String(&cfg.ServiceName, "service-name", "iam4kube", "name of the Service that pods are led to")
	f.String(&cfg.InitImage, "init-image", "", "image of ip2service for the init container; required")
	f.Duration(&cfg.ProbeTimeout, "probe-timeout", "60s", 0, longest, "passed to the init container: time after which a way that does not work fails the pod's start; 0: no probe")
	f.Duration(&cfg.Wait, "wait", "5s", 0, longest, "passed to the init container: time that the server may wait for what it has not seen yet of the pod")
	if err := f.Parse(arguments, help); err != nil {
		return cfg, "", "", err
	}
	return cfg, level, encoding, check(cfg)
}

// check finds flags that contradict each other or what they name.
func check(cfg webhook.Config) error {
	switch {
	case cfg.ListenOn == cfg.AuxListenOn && !strings.HasSuffix(cfg.ListenOn, ":0"):
		return fmt.Errorf("--listen-on and --aux-listen-on are both %s, want two addresses", cfg.ListenOn)
	case cfg.InitImage == "" || strings.TrimSpace(cfg.InitImage) != cfg.InitImage:
		return fmt.Errorf("--init-image %q: want the image of ip2service, such as registry.example/iam4kube/ip2service:v1.0.0", cfg.InitImage)
	case cfg.ProbeTimeout%time.Millisecond != 0, cfg.Wait%time.Millisecond != 0:
		return fmt.Errorf("--probe-timeout %v, --wait %v: want whole milliseconds", cfg.ProbeTimeout, cfg.Wait)
	case cfg.CertDir == "":
		return errors.New("--cert-dir is empty, want the folder of tls.crt and tls.key")
	case len(validation.IsDNS1123Label(cfg.ServiceNamespace)) > 0:
		return fmt.Errorf("--service-namespace %q: want the name of a namespace, up to 63 lower-case letters, digits or -", cfg.ServiceNamespace)
	case len(validation.IsDNS1035Label(cfg.ServiceName)) > 0:
		return fmt.Errorf("--service-name %q: want the name of a Service, up to 63 lower-case letters, digits or -", cfg.ServiceName)
	}
	return nil
}
