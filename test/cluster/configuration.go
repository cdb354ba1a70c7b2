package cluster

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"sigs.k8s.io/yaml"
)

type object = map[string]any

// writeConfiguration writes the files of the node's programs.
func (n *node) writeConfiguration() error {
	for file, content := range map[string]any{
		"kubelet.yaml":           n.kubelet(),
		"kube-proxy.yaml":        n.kubeProxy(),
		"cni/10-pods.conflist":   n.network(),
		"containerd/config.toml": n.containerd(),
	} {
		text, ok := content.(string)
		if !ok {
			marshal := yaml.Marshal
			if filepath.Ext(file) == ".conflist" {
				marshal = json.Marshal
			}
			encoded, err := marshal(content)
			if err != nil {
				return err
			}
			text = string(encoded)
		}
		if err := os.WriteFile(n.path(file), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (n *node) kubelet() any {
	never := "0%"
	return object{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		// Containers without systemd, below a cgroup of the node's own.
		"cgroupDriver": "cgroupfs", "cgroupRoot": "/" + n.cgroup(n.name), "failCgroupV1": false,
		"containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
		"volumePluginDir":          "/var/lib/kubelet/volumeplugins",
		"authentication": object{
			"anonymous": object{"enabled": false}, "webhook": object{"enabled": false},
			"x509": object{"clientCAFile": filepath.Join(n.Dir, "pki", "ca.crt")},
		},
		"authorization": object{"mode": "AlwaysAllow"},
		"tlsCertFile":   filepath.Join(n.Dir, "pki", n.name+".crt"), "tlsPrivateKeyFile": filepath.Join(n.Dir, "pki", n.name+".key"),
		"resolvConf": "", "clusterDNS": []string{dnsService}, "clusterDomain": "cluster.local",
		// The machine's disk and memory are shared with everything else on it.
		"failSwapOn":                  false,
		"evictionHard":                object{"memory.available": never, "nodefs.available": never, "imagefs.available": never, "nodefs.inodesFree": never},
		"imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
		"registerWithTaints": n.Nodes[n.index].Taints,
	}
}

func (n *node) kubeProxy() any {
	return object{
		"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
		"mode": n.ProxyMode, "clusterCIDR": PodNetwork, "hostnameOverride": n.name,
		"clientConnection": object{"kubeconfig": n.userFile("kube-proxy")},
		// Settings of the machine's kernel are not ours.
		"conntrack":          object{"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
		"healthzBindAddress": "127.0.0.1:10256", "metricsBindAddress": "127.0.0.1:10249",
	}
}

// network is what pods get: an address of the node's range, and no masquerading.
func (n *node) network() any {
	plugin := object{
		"type": n.CNI, "ipMasq": false,
		"ipam": object{
			"type": "host-local", "dataDir": "/run/cni-addresses",
			"ranges": [][]object{{{"subnet": podRange(n.index)}}}, "routes": []object{{"dst": "0.0.0.0/0"}},
		},
	}
	if n.CNI == "bridge" {
		plugin["bridge"], plugin["isGateway"], plugin["hairpinMode"] = "cni0", true, true
	}
	return object{"cniVersion": "0.4.0", "name": "pods", "plugins": []object{plugin}}
}

func (n *node) containerd() string {
	const cri = `plugins."io.containerd.grpc.v1.cri"`
	return fmt.Sprintf(`version = 2
root = %q
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "/run/containerd/containerd.sock"
[%[2]s]
  sandbox_image = %[3]q
  disable_apparmor = true
  # Root may lack CAP_SYS_RESOURCE, as in a container.
  restrict_oom_score_adj = true
[%[2]s.cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = %[4]q
[%[2]s.registry]
  config_path = %[5]q
[%[2]s.containerd]
  snapshotter = "overlayfs"
  default_runtime_name = "runc"
[%[2]s.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[%[2]s.containerd.runtimes.runc.options]
  SystemdCgroup = false
`, n.path("var/lib/containerd"), cri, PauseImage, n.path("cni"), Cluster{n.Dir}.RegistryHosts())
}
