// ip2service leads what is sent to the address of the EC2 metadata service to iam4kube's
// servers, and rejects everything else that is sent there.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/iam4kube/iam4kube/internal/flags"
	"github.com/iam4kube/iam4kube/internal/ip2service"
	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
	"github.com/iam4kube/iam4kube/internal/logging"
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
	if err := ip2service.Run(ctx, cfg, log); err != nil {
		return say(stderr, exitFailure, err)
	}
	return 0
}

// say prints the one line that explains the exit code.
func say(stderr io.Writer, code int, err error) int {
	_, _ = fmt.Fprintf(stderr, "ip2service: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
	return code
}

// Flags that mean something in one mode only.
var (
	nodeFlags = []string{"service-namespace", "service-name", "service-target-port", "startup-taint", "node-name"}
	podFlags  = []string{"to", "probe-timeout", "wait", "pod-ips"}
)

func parse(arguments []string, help io.Writer) (cfg ip2service.Config, level, encoding string, err error) {
	const longest = 24 * time.Hour
	var intercept []netip.Addr
	var port int
	f := flags.New("ip2service")
	f.Choice(&level, "log-level", "info", logging.Levels, "least level that is logged")
	f.Choice(&encoding, "log-encoding", "json", logging.Encodings, "form of a log line")
	f.Address(&cfg.AuxListenOn, "aux-listen-on", ":9090", "address for /metrics, /healthz and /readyz; mode node")
	f.Bool(&cfg.Debug, "debug", "false", "serve profiles and dumps on 127.0.0.1:6060; mode node")
	f.File(&cfg.Kubeconfig, "kubeconfig", "kubeconfig file; empty: that of the pod; mode node")
	f.Choice(&cfg.Mode, "mode", ip2service.Modes[0], ip2service.Modes,
		"node: keep the rules of a node, for its pods; pod: set the rules of this pod's own network namespace, once")
	f.Bool(&cfg.Cleanup, "cleanup", "false", "remove the rules of either mode and exit")
	f.IPs(&intercept, "intercept-ip", "169.254.169.254", "address to lead to the endpoints, may be repeated; if not given, also fd00:ec2::254 where there are IPv6 endpoints")
	f.Int(&port, "intercept-port", "80", 1, 65535, "port of it; all other ports are rejected")
	f.String(&cfg.ServiceNamespace, "service-namespace", "iam4kube", "namespace of the Service; mode node")
	f.String(&cfg.ServiceName, "service-name", "iam4kube", "name of the Service; mode node")
	f.String(&cfg.ServiceTargetPort, "service-target-port", "http", "name, as the Service calls it, or number of the port in its EndpointSlices; mode node")
	f.String(&cfg.StartupTaint, "startup-taint", "", "key of a taint to remove from the node when its rules are in; empty: none; mode node")
	f.String(&cfg.NodeName, "node-name", os.Getenv("NODE_NAME"), "name of this node, for --startup-taint; from the environment variable NODE_NAME; mode node")
	f.AddrPorts(&cfg.To, "to", "", "IP:PORT to lead to, may be repeated, one for each family; mode pod")
	f.Duration(&cfg.ProbeTimeout, "probe-timeout", "60s", 0, longest, "time after which a way that does not work fails the start; 0: no probe; mode pod")
	f.Duration(&cfg.Wait, "wait", "5s", 0, longest, "time that the server may wait for what it has not seen yet of the pod; mode pod")
	f.IPs(&cfg.PodIPs, "pod-ips", "", "the pod's addresses (status.podIPs), separated by commas; empty: those of its interfaces; mode pod")
	if err := f.Parse(arguments, help); err != nil {
		return cfg, "", "", err
	}
	if !f.Given("intercept-ip") {
		intercept = []netip.Addr{routes.MetadataIPv4, routes.MetadataIPv6}
	}
	for _, a := range intercept {
		cfg.Intercept = append(cfg.Intercept, netip.AddrPortFrom(a, uint16(port)))
	}
	return cfg, level, encoding, check(cfg, f.Given)
}

// check finds flags that contradict each other.
func check(cfg ip2service.Config, given func(string) bool) error {
	others := podFlags
	if cfg.Mode == ip2service.ModePod {
		others = nodeFlags
	}
	for _, name := range others {
		if given(name) {
			return fmt.Errorf("--%s means nothing with --mode %s", name, cfg.Mode)
		}
	}
	switch {
	case cfg.Cleanup:
		return nil
	case len(cfg.Intercept) == 0:
		return errors.New("--intercept-ip is empty, want an IP address")
	case cfg.Mode == ip2service.ModePod:
		return checkPod(cfg)
	case len(validation.IsDNS1123Label(cfg.ServiceNamespace)) > 0:
		return fmt.Errorf("--service-namespace %q: want the name of a namespace, up to 63 lower-case letters, digits or -", cfg.ServiceNamespace)
	case len(validation.IsDNS1035Label(cfg.ServiceName)) > 0:
		return fmt.Errorf("--service-name %q: want the name of a Service, up to 63 lower-case letters, digits or -", cfg.ServiceName)
	case cfg.ServiceTargetPort == "":
		return errors.New("--service-target-port is empty, want the name or the number of a port")
	case cfg.StartupTaint != "" && cfg.NodeName == "":
		return errors.New("--startup-taint needs --node-name, or the environment variable NODE_NAME from the field spec.nodeName")
	case cfg.StartupTaint != "" && len(validation.IsQualifiedName(cfg.StartupTaint)) > 0:
		return fmt.Errorf("--startup-taint %q: want the key of a taint, such as iam4kube.io/not-ready", cfg.StartupTaint)
	}
	return nil
}

func checkPod(cfg ip2service.Config) error {
	if len(cfg.To) == 0 {
		return errors.New("--mode pod needs --to IP:PORT, the address of the Service")
	}
	is4 := func(want bool) func(netip.AddrPort) bool {
		return func(to netip.AddrPort) bool { return to.Addr().Is4() == want }
	}
	for _, want := range []bool{true, false} {
		of := slices.DeleteFunc(slices.Clone(cfg.To), is4(!want))
		if len(of) > 1 {
			return fmt.Errorf("--to %s and --to %s are of one family, want one for each", of[0], of[1])
		}
		if len(of) == 1 && !slices.ContainsFunc(cfg.Intercept, is4(want)) {
			return fmt.Errorf("--to %s: no --intercept-ip is of its family", of[0])
		}
	}
	for _, to := range cfg.To {
		if slices.Contains(routes.Routes{Intercept: cfg.Intercept}.Guarded(routes.FamilyOf(to.Addr())), to.Addr()) {
			return fmt.Errorf("--to %s is an address that is intercepted or rejected, want that of the Service", to)
		}
	}
	return nil
}
