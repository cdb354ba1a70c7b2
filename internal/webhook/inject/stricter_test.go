package inject

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

const pinnedBy = "@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// admission changes an injected container; it stays as it is then, or it is set back.
var admission = []struct {
	name   string
	stays  bool
	change func(*corev1.Container, *corev1.SecurityContext)
}{
	{"pulled always", true, func(c *corev1.Container, _ *corev1.SecurityContext) { c.ImagePullPolicy = corev1.PullAlways }},
	{"never pulled", false, func(c *corev1.Container, _ *corev1.SecurityContext) { c.ImagePullPolicy = corev1.PullNever }},
	{"by digest", true, func(c *corev1.Container, _ *corev1.SecurityContext) { c.Image += pinnedBy }},
	{"by digest without the tag", true, func(c *corev1.Container, _ *corev1.SecurityContext) {
		c.Image = strings.TrimSuffix(c.Image, ":v1") + pinnedBy
	}},
	{"by no digest", false, func(c *corev1.Container, _ *corev1.SecurityContext) { c.Image += "@sha256:0123" }},
	{"of another tag by digest", false, func(c *corev1.Container, _ *corev1.SecurityContext) { c.Image += "2" + pinnedBy }},
	{"of another registry by digest", false, func(c *corev1.Container, _ *corev1.SecurityContext) { c.Image = "evil." + c.Image + pinnedBy }},
	{"of a longer name by digest", false, func(c *corev1.Container, _ *corev1.SecurityContext) {
		c.Image = strings.TrimSuffix(c.Image, ":v1") + "/evil" + pinnedBy
	}},
	{"of another registry", false, func(c *corev1.Container, _ *corev1.SecurityContext) {
		c.Image = "mirror.example/iam4kube/ip2service:v1"
	}},
	{"more is dropped", true, func(_ *corev1.Container, s *corev1.SecurityContext) {
		s.Capabilities.Drop = []corev1.Capability{"NET_RAW", "ALL"}
	}},
	{"NET_ADMIN is dropped", false, func(_ *corev1.Container, s *corev1.SecurityContext) {
		s.Capabilities.Drop = append(s.Capabilities.Drop, "cap_net_admin")
	}},
	{"NET_ADMIN is not added", false, func(_ *corev1.Container, s *corev1.SecurityContext) { s.Capabilities.Add = nil }},
	{"more is added", false, func(_ *corev1.Container, s *corev1.SecurityContext) {
		s.Capabilities.Add = append(s.Capabilities.Add, "SYS_ADMIN")
	}},
	{"an SELinux label", true, func(_ *corev1.Container, s *corev1.SecurityContext) {
		s.SELinuxOptions = &corev1.SELinuxOptions{Level: "s0:c1,c2"}
	}},
	{"masked /proc", true, func(_ *corev1.Container, s *corev1.SecurityContext) { s.ProcMount = new(corev1.DefaultProcMount) }},
	{"unmasked /proc", false, func(_ *corev1.Container, s *corev1.SecurityContext) { s.ProcMount = new(corev1.UnmaskedProcMount) }},
	{"AppArmor of the runtime", true, func(_ *corev1.Container, s *corev1.SecurityContext) {
		s.AppArmorProfile = &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeRuntimeDefault}
	}},
	{"AppArmor of the node", true, func(_ *corev1.Container, s *corev1.SecurityContext) {
		s.AppArmorProfile = &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeLocalhost, LocalhostProfile: new("a")}
	}},
	{"no AppArmor", false, func(_ *corev1.Container, s *corev1.SecurityContext) {
		s.AppArmorProfile = &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeUnconfined}
	}},
	{"seccomp of the node", true, func(_ *corev1.Container, s *corev1.SecurityContext) {
		s.SeccompProfile = &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeLocalhost, LocalhostProfile: new("a")}
	}},
	{"no seccomp", false, func(_ *corev1.Container, s *corev1.SecurityContext) {
		s.SeccompProfile = &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeUnconfined}
	}},
	{"Windows options", false, func(_ *corev1.Container, s *corev1.SecurityContext) {
		s.WindowsOptions = &corev1.WindowsSecurityContextOptions{}
	}},
	{"privileged", false, func(_ *corev1.Container, s *corev1.SecurityContext) { s.Privileged = new(true) }},
	{"more privileges", false, func(_ *corev1.Container, s *corev1.SecurityContext) { s.AllowPrivilegeEscalation = new(true) }},
	{"another user", false, func(_ *corev1.Container, s *corev1.SecurityContext) { s.RunAsUser = new(int64(0)) }},
	{"another group", false, func(_ *corev1.Container, s *corev1.SecurityContext) { s.RunAsGroup = new(int64(0)) }},
	{"root", false, func(_ *corev1.Container, s *corev1.SecurityContext) { s.RunAsNonRoot = new(false) }},
	{"a root file system", false, func(_ *corev1.Container, s *corev1.SecurityContext) { s.ReadOnlyRootFilesystem = nil }},
	{"nothing of security", false, func(c *corev1.Container, _ *corev1.SecurityContext) { c.SecurityContext = nil }},
	{"a limit of storage", true, func(c *corev1.Container, _ *corev1.SecurityContext) {
		c.Resources.Limits = c.Resources.Limits.DeepCopy()
		c.Resources.Limits[corev1.ResourceEphemeralStorage] = resource.MustParse("1Gi")
	}},
	{"more memory", false, func(c *corev1.Container, _ *corev1.SecurityContext) {
		c.Resources.Limits = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("1Gi")}
	}},
	{"a command", false, func(c *corev1.Container, _ *corev1.SecurityContext) { c.Command = []string{"/true"} }},
	{"an argument", false, func(c *corev1.Container, _ *corev1.SecurityContext) { c.Args = append(c.Args, "--cleanup") }},
	{"a variable", false, func(c *corev1.Container, _ *corev1.SecurityContext) {
		c.Env = append(c.Env, corev1.EnvVar{Name: "GODEBUG", Value: "a=b"})
	}},
	{"a volume", false, func(c *corev1.Container, _ *corev1.SecurityContext) {
		c.VolumeMounts = []corev1.VolumeMount{{Name: "mine", MountPath: "/mine"}}
	}},
}

