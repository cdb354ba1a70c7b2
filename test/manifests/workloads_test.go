package manifests

import (
	"fmt"
	"os/exec"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"

	"github.com/iam4kube/iam4kube/test/environment"
)

// program builds the program that a container of this name runs.
func program(t testing.TB, image string) string {
	t.Helper()
	name, ours := strings.CutPrefix(image, images)
	if !ours {
		t.Fatalf("%s is no image of ours", image)
	}
	name, _, _ = strings.Cut(name, ":")
	var flags []string
	if name == "ip2service-init" {
		name, flags = "ip2service", []string{"-tags=podonly"}
	}
	path, err := environment.Build("cmd/"+name, flags...)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// value is what a container's flag has, its default included.
func value(t testing.TB, c corev1.Container, flag string) string {
	t.Helper()
	for _, arg := range c.Args {
		if v, ok := strings.CutPrefix(arg, "--"+flag+"="); ok {
			return v
		}
	}
	help, err := exec.CommandContext(t.Context(), program(t, c.Image), "--help").Output()
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`--` + flag + ` "(.*)"`).FindSubmatch(help)
	if found == nil {
		t.Fatalf("%s has no --%s", c.Image, flag)
	}
	return string(found[1])
}

func duration(t testing.TB, c corev1.Container, flag string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(value(t, c, flag))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestProgramsTakeTheirArguments(t *testing.T) {
	for _, overlay := range overlays {
		for _, w := range workloads(t, mustBuild(t, manifest(overlay))) {
			for _, c := range append(w.template.Spec.InitContainers, w.template.Spec.Containers...) {
				t.Run(overlay+"/"+w.name+"/"+c.Name, func(t *testing.T) {
					// The programs name the first flag that is wrong, so all others are right. This
					// way nothing starts.
					command := exec.CommandContext(t.Context(), program(t, c.Image), append(slices.Clone(c.Args), "--no-such-flag")...)
					for _, e := range c.Env {
						command.Env = append(command.Env, e.Name+"=x")
					}
					output, err := command.CombinedOutput()
					if command.ProcessState.ExitCode() != 2 || !strings.Contains(string(output), "no-such-flag") {
						t.Errorf("%q: %v: %s", c.Args, err, output)
					}
				})
			}
		}
	}
}

func TestContainersHaveResourcesPortsAndProbes(t *testing.T) {
	for _, overlay := range overlays {
		for _, w := range workloads(t, mustBuild(t, manifest(overlay))) {
			t.Run(overlay+"/"+w.name, func(t *testing.T) {
				for _, c := range append(w.template.Spec.InitContainers, w.template.Spec.Containers...) {
					r := c.Resources
					if r.Requests.Cpu().IsZero() || r.Requests.Memory().IsZero() || r.Limits.Memory().IsZero() || !r.Limits.Cpu().IsZero() {
						t.Errorf("%s: %+v", c.Name, r)
					}
				}
				if overlay == "uninstall" {
					return
				}
				c := w.template.Spec.Containers[0]
				if have, want := port(c, "metrics"), value(t, c, "aux-listen-on"); have != want || want != ":9090" {
					t.Errorf("metrics is %s, --aux-listen-on %s", have, want)
				}
				for path, probe := range map[string]*corev1.Probe{"/readyz": c.ReadinessProbe, "/healthz": c.LivenessProbe} {
					if probe == nil || probe.HTTPGet == nil || probe.HTTPGet.Path != path || probe.HTTPGet.Port.StrVal != "metrics" {
						t.Errorf("%s: %+v", path, probe)
					}
				}
			})
		}
	}
}

func port(c corev1.Container, name string) string {
	for _, p := range c.Ports {
		if p.Name == name {
			return fmt.Sprint(":", p.ContainerPort)
		}
	}
	return ""
}

func TestTheServiceIsThatOfTheServer(t *testing.T) {
	service := find[corev1.Service](t, mustBuild(t, manifest("namespace")), "Service", own)
	if p := service.Spec.Ports[0]; len(service.Spec.Ports) != 1 || p.Name != "http" || p.Port != 80 || p.TargetPort.StrVal != "http" {
		t.Errorf("%+v", service.Spec.Ports)
	}
	objects := mustBuild(t, manifest("both"))
	for _, w := range workloads(t, objects) {
		leads := true
		for label, v := range service.Spec.Selector {
			leads = leads && w.template.Labels[label] == v
		}
		if leads != (w.name == "iam4kube-server") {
			t.Errorf("the Service leads to %s: %v", w.name, leads)
		}
	}
	server := find[appsv1.Deployment](t, objects, "Deployment", "iam4kube-server").Spec.Template.Spec.Containers[0]
	if have, want := port(server, "http"), value(t, server, "listen-on"); have != want || want != ":8080" {
		t.Errorf("http is %s, --listen-on %s", have, want)
	}
	for _, flag := range []string{"service-namespace", "service-name"} {
		for _, c := range []corev1.Container{
			find[appsv1.DaemonSet](t, objects, "DaemonSet", "iam4kube-ip2service").Spec.Template.Spec.Containers[0],
			find[appsv1.Deployment](t, objects, "Deployment", "iam4kube-webhook").Spec.Template.Spec.Containers[0],
		} {
			if v := value(t, c, flag); v != service.Name || v != service.Namespace {
				t.Errorf("%s: --%s %s", c.Name, flag, v)
			}
		}
	}
}

// TestMetricsAreForNamespacesWithTheLabel: and nothing else is reachable but what the program is
// for. Of pods on the host's network no policy says anything.
func TestMetricsAreForNamespacesWithTheLabel(t *testing.T) {
	allowed := map[string]string{"iam4kube-server": "http", "iam4kube-webhook": "https"}
	for _, overlay := range []string{"both", "node-wide", "injection", "startup-taint", "no-dedicated-nodes", "tokens-alone"} {
		objects := mustBuild(t, manifest(overlay))
		for _, w := range workloads(t, objects) {
			if w.template.Spec.HostNetwork {
				continue
			}
			policy := find[networkingv1.NetworkPolicy](t, objects, "NetworkPolicy", w.name).Spec
			if !reflect.DeepEqual(policy.PodSelector.MatchLabels, w.template.Labels) || !slices.Equal(policy.PolicyTypes, []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}) {
				t.Errorf("%s of %s: %+v", w.name, overlay, policy)
			}
			from := map[string][]networkingv1.NetworkPolicyPeer{}
			for _, rule := range policy.Ingress {
				for _, p := range rule.Ports {
					from[p.Port.StrVal] = rule.From
				}
			}
			if w.name == "iam4kube-server" { // its replicas ask each other
				peers := from["metrics"]
				if len(peers) != 2 || peers[1].NamespaceSelector != nil || !reflect.DeepEqual(peers[1].PodSelector.MatchLabels, w.template.Labels) {
					t.Errorf("%s of %s: %+v", w.name, overlay, peers)
				}
				from["metrics"] = peers[:1]
			}
			if len(from) != 2 || from[allowed[w.name]] != nil || len(from["metrics"]) != 1 ||
				!reflect.DeepEqual(from["metrics"][0].NamespaceSelector.MatchLabels, map[string]string{"iam4kube.io/metrics": "enabled"}) {
				t.Errorf("%s of %s: %+v", w.name, overlay, policy.Ingress)
			}
			for name := range from {
				if port(w.template.Spec.Containers[0], name) == "" {
					t.Errorf("%s of %s has no port %s", w.name, overlay, name)
				}
			}
		}
	}
}

