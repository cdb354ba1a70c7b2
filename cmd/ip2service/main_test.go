package main

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/internal/ip2service"
)

// runRefused runs the program with flags that it has to refuse. What it would accept is
// not run: it would change the rules of the machine.
func runRefused(t *testing.T, arguments ...string) (code int, stdout, stderr string) {
	t.Helper()
	if _, _, err := command.Parse(arguments, io.Discard); err == nil {
		t.Errorf("%q is accepted", arguments)
		return 0, "", ""
	}
	var out, errs bytes.Buffer
	code = command.Start(t.Context(), arguments, &out, &errs)
	return code, out.String(), errs.String()
}

// checkRefused checks for exit code 2 and a single line with these parts.
func checkRefused(t *testing.T, arguments []string, parts ...string) {
	t.Helper()
	code, stdout, stderr := runRefused(t, arguments...)
	if code != 2 || stdout != "" {
		t.Errorf("%q: exit %d, stdout %q, stderr %q", arguments, code, stdout, stderr)
	}
	if strings.Count(stderr, "\n") != 1 || !strings.HasSuffix(stderr, "\n") {
		t.Errorf("%q: want one line, got %q", arguments, stderr)
	}
	for _, part := range parts {
		if !strings.Contains(stderr, part) {
			t.Errorf("%q: %q does not say %q", arguments, stderr, part)
		}
	}
}

