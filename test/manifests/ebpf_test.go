package manifests

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestEBPFComponent: ip2service, and what cleans up after it, have what the programs need,
// and of root's rights no others.
func TestEBPFComponent(t *testing.T) {
	for overlay, name := range map[string]string{"both": "iam4kube-ip2service", "node-wide": "iam4kube-ip2service", "uninstall": "iam4kube-cleanup"} {
		objects := mustBuild(t, withComponents(t, overlay, "ebpf"))
		if err := apply(t.Context(), objects, metav1.DryRunAll); err != nil {
			t.Fatalf("%s: %v", overlay, err)
		}
		seen := false
		for _, w := range workloads(t, objects) {
			spec := w.template.Spec
			user := spec.SecurityContext.RunAsUser
			if w.name != name {
				if user == nil || *user == 0 {
					t.Errorf("%s: %s runs as root", overlay, w.name)
				}
				continue
			}
			seen = true
			if user == nil || *user != 0 {
				t.Errorf("%s: %s runs as %v", overlay, name, user)
			}
			for _, c := range append(spec.InitContainers, spec.Containers...) {
				checkEBPF(t, overlay, spec, c)
			}
		}
		if !seen {
			t.Errorf("%s: there is no %s", overlay, name)
		}
	}
}

func checkEBPF(t *testing.T, overlay string, spec corev1.PodSpec, c corev1.Container) {
	t.Helper()
	s := c.SecurityContext
	want := []corev1.Capability{"NET_ADMIN", "BPF"}
	if overlay == "uninstall" {
		want = want[:1] // to remove a pin takes root's user alone
	}
	if !slices.Equal(s.Capabilities.Add, want) || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) || *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem {
		t.Errorf("%s: %s has %+v", overlay, c.Name, s)
	}
	if !slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == value(t, withImage(c, "ip2service"), "bpf-dir") }) {
		t.Errorf("%s: %s has no --bpf-dir among %v", overlay, c.Name, c.VolumeMounts)
	}
	for _, m := range c.VolumeMounts {
		i := slices.IndexFunc(spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
		if path := spec.Volumes[i].HostPath.Path; path != "/sys/fs/bpf/iam4kube" && (path != "/sys/fs/cgroup" || !m.ReadOnly) {
			t.Errorf("%s: %s may write to %s", overlay, c.Name, path)
		}
	}
	if overlay != "uninstall" {
		if path := value(t, withImage(c, "ip2service"), "data-path"); path != "ebpf" {
			t.Errorf("%s: --data-path %s", overlay, path)
		}
	}
}