// What admission has made stricter stays, whatever else is wrong with the container. All
// other changes are undone.
func TestWhatAdmissionMadeStricterStays(t *testing.T) {
	to := service(t, "clusterIPs: [10.96.0.77]\nports: [{port: 80}]")
	ours := config.container(to, &pod{})
	decide := func(t *testing.T, first ...corev1.Container) (Decision, corev1.Container) {
		t.Helper()
		object := corev1.Pod{Spec: corev1.PodSpec{InitContainers: first, Containers: []corev1.Container{{Name: "app"}}}}
		raw, err := json.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		d := config.Decide("shop", raw, to)
		var patched corev1.Pod
		if err := json.Unmarshal(apply(t, raw, d.Patch), &patched); err != nil {
			t.Fatal(err)
		}
		return d, patched.Spec.InitContainers[0]
	}
	for _, tc := range admission {
		t.Run(tc.name, func(t *testing.T) {
			changed := *ours.DeepCopy()
			tc.change(&changed, changed.SecurityContext)
			d, is := decide(t, changed)
			if tc.stays {
				if d.Outcome != Unchanged {
					t.Errorf("%s, set back to %+v", d.Outcome, is)
				}
				if d, is = decide(t, corev1.Container{Name: "mesh"}, changed); d.Reason != Restored {
					t.Errorf("behind another: %s %s", d.Outcome, d.Reason)
				}
				changed.Resources = ours.Resources // a LimitRange's is added again
				if !same(t, is, changed) {
					t.Errorf("behind another, it became %+v", is)
				}
				return
			}
			if d.Reason != Restored || !same(t, is, ours) {
				t.Errorf("%s %s, it is %+v", d.Outcome, d.Reason, is)
			}
			if changed.ImagePullPolicy != ours.ImagePullPolicy {
				return
			}
			changed.ImagePullPolicy = corev1.PullAlways
			want := *ours.DeepCopy()
			want.ImagePullPolicy = corev1.PullAlways
			if d, is = decide(t, changed); d.Reason != Restored || !same(t, is, want) {
				t.Errorf("beside something stricter: %s %s, it is %+v", d.Outcome, d.Reason, is)
			}
		})
	}
}

// same compares by JSON, in which a quantity has one form.
func same(t *testing.T, a, b corev1.Container) bool {
	t.Helper()
	var texts [2]any
	for i, c := range []corev1.Container{a, b} {
		text, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &texts[i]); err != nil {
			t.Fatal(err)
		}
	}
	return reflect.DeepEqual(texts[0], texts[1])
}

// An image that is named by a digest is that one.
func TestDigestOfOursIsNotAnothers(t *testing.T) {
	other := strings.Replace(pinnedBy, "0", "1", 1)
	for _, tc := range []struct {
		ours, image string
		want        bool
	}{
		{"r.example:5000/i" + pinnedBy, "r.example:5000/i" + other, false},
		{"r.example:5000/i:v1" + pinnedBy, "r.example:5000/i:v1" + other, false},
		{"r.example:5000/i", "r.example:5000/i" + pinnedBy, true},
		{"r.example:5000/i", "r.example" + pinnedBy, false},
		{"i:v1", "i" + pinnedBy, true},
	} {
		if pinned(tc.ours, tc.image) != tc.want {
			t.Errorf("%s for %s: %v", tc.image, tc.ours, !tc.want)
		}
	}
}