func TestWrongFlagsExitWith2(t *testing.T) {
	for _, tc := range []struct {
		arguments []string
		want      []string
	}{
		{[]string{"--log-level=verbose"}, []string{"log-level", "debug, info, warn, error"}},
		{[]string{"--log-encoding=text"}, []string{"log-encoding", "json, console"}},
		{[]string{"--aux-listen-on=9090"}, []string{"aux-listen-on", "[IP]:PORT"}},
		{[]string{"--debug=maybe"}, []string{"debug", "true or false"}},
		{[]string{"--cleanup=maybe"}, []string{"cleanup", "true or false"}},
		{[]string{"--cleanup", "now"}, []string{`"now"`, "only flags"}},
		{[]string{"--kubeconfig=/does/not/exist"}, []string{"kubeconfig", "readable file"}},
		{[]string{"--mode=host"}, []string{"mode", "node, pod"}},
		{[]string{"--mode="}, []string{"mode", "node, pod"}},
		{[]string{"--intercept-ip=metadata"}, []string{"intercept-ip", "an IP address", "169.254.169.254"}},
		{[]string{"--intercept-ip=169.254.169.254/32"}, []string{"intercept-ip", "an IP address"}},
		{[]string{"--intercept-ip=169.254.169.254:80"}, []string{"intercept-ip", "an IP address"}},
		{[]string{"--intercept-ip=fe80::1%eth0"}, []string{"intercept-ip", "an IP address"}},
		{[]string{"--intercept-ip=0.0.0.0"}, []string{"intercept-ip", "an IP address"}},
		{[]string{"--intercept-ip=169.254.169.254,x"}, []string{"intercept-ip", "an IP address"}},
		{[]string{"--intercept-ip="}, []string{"--intercept-ip", "want an IP address"}},
		{[]string{"--intercept-port=0"}, []string{"intercept-port", "from 1 to 65535"}},
		{[]string{"--intercept-port=65536"}, []string{"intercept-port", "from 1 to 65535"}},
		{[]string{"--intercept-port=http"}, []string{"intercept-port", "from 1 to 65535"}},
		{[]string{"--service-namespace="}, []string{"--service-namespace", "name of a namespace"}},
		{[]string{"--service-namespace=a.b"}, []string{"--service-namespace", `"a.b"`}},
		{[]string{"--service-name=a/b"}, []string{"--service-name", "name of a Service"}},
		{[]string{"--service-name=1a"}, []string{"--service-name", "name of a Service"}},
		{[]string{"--service-name=a\nb"}, []string{"--service-name", "name of a Service"}},
		{[]string{"--service-target-port="}, []string{"--service-target-port", "name or the number"}},
		{[]string{"--service-target-port=70000"}, []string{"--service-target-port", "70000"}},
		{[]string{"--service-target-port=+8080"}, []string{"--service-target-port", "name or the number"}},
		{[]string{"--service-target-port=0"}, []string{"--service-target-port", "name or the number"}},
		{[]string{"--service-target-port=Http!"}, []string{"--service-target-port", "Http!"}},
		{[]string{"--bpf-dir=/sys/fs/bpf/"}, []string{"--bpf-dir", "/sys/fs/bpf/iam4kube"}},
		{[]string{"--allow-dns", "--intercept-port=53"}, []string{"--allow-dns", "--intercept-port"}},
		{[]string{"--data-path=bpf"}, []string{"data-path", "nftables, ebpf, auto"}},
		{[]string{"--bpf-dir="}, []string{"--bpf-dir", "folder"}},
		{[]string{"--intercept-host"}, []string{"--intercept-host", "169.254.170.2"}},
		{[]string{"--intercept-host", "--intercept-ip=169.254.169.254,fd00:ec2::254"}, []string{"--intercept-host", "169.254.170.2"}},
		{[]string{"--intercept-host=maybe"}, []string{"intercept-host", "true or false"}},
		{[]string{"--intercept-local=maybe"}, []string{"intercept-local", "true or false"}},
		{[]string{"--keep-metadata-service"}, []string{"--keep-metadata-service", "--intercept-ip", "169.254.170.2"}},
		{[]string{"--keep-metadata-service", "--intercept-ip=169.254.170.2", "--intercept-ip=169.254.169.254"}, []string{"--keep-metadata-service", "other addresses alone"}},
		{[]string{"--keep-metadata-service", "--intercept-ip=169.254.170.2,fd00:ec2::254"}, []string{"--keep-metadata-service", "other addresses alone"}},
		{[]string{"--keep-metadata-service=maybe"}, []string{"keep-metadata-service", "true or false"}},
		{[]string{"--startup-taint=a"}, []string{"--startup-taint", "--node-name", "NODE_NAME"}},
		{[]string{"--startup-taint=a b", "--node-name=n"}, []string{"--startup-taint", "key of a taint"}},
		{[]string{"--unknown"}, []string{"-unknown", "--intercept-ip", "--to"}},
		{[]string{"--un\nknown"}, []string{"accepted are", "--intercept-ip", "--to"}},
		{[]string{"--mode"}, []string{"--mode", "needs a value", "node, pod"}},
		{[]string{"start"}, []string{`"start"`, "only flags"}},

		{[]string{"--mode=pod"}, []string{"--to", "IP:PORT"}},
		{[]string{"--mode=pod", "--to="}, []string{"--to", "IP:PORT"}},
		{[]string{"--max-staleness=1m"}, []string{"--max-staleness 1m0s", "want 0", "at least 5m"}},
		{[]string{"--mode=pod", "--to=10.96.0.7"}, []string{"-to", "want IP:PORT", "[fd00::7]:80"}},
		{[]string{"--mode=pod", "--to=10.96.0.7:0"}, []string{"-to", "want IP:PORT"}},
		{[]string{"--mode=pod", "--to=iam4kube.iam4kube:80"}, []string{"-to", "want IP:PORT"}},
		{[]string{"--mode=pod", "--to=fd00::7:80"}, []string{"-to", "want IP:PORT"}},
		{[]string{"--mode=pod", "--to=10.96.0.7:80", "--to=10.96.0.8:80"}, []string{"--to 10.96.0.7:80", "--to 10.96.0.8:80", "one for each"}},
		{[]string{"--mode=pod", "--to=[fd00::7]:80,[fd00::7]:81"}, []string{"--to [fd00::7]:80", "--to [fd00::7]:81", "one for each"}},
		{[]string{"--mode=pod", "--to=[fd00::7]:80", "--intercept-ip=169.254.169.254"}, []string{"--to [fd00::7]:80", "--intercept-ip"}},
		{[]string{"--mode=pod", "--to=10.96.0.7:80", "--intercept-ip=fd00:ec2::254"}, []string{"--to 10.96.0.7:80", "--intercept-ip"}},
		{[]string{"--mode=pod", "--to=10.96.0.7:80", "--intercept-ip=10.96.0.7"}, []string{"--to 10.96.0.7:80", "intercepted"}},
		{[]string{"--mode=pod", "--to=169.254.169.254:80"}, []string{"--to 169.254.169.254:80", "intercepted"}},
		{[]string{"--mode=pod", "--to=[fd00:ec2::254]:80"}, []string{"--to [fd00:ec2::254]:80", "intercepted"}},
		{[]string{"--mode=pod", "--to=169.254.169.254:80", "--intercept-ip=192.0.2.1"}, []string{"--to 169.254.169.254:80", "rejected"}},
		{[]string{"--mode=pod", "--to=10.96.0.7:80", "--probe-timeout=60"}, []string{"probe-timeout", "from 0s to 24h"}},
		{[]string{"--mode=pod", "--to=10.96.0.7:80", "--probe-timeout=-1s"}, []string{"probe-timeout", "from 0s to 24h"}},
		{[]string{"--mode=pod", "--to=10.96.0.7:80", "--wait=25h"}, []string{"wait", "from 0s to 24h"}},
		{[]string{"--mode=pod", "--to=10.96.0.7:80", "--pod-ips=pod"}, []string{"pod-ips", "an IP address"}},
		{[]string{"--mode=pod", "--to=10.96.0.7:80", "--pod=app"}, []string{"--pod", "NAMESPACE/NAME"}},
		{[]string{"--mode=pod", "--to=10.96.0.7:80", "--pod=shop/app/x"}, []string{"--pod", "NAMESPACE/NAME"}},
		{[]string{"--mode=pod", "--to=10.96.0.7:80", "--pod=/app"}, []string{"--pod", "NAMESPACE/NAME"}},
	} {
		t.Run(fmt.Sprintf("%q", tc.arguments), func(t *testing.T) {
			t.Setenv("NODE_NAME", "")
			checkRefused(t, tc.arguments, tc.want...)
		})
	}
}

