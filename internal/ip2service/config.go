package ip2service

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
)

// Modes of --mode.
const (
	ModeNode = "node"
	ModePod  = "pod"
)

// minStaleness is above what a watch on which all is well is silent for at most.
const minStaleness = 5 * time.Minute

// Config is ip2service's flags; docs/routing.md describes them.
type Config struct {
	Mode      string
	Cleanup   bool
	BPFDir    string           // of the pins of eBPF programs
	Intercept []netip.AddrPort // led to the endpoints of their family
	AllowDNS  bool

	// On a node.
	AuxListenOn                   string
	Debug                         bool
	DataPath                      string // one of DataPaths
	Kubeconfig                    string
	ServiceNamespace, ServiceName string
	ServiceTargetPort             string
	StartupTaint, NodeName        string
	MaxStaleness                  time.Duration // 0: no limit
	// InterceptHost: the addresses of Intercept but for the metadata service's hold for the
	// host's own processes, too. InterceptLocal: these also where the host has them itself.
	InterceptHost, InterceptLocal bool
	// KeepMetadata: the metadata service's addresses are neither led nor guarded.
	KeepMetadata bool

	// In a pod.
	To           []netip.AddrPort
	ProbeTimeout time.Duration
	Wait         time.Duration
	PodIPs       []netip.Addr
	Pod          string // NAMESPACE/NAME
}

// Validate finds flags that contradict each other, and names that are none.
func (c Config) Validate() error {
	switch {
	case c.Cleanup:
		return nil
	case len(c.Intercept) == 0:
		return errors.New("--intercept-ip is empty, want an IP address")
	case c.AllowDNS && slices.ContainsFunc(c.Intercept, func(i netip.AddrPort) bool { return i.Port() == 53 }):
		return errors.New("--allow-dns lets port 53 pass, want another --intercept-port")
	case c.Mode == ModePod:
		return c.validatePod()
	case len(validation.IsDNS1123Label(c.ServiceNamespace)) > 0:
		return fmt.Errorf("--service-namespace %q: want the name of a namespace, up to 63 lower-case letters, digits or -", c.ServiceNamespace)
	case len(validation.IsDNS1035Label(c.ServiceName)) > 0:
		return fmt.Errorf("--service-name %q: want the name of a Service, up to 63 lower-case letters, digits or -", c.ServiceName)
	case c.BPFDir == "":
		return errors.New("--bpf-dir is empty, want a folder of a BPF file system, such as /sys/fs/bpf/iam4kube")
	case filepath.Clean(c.BPFDir) == "/sys/fs/bpf":
		return errors.New("--bpf-dir /sys/fs/bpf is everybody's, want a folder of its own, such as /sys/fs/bpf/iam4kube")
	case !validPort(c.ServiceTargetPort):
		return fmt.Errorf("--service-target-port %q: want the name or the number of a port", c.ServiceTargetPort)
	case c.MaxStaleness != 0 && c.MaxStaleness < minStaleness:
		return fmt.Errorf("--max-staleness %v: want 0, which sets no limit, or at least %v: a quiet watch is silent for up to three minutes", c.MaxStaleness, minStaleness)
	case c.InterceptHost && !slices.ContainsFunc(c.Intercept, func(i netip.AddrPort) bool { return !routes.Metadata(i.Addr()) }):
		return errors.New("--intercept-host needs an --intercept-ip that is not the metadata service's, such as 169.254.170.2: that one stays the host's own")
	case c.KeepMetadata && slices.ContainsFunc(c.Intercept, func(i netip.AddrPort) bool { return routes.Metadata(i.Addr()) }):
		return errors.New("--keep-metadata-service leaves 169.254.169.254 and fd00:ec2::254 to another metadata service: want other addresses alone by --intercept-ip, such as 169.254.170.2")
	case c.StartupTaint != "" && c.NodeName == "":
		return errors.New("--startup-taint needs --node-name, or the environment variable NODE_NAME from the field spec.nodeName")
	case c.StartupTaint != "" && len(validation.IsQualifiedName(c.StartupTaint)) > 0:
		return fmt.Errorf("--startup-taint %q: want the key of a taint, such as iam4kube.io/not-ready", c.StartupTaint)
	}
	return nil
}

// validPort says whether a port of an EndpointSlice can be called so: numbers are compared as they are written.
func validPort(text string) bool {
	if number, err := strconv.Atoi(text); err == nil {
		return len(validation.IsValidPortNum(number)) == 0 && strconv.Itoa(number) == text
	}
	return len(validation.IsDNS1123Label(text)) == 0
}

func (c Config) validatePod() error {
	if len(c.To) == 0 {
		return errors.New("--mode pod needs --to IP:PORT, the address of the Service")
	}
	is4 := func(want bool) func(netip.AddrPort) bool {
		return func(to netip.AddrPort) bool { return to.Addr().Is4() == want }
	}
	for _, want := range []bool{true, false} {
		of := slices.DeleteFunc(slices.Clone(c.To), is4(!want))
		if len(of) > 1 {
			return fmt.Errorf("--to %s and --to %s are of one family, want one for each", of[0], of[1])
		}
		if len(of) == 1 && !slices.ContainsFunc(c.Intercept, is4(want)) {
			return fmt.Errorf("--to %s: no --intercept-ip is of its family", of[0])
		}
	}
	if namespace, name, _ := strings.Cut(c.Pod, "/"); c.Pod != "" && len(validation.IsDNS1123Label(namespace))+len(validation.IsDNS1123Subdomain(name)) > 0 {
		return fmt.Errorf("--pod %q: want NAMESPACE/NAME of the pod", c.Pod)
	}
	for _, to := range c.To {
		if slices.Contains(routes.Routes{Intercept: c.Intercept}.Guarded(routes.FamilyOf(to.Addr())), to.Addr()) {
			return fmt.Errorf("--to %s is an address that is intercepted or rejected, want that of the Service", to)
		}
	}
	return nil
}
