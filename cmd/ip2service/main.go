// ip2service leads what is sent to the address of the EC2 metadata service to iam4kube's
// servers, and rejects everything else that is sent there.
package main

import (
	"net/netip"
	"os"
	"time"

	"github.com/iam4kube/iam4kube/internal/flags"
	"github.com/iam4kube/iam4kube/internal/ip2service"
	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
	"github.com/iam4kube/iam4kube/internal/program"
)

var command = program.Program[ip2service.Config]{Name: "ip2service", Flags: add, Run: ip2service.Run}

func main() { os.Exit(command.Main()) }

func add(f *flags.Set) (config func() ip2service.Config) {
	const longest = 24 * time.Hour
	var cfg ip2service.Config
	var intercept []netip.Addr
	var port uint16
	f.Address(&cfg.AuxListenOn, "aux-listen-on", ":9090", "address for /metrics, /healthz and /readyz; mode node")
	f.Bool(&cfg.Debug, "debug", "false", "serve profiles and dumps on 127.0.0.1:6060; mode node")
	f.File(&cfg.Kubeconfig, "kubeconfig", "kubeconfig file; empty: that of the pod; mode node")
	f.Choice(&cfg.Mode, "mode", ip2service.Modes[0], ip2service.Modes,
		"node: keep the rules of a node, for its pods; pod: set the rules of this pod's own network namespace, once")
	f.Bool(&cfg.Cleanup, "cleanup", "false", "remove the rules of either mode and exit")
	f.Choice(&cfg.DataPath, "data-path", ip2service.DataPaths[0], ip2service.DataPaths,
		"what leads the connections of pods; ebpf: programs in connect(), with the rules of nftables beside them; auto: as ebpf where that can be had; mode node")
	f.String(&cfg.BPFDir, "bpf-dir", "/sys/fs/bpf/iam4kube", "folder of a BPF file system for the pins of eBPF programs; mode node")
	f.IPs(&intercept, "intercept-ip", "169.254.169.254", "address to lead to the endpoints, may be repeated; if not given, also fd00:ec2::254 where there are IPv6 endpoints")
	f.Bool(&cfg.InterceptHost, "intercept-host", "false", "lead what the node's own processes and hostNetwork pods send there, too, but never to 169.254.169.254 and fd00:ec2::254; mode node")
	f.Bool(&cfg.InterceptLocal, "intercept-local", "false", "lead what pods send to an address that the node has itself, and an agent of its may listen at; mode node")
	f.Bool(&cfg.KeepMetadata, "keep-metadata-service", "false", "leave 169.254.169.254 and fd00:ec2::254 to whoever answers there, so that pods reach the node's own metadata service unless somebody else prevents it; wants other addresses by --intercept-ip; mode node")
	f.Port(&port, "intercept-port", "80", "port of it; all other ports are rejected")
	f.Bool(&cfg.AllowDNS, "allow-dns", "false", "let DNS (UDP and TCP, port 53) to these addresses pass, where one is a cloud's resolver")
	f.String(&cfg.ServiceNamespace, "service-namespace", "iam4kube", "namespace of the Service; mode node")
	f.String(&cfg.ServiceName, "service-name", "iam4kube", "name of the Service; mode node")
	f.String(&cfg.ServiceTargetPort, "service-target-port", "http", "name, as the Service calls it, or number of the port in its EndpointSlices; mode node")
	f.String(&cfg.StartupTaint, "startup-taint", "", "key of a taint to remove from the node when its rules are in; empty: none; mode node")
	f.String(&cfg.NodeName, "node-name", os.Getenv("NODE_NAME"), "name of this node, for --startup-taint; from the environment variable NODE_NAME; mode node")
	f.Duration(&cfg.MaxStaleness, "max-staleness", "15m", 0, longest, "time without a word from the API server after which what pods ask is rejected, because the servers' addresses may have other owners; 0: never; mode node")
	f.AddrPorts(&cfg.To, "to", "", "IP:PORT to lead to, may be repeated, one for each family; mode pod")
	f.Duration(&cfg.ProbeTimeout, "probe-timeout", "60s", 0, longest, "time after which a way that does not work fails the start; 0: no probe; mode pod")
	f.Duration(&cfg.Wait, "wait", "5s", 0, longest, "time that the server may wait for what it has not seen yet of the pod; mode pod")
	f.IPs(&cfg.PodIPs, "pod-ips", "", "the pod's addresses (status.podIPs), separated by commas; empty: those of its interfaces; mode pod")
	f.String(&cfg.Pod, "pod", "", "NAMESPACE/NAME of the pod, which the server has to take it for; empty: not compared; mode pod")
	f.Only("mode", ip2service.ModeNode, "service-namespace", "service-name", "service-target-port", "startup-taint", "node-name", "max-staleness", "intercept-host", "intercept-local", "keep-metadata-service", "data-path", "bpf-dir")
	f.Only("mode", ip2service.ModePod, "to", "probe-timeout", "wait", "pod-ips", "pod")
	return func() ip2service.Config {
		if !f.Given("intercept-ip") { // the default is more than help can show
			intercept = []netip.Addr{routes.MetadataIPv4, routes.MetadataIPv6}
		}
		for _, a := range intercept {
			cfg.Intercept = append(cfg.Intercept, netip.AddrPortFrom(a, port))
		}
		return cfg
	}
}