// A flag that the mode does not know is a mistake of whoever wrote it.
func TestFlagsOfTheOtherModeExitWith2(t *testing.T) {
	for name, value := range map[string]string{
		"service-namespace": "iam4kube", "service-name": "iam4kube", "service-target-port": "http", "startup-taint": "a", "node-name": "n", "max-staleness": "1h", "intercept-host": "true", "intercept-local": "true", "keep-metadata-service": "true", "data-path": "ebpf", "bpf-dir": "/a",
	} {
		checkRefused(t, []string{"--mode", "pod", "--to", "10.96.0.7:80", "--" + name + "=" + value}, "--"+name, "--mode pod")
	}
	for name, value := range map[string]string{"to": "10.96.0.7:80", "probe-timeout": "60s", "wait": "5s", "pod-ips": "10.0.0.1", "pod": "shop/app"} {
		checkRefused(t, []string{"--" + name, value}, "--"+name, "--mode node")
		checkRefused(t, []string{"--cleanup", "--" + name + "=" + value}, "--"+name, "--mode node")
	}
}

// pod is what mode pod is without other flags than --to.
func pod(change func(*ip2service.Config)) ip2service.Config {
	cfg := ip2service.Config{
		Mode: ip2service.ModePod, Intercept: addrPorts("169.254.169.254:80", "[fd00:ec2::254]:80"), AuxListenOn: ":9090",
		DataPath: "nftables", BPFDir: "/sys/fs/bpf/iam4kube",
		ServiceNamespace: "iam4kube", ServiceName: "iam4kube", ServiceTargetPort: "http",
		MaxStaleness: 15 * time.Minute,
		To:           addrPorts("10.96.0.7:80"), ProbeTimeout: time.Minute, Wait: 5 * time.Second,
	}
	change(&cfg)
	return cfg
}

func addrs(all ...string) (parsed []netip.Addr) {
	for _, a := range all {
		parsed = append(parsed, netip.MustParseAddr(a))
	}
	return parsed
}

func addrPorts(all ...string) (parsed []netip.AddrPort) {
	for _, a := range all {
		parsed = append(parsed, netip.MustParseAddrPort(a))
	}
	return parsed
}