func TestTheServersTimesFitItsFlags(t *testing.T) {
	objects := mustBuild(t, manifest("both"))
	spec := find[appsv1.Deployment](t, objects, "Deployment", "iam4kube-server").Spec
	c := spec.Template.Spec.Containers[0]
	if deadline, ready := time.Duration(*spec.ProgressDeadlineSeconds)*time.Second, duration(t, c, "ready-within"); deadline < ready+time.Minute {
		t.Errorf("the progress deadline is %v, --ready-within %v", deadline, ready)
	}
	grace := time.Duration(*spec.Template.Spec.TerminationGracePeriodSeconds) * time.Second
	if longest := duration(t, c, "drain") + duration(t, c, "max-wait"); grace < longest+5*time.Second {
		t.Errorf("the grace period is %v, --drain and --max-wait %v", grace, longest)
	}
	budget := find[policyv1.PodDisruptionBudget](t, objects, "PodDisruptionBudget", "iam4kube-server").Spec
	if *spec.Replicas != 2 || budget.MaxUnavailable.IntVal != 1 || budget.Selector.MatchLabels["app.kubernetes.io/name"] != spec.Template.Labels["app.kubernetes.io/name"] {
		t.Errorf("%d replicas, budget %+v", *spec.Replicas, budget)
	}
}

func TestPodSecurityRestrictedAcceptsServerAndWebhook(t *testing.T) {
	namespace := newNamespace(t, map[string]string{"pod-security.kubernetes.io/enforce": "restricted"})
	for _, overlay := range []string{"both", "no-dedicated-nodes"} {
		for _, w := range workloads(t, mustBuild(t, manifest(overlay))) {
			spec := *w.template.Spec.DeepCopy()
			// The policy for the server's nodes is another test's.
			spec.NodeSelector, spec.Tolerations = nil, nil
			spec.PriorityClassName = "" // as is the quota for it
			err := create(t, namespace, spec, nil)
			if node := w.name == "iam4kube-ip2service"; node != (err != nil && strings.Contains(err.Error(), "PodSecurity")) || !node && err != nil {
				t.Errorf("%s of %s: %v", w.name, overlay, err)
			}
		}
	}
}
