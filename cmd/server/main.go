// The server answers the metadata API with the credentials of pods' IAM roles.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/iam4kube/iam4kube/internal/flags"
	"github.com/iam4kube/iam4kube/internal/logging"
	"github.com/iam4kube/iam4kube/internal/server"
	"github.com/iam4kube/iam4kube/internal/server/role"
)

const (
	exitFailure = 1
	exitUsage   = 2
)

// ballastBytes of memory are counted as heap by the garbage collector and, because nothing
// touches them, take no room. The collector runs whenever the heap has doubled: with the
// 8 MiB of a small cluster that is 15 times a second under load, a tenth of the processor
// time. GOGC would save the same there, and cost far more memory in a large cluster.
const ballastBytes = 16 << 20

func main() {
	ballast := make([]byte, ballastBytes)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	// A second signal ends the program at once.
	context.AfterFunc(ctx, stop)
	status := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	runtime.KeepAlive(ballast)
	os.Exit(status)
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
	if err := server.Run(ctx, cfg, log); err != nil {
		return say(stderr, exitFailure, err)
	}
	return 0
}

// say prints the one line that explains the exit code.
func say(stderr io.Writer, code int, err error) int {
	_, _ = fmt.Fprintf(stderr, "server: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
	return code
}

func parse(arguments []string, help io.Writer) (cfg server.Config, level, encoding string, err error) {
	const longest = 24 * time.Hour
	f := flags.New("server")
	f.Choice(&level, "log-level", "info", logging.Levels, "least level that is logged")
	f.Choice(&encoding, "log-encoding", "json", logging.Encodings, "form of a log line")
	f.Address(&cfg.AuxListenOn, "aux-listen-on", ":9090", "address for /metrics, /healthz and /readyz")
	f.Bool(&cfg.Debug, "debug", "false", "serve profiles and dumps on 127.0.0.1:6060")
	f.File(&cfg.Kubeconfig, "kubeconfig", "kubeconfig file; empty: that of the pod")
	f.Address(&cfg.ListenOn, "listen-on", ":8080", "address for the metadata API")
	f.Float(&cfg.STSRateLimit, "sts-rate-limit", "10", 0.01, 10000, "requests a second to STS, at most")
	f.Int(&cfg.STSRateBurst, "sts-rate-burst", "20", 1, 10000, "requests at once to STS, at most")
	f.Duration(&cfg.MaxWait, "max-wait", "15s", 0, longest, "longest time that a request waits for what is missing")
	f.Duration(&cfg.Drain, "drain", "10s", 0, longest, "time between SIGTERM and the end of accepting requests")
	f.Duration(&cfg.ReadyWithin, "ready-within", "10m", 0, longest, "time after which roles that were not tried yet no longer keep the server from being ready")
	f.Duration(&cfg.SessionDuration, "session-duration", "1h", role.MinDuration, role.MaxDuration, "length of a session without the annotation "+role.AnnotationDuration)
	f.Bool(&cfg.IMDSv1, "imdsv1", "true", "answer requests without a session token")
	f.String(&cfg.Namespace, "namespace", ownNamespace(), "namespace of the Secret with the token key; the pod's own")
	f.String(&cfg.Region, "region", "", "region of pods whose nodes have no label topology.kubernetes.io/region, and of STS if the AWS configuration names none")
	f.String(&cfg.AvailabilityZone, "availability-zone", "", "zone of pods whose nodes have no label topology.kubernetes.io/zone")
	if err := f.Parse(arguments, help); err != nil {
		return cfg, "", "", err
	}
	return cfg, level, encoding, check(cfg)
}

// check finds flags that contradict each other.
func check(cfg server.Config) error {
	switch {
	case cfg.ListenOn == cfg.AuxListenOn && !strings.HasSuffix(cfg.ListenOn, ":0"):
		return fmt.Errorf("--listen-on and --aux-listen-on are both %s, want two addresses", cfg.ListenOn)
	case cfg.SessionDuration%time.Second != 0:
		return fmt.Errorf("--session-duration %v: want whole seconds", cfg.SessionDuration)
	case len(validation.IsDNS1123Label(cfg.Namespace)) > 0:
		return fmt.Errorf("--namespace %q: want the name of the server's own namespace, up to 63 lower-case letters, digits or -", cfg.Namespace)
	}
	// The two stand in for labels, and pods get them as they are.
	for name, value := range map[string]string{"region": cfg.Region, "availability-zone": cfg.AvailabilityZone} {
		if len(validation.IsValidLabelValue(value)) > 0 {
			return fmt.Errorf("--%s %q: want what a label can hold, up to 63 letters, digits or any of ._-", name, value)
		}
	}
	return nil
}

// ownNamespace is where the kubelet says that this pod is.
func ownNamespace() string {
	const file, fallback = "/var/run/secrets/kubernetes.io/serviceaccount/namespace", "iam4kube"
	if name, err := os.ReadFile(file); err == nil && len(name) > 0 {
		return strings.TrimSpace(string(name))
	}
	return fallback
}