func TestFlagsBecomeTheConfig(t *testing.T) {
	to := []string{"--mode", "pod", "--to", "10.96.0.7:80"}
	for _, tc := range []struct {
		arguments []string
		want      ip2service.Config
	}{
		{to, pod(func(*ip2service.Config) {})},
		{[]string{"-mode=pod", "-to=10.96.0.7:80"}, pod(func(*ip2service.Config) {})},
		{append(to, "--to", "[fd00::7]:80"), pod(func(c *ip2service.Config) { c.To = addrPorts("10.96.0.7:80", "[fd00::7]:80") })},
		{append(to, "-probe-timeout", "0", "-wait=0s"), pod(func(c *ip2service.Config) { c.ProbeTimeout, c.Wait = 0, 0 })},
		{append(to, "--pod-ips", "10.0.0.1,fd00::1"), pod(func(c *ip2service.Config) { c.PodIPs = addrs("10.0.0.1", "fd00::1") })},
		{append(to, "--pod=shop/app-0.x"), pod(func(c *ip2service.Config) { c.Pod = "shop/app-0.x" })},
		{append(to, "--pod-ips="), pod(func(*ip2service.Config) {})}, // the pod's status had none yet
		{append(to, "--intercept-ip=192.0.2.1", "-intercept-ip", "192.0.2.2", "--intercept-port=8080"), pod(func(c *ip2service.Config) {
			c.Intercept = addrPorts("192.0.2.1:8080", "192.0.2.2:8080")
		})},
		{append(to, "--allow-dns"), pod(func(c *ip2service.Config) { c.AllowDNS = true })},
		{append(to, "--intercept-port", "8080"), pod(func(c *ip2service.Config) {
			c.Intercept = addrPorts("169.254.169.254:8080", "[fd00:ec2::254]:8080")
		})},
		{append(to, "--intercept-ip", "169.254.169.254"), pod(func(c *ip2service.Config) { c.Intercept = addrPorts("169.254.169.254:80") })},
		{[]string{"--mode", "pod", "--cleanup"}, pod(func(c *ip2service.Config) { c.To, c.Cleanup = nil, true })},
		{append(to, "--cleanup"), pod(func(c *ip2service.Config) { c.Cleanup = true })},
		{[]string{"--intercept-host", "--intercept-local", "--intercept-ip", "169.254.170.2"}, pod(func(c *ip2service.Config) {
			c.Mode, c.To, c.Intercept = ip2service.ModeNode, nil, addrPorts("169.254.170.2:80")
			c.InterceptHost, c.InterceptLocal = true, true
		})},
		{[]string{"--keep-metadata-service", "--intercept-ip", "169.254.170.2,fd00:ec2::23"}, pod(func(c *ip2service.Config) {
			c.Mode, c.To, c.Intercept, c.KeepMetadata = ip2service.ModeNode, nil, addrPorts("169.254.170.2:80", "[fd00:ec2::23]:80"), true
		})},
		{[]string{"--data-path", "auto", "--bpf-dir", "/run/bpf"}, pod(func(c *ip2service.Config) {
			c.Mode, c.To, c.DataPath, c.BPFDir = ip2service.ModeNode, nil, "auto", "/run/bpf"
		})},
		{[]string{"--startup-taint", "iam4kube.io/not-ready", "--node-name", "node-1", "--service-target-port", "8080"}, pod(func(c *ip2service.Config) {
			c.Mode, c.To = ip2service.ModeNode, nil
			c.StartupTaint, c.NodeName, c.ServiceTargetPort = "iam4kube.io/not-ready", "node-1", "8080"
		})},
	} {
		t.Run(fmt.Sprintf("%q", tc.arguments), func(t *testing.T) {
			t.Setenv("NODE_NAME", "")
			cfg, log, err := command.Parse(tc.arguments, io.Discard)
			if err != nil || log.Level != "info" || log.Encoding != "json" {
				t.Fatalf("%s, %s, %v", log.Level, log.Encoding, err)
			}
			if !reflect.DeepEqual(cfg, tc.want) {
				t.Errorf("got %+v, want %+v", cfg, tc.want)
			}
		})
	}
}

// The downward API gives the name, so that manifests need no flag for it.
func TestNodeNameComesFromTheEnvironment(t *testing.T) {
	t.Setenv("NODE_NAME", "node-1")
	cfg, _, err := command.Parse([]string{"--startup-taint", "iam4kube.io/not-ready"}, io.Discard)
	if err != nil || cfg.NodeName != "node-1" {
		t.Errorf("got %q, %v", cfg.NodeName, err)
	}
}

func TestHelp(t *testing.T) {
	t.Setenv("NODE_NAME", "")
	for _, argument := range []string{"--help", "-help", "-h"} {
		var stdout, stderr bytes.Buffer
		if code := command.Start(t.Context(), []string{argument}, &stdout, &stderr); code != 0 || stderr.Len() > 0 {
			t.Errorf("%s: exit %d, stderr %q", argument, code, stderr.String())
		}
		// The names and defaults that manifests and users rely on.
		lines := []string{
			`--log-level "info"`, `--log-encoding "json"`, `--aux-listen-on ":9090"`, `--debug "false"`, `--kubeconfig ""`,
			`--mode "node"`, `--cleanup "false"`, `--data-path "nftables"`, `--bpf-dir "/sys/fs/bpf/iam4kube"`, `--intercept-ip "169.254.169.254"`, `--intercept-port "80"`, `--allow-dns "false"`, `--intercept-host "false"`, `--intercept-local "false"`, `--keep-metadata-service "false"`,
			`--service-namespace "iam4kube"`, `--service-name "iam4kube"`, `--service-target-port "http"`, `--startup-taint ""`, `--node-name ""`, `--max-staleness "15m"`,
			`--to ""`, `--probe-timeout "60s"`, `--wait "5s"`, `--pod-ips ""`, `--pod ""`, `--version "false"`,
		}
		for _, line := range lines {
			if strings.Count(stdout.String(), "  "+line+"\n") != 1 {
				t.Errorf("%s: want the line %s in %s", argument, line, stdout.String())
			}
		}
		if flags := strings.Count(stdout.String(), "\n  --"); flags != len(lines) {
			t.Errorf("%s: %d flags, want %d", argument, flags, len(lines))
		}
	}
}
