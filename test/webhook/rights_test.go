package webhook

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/iam4kube/iam4kube/internal/webhook/inject"
)

// TestServiceAccountMayDoNoMore: all tests of this package run with these rights, and
// there are no others besides what any ServiceAccount has.
func TestServiceAccountMayDoNoMore(t *testing.T) {
	other := newNamespace(t, "", nil)
	for namespace, want := range map[string][]string{
		other:        nil,
		ownNamespace: {"get services iam4kube", "list services iam4kube", "watch services iam4kube"},
	} {
		have, anybody := rights(t, ownNamespace, account, namespace), rights(t, other, "default", namespace)
		maps.DeleteFunc(have, func(right string, _ bool) bool { return anybody[right] })
		if all := slices.Sorted(maps.Keys(have)); !slices.Equal(all, slices.Sorted(slices.Values(want))) {
			t.Errorf("in namespace %s: %q", namespace, all)
		}
	}
}

// rights are what a ServiceAccount may do in a namespace: VERB [GROUP/]RESOURCE [NAME].
func rights(t *testing.T, accountNamespace, account, namespace string) map[string]bool {
	t.Helper()
	cfg, err := cp.ServiceAccountConfig(t.Context(), accountNamespace, account)
	if err != nil {
		t.Fatal(err)
	}
	review, err := kubernetes.NewForConfigOrDie(cfg).AuthorizationV1().SelfSubjectRulesReviews().Create(t.Context(), &authorizationv1.SelfSubjectRulesReview{
		Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: namespace},
	}, metav1.CreateOptions{})
	if err != nil || review.Status.Incomplete {
		t.Fatalf("%v: %+v", err, review)
	}
	all := map[string]bool{}
	for _, rule := range review.Status.ResourceRules {
		for _, group := range rule.APIGroups {
			for _, name := range append(rule.ResourceNames, "")[:max(1, len(rule.ResourceNames))] {
				for _, resource := range rule.Resources {
					for _, verb := range rule.Verbs {
						all[strings.TrimSpace(verb+" "+strings.TrimPrefix(group+"/"+resource, "/")+" "+name)] = true
					}
				}
			}
		}
	}
	return all
}

// TestManifests: the API server takes them, and their parts fit each other.
func TestManifests(t *testing.T) {
	if err := cp.ApplyFiles(t.Context(), manifest("webhook-deployment.yaml")); err != nil {
		t.Fatal(err)
	}
	installConfiguration(t, configuration(t, manifestClientConfig(t)))
	deployment, err := cp.Client.AppsV1().Deployments(ownNamespace).Get(t.Context(), account, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	client := manifestClientConfig(t).Service
	service, err := cp.Client.CoreV1().Services(client.Namespace).Get(t.Context(), client.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if service.Spec.Ports[0].Port != *client.Port || *client.Path != "/inject" {
		t.Errorf("the configuration asks at %+v, the Service has %+v", client, service.Spec.Ports)
	}
	template := deployment.Spec.Template
	container := template.Spec.Containers[0]
	for label, value := range service.Spec.Selector {
		if template.Labels[label] != value {
			t.Errorf("the Service's selector %s=%s is not in %v", label, value, template.Labels)
		}
	}
	if !slices.ContainsFunc(container.Ports, func(p corev1.ContainerPort) bool { return p.Name == service.Spec.Ports[0].TargetPort.StrVal }) {
		t.Errorf("port %s is not in %+v", service.Spec.Ports[0].TargetPort.StrVal, container.Ports)
	}
	if template.Spec.ServiceAccountName != account || *deployment.Spec.Replicas != 2 {
		t.Errorf("%+v", deployment.Spec)
	}
	t.Run("one image of ip2service", func(t *testing.T) {
		if err := cp.ApplyFiles(t.Context(), manifest("webhook-policy.yaml")); err != nil {
			t.Fatal(err)
		}
		removePolicy(t)
		policy, err := cp.Client.AdmissionregistrationV1().ValidatingAdmissionPolicies().Get(t.Context(), "iam4kube-net-admin", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		_, image, _ := strings.Cut(strings.Join(container.Args, " "), "--init-image=")
		if have := policy.Spec.Variables[0].Expression; have != "['"+image+"']" {
			t.Errorf("the policy has %s, the Deployment %s", have, image)
		}
	})
	t.Run("Pod Security restricted accepts its pods", func(t *testing.T) {
		namespace := newNamespace(t, "", map[string]string{"pod-security.kubernetes.io/enforce": "restricted"})
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "webhook"}, Spec: *template.Spec.DeepCopy()}
		pod.Spec.ServiceAccountName, pod.Spec.DeprecatedServiceAccount = "default", ""
		if _, err := create(t, namespace, pod, metav1.DryRunAll); err != nil {
			t.Error(err)
		}
	})
}

func TestNetAdminIsForTheInjectedContainerAlone(t *testing.T) {
	startReady(t)
	if err := cp.ApplyFiles(t.Context(), manifest("webhook-policy.yaml")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removePolicy(t) })
	setImages(t, initImage)
	namespace, other := newNamespace(t, inject.Enabled, nil), newNamespace(t, "", nil)
	adds := func(capabilities ...corev1.Capability) *corev1.SecurityContext {
		return &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: capabilities}}
	}
	args := []string{"--mode", "pod", "--to", "10.96.0.77:80", "--pod-ips", "$(POD_IPS)", "--pod", "$(POD_NAMESPACE)/$(POD_NAME)", "--probe-timeout", "60s", "--wait", "5s"}
	forged := func(change func(*corev1.Container, *corev1.PodSpec)) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			// A pod that opts out is not injected, and what it brings is not replaced.
			p.Labels = map[string]string{inject.Label: inject.Disabled}
			p.Spec.InitContainers = []corev1.Container{{Name: inject.ContainerName, Image: initImage, Args: slices.Clone(args), SecurityContext: adds("NET_ADMIN")}}
			change(&p.Spec.InitContainers[0], &p.Spec)
		}
	}
	cases := []struct {
		name    string
		change  func(*corev1.Pod)
		refused string // the container's name
	}{
		{"injected", func(*corev1.Pod) {}, ""},
		{"without more rights", func(p *corev1.Pod) { p.Spec.Containers[0].SecurityContext = adds("NET_BIND_SERVICE") }, ""},
		{"container", func(p *corev1.Pod) { p.Spec.Containers[0].SecurityContext = adds("NET_ADMIN") }, "app"},
		{"in small letters", func(p *corev1.Pod) { p.Spec.Containers[0].SecurityContext = adds("net_admin") }, "app"},
		{"with prefix", func(p *corev1.Pod) { p.Spec.Containers[0].SecurityContext = adds("CAP_NET_ADMIN") }, "app"},
		{"all", func(p *corev1.Pod) { p.Spec.Containers[0].SecurityContext = adds("ALL") }, "app"},
		{"privileged", func(p *corev1.Pod) {
			p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: new(true)}
		}, "app"},
		{"init container", func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{Name: "mine", Image: initImage, SecurityContext: adds("NET_ADMIN")}}
		}, "mine"},
		{"like ours", forged(func(*corev1.Container, *corev1.PodSpec) {}), ""},
		{"like ours with DNS", forged(func(c *corev1.Container, _ *corev1.PodSpec) { c.Args = append(c.Args, "--allow-dns") }), ""},
		{"like ours with addresses", forged(func(c *corev1.Container, _ *corev1.PodSpec) {
			c.Args = append(c.Args, "--allow-dns", "--intercept-ip", "169.254.170.2", "--intercept-ip", "fd00:ec2::23")
		}), ""},
		{"like ours with something behind the addresses", forged(func(c *corev1.Container, _ *corev1.PodSpec) {
			c.Args = append(c.Args, "--intercept-ip", "169.254.170.2", "--cleanup")
		}), inject.ContainerName},
		{"like ours of another image", forged(func(c *corev1.Container, _ *corev1.PodSpec) { c.Image = "registry.example/evil:1" }), inject.ContainerName},
		{"like ours by digest", forged(func(c *corev1.Container, _ *corev1.PodSpec) { c.Image += pinnedBy }), ""},
		{"like ours by digest alone", forged(func(c *corev1.Container, _ *corev1.PodSpec) {
			c.Image = strings.TrimSuffix(c.Image, ":v1") + pinnedBy
		}), ""},
		{"like ours by no digest", forged(func(c *corev1.Container, _ *corev1.PodSpec) { c.Image += "@sha256:0123" }), inject.ContainerName},
		{"like ours by digest of another tag", forged(func(c *corev1.Container, _ *corev1.PodSpec) { c.Image += "2" + pinnedBy }), inject.ContainerName},
		{"like ours by digest elsewhere", forged(func(c *corev1.Container, _ *corev1.PodSpec) {
			c.Image = strings.TrimSuffix(c.Image, ":v1") + "/evil" + pinnedBy
		}), inject.ContainerName},
		{"like ours with a command", forged(func(c *corev1.Container, _ *corev1.PodSpec) { c.Command = []string{"/x"} }), inject.ContainerName},
		{"like ours for nodes", forged(func(c *corev1.Container, _ *corev1.PodSpec) { c.Args[1] = "node" }), inject.ContainerName},
		{"like ours to another address", forged(func(c *corev1.Container, _ *corev1.PodSpec) { c.Args[3] = "10.96.0.78:80" }), inject.ContainerName},
		{"like ours to another port", forged(func(c *corev1.Container, _ *corev1.PodSpec) { c.Args[3] = "10.96.0.77:8080" }), inject.ContainerName},
		{"like ours to another address, too", forged(func(c *corev1.Container, _ *corev1.PodSpec) {
			c.Args = slices.Insert(c.Args, 2, "--to", "[fd00:96::78]:80")
		}), inject.ContainerName},
		{"like ours with another flag", forged(func(c *corev1.Container, _ *corev1.PodSpec) { c.Args = append(c.Args, "--cleanup") }), inject.ContainerName},
		{"like ours without flags", forged(func(c *corev1.Container, _ *corev1.PodSpec) { c.Args = nil }), inject.ContainerName},
		{"like ours with more", forged(func(c *corev1.Container, _ *corev1.PodSpec) { c.SecurityContext = adds("NET_ADMIN", "SYS_ADMIN") }), inject.ContainerName},
		{"like ours, privileged", forged(func(c *corev1.Container, _ *corev1.PodSpec) { c.SecurityContext.Privileged = new(true) }), inject.ContainerName},
		{"like ours for ever", forged(func(c *corev1.Container, _ *corev1.PodSpec) {
			always := corev1.ContainerRestartPolicyAlways
			c.RestartPolicy = &always
		}), inject.ContainerName},
		{"like ours with a volume", forged(func(c *corev1.Container, s *corev1.PodSpec) {
			s.Volumes = []corev1.Volume{{Name: "mine"}}
			c.VolumeMounts = []corev1.VolumeMount{{Name: "mine", MountPath: "/mine"}}
		}), inject.ContainerName},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "app"}, Spec: plainSpec()}
			tc.change(pod)
			eventually(t, func() error { // until the policy is in effect
				_, err := create(t, namespace, pod, metav1.DryRunAll)
				if refused := err != nil && strings.Contains(err.Error(), "iam4kube-net-admin") && strings.HasSuffix(err.Error(), "not for: "+tc.refused); refused != (tc.refused != "") || !refused && err != nil {
					return fmt.Errorf("refused: %v, %w", refused, err)
				}
				return nil
			})
			if _, err := create(t, other, pod, metav1.DryRunAll); err != nil {
				t.Errorf("in a namespace that did not opt in: %v", err)
			}
		})
	}
	t.Run("where the Service is now", func(t *testing.T) { followsTheService(t, namespace, forged) })
	t.Run("while an update rolls out", func(t *testing.T) {
		setImages(t, nextImage)
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "app"}, Spec: plainSpec()}
		eventually(t, func() error {
			if _, err := create(t, namespace, pod, metav1.DryRunAll); err == nil {
				return errNotYet
			}
			return nil
		})
		setImages(t, initImage+pinnedBy) // where ours is named by a digest, no other is ours
		pod.Labels, pod.Spec.InitContainers = map[string]string{inject.Label: inject.Disabled}, []corev1.Container{{
			Name: inject.ContainerName, Image: initImage + pinnedBy, Args: args, SecurityContext: adds("NET_ADMIN"),
		}}
		eventually(t, func() error {
			_, err := create(t, namespace, pod, metav1.DryRunAll)
			return err
		})
		pod.Spec.InitContainers[0].Image = initImage + strings.Replace(pinnedBy, "0", "1", 1)
		if _, err := create(t, namespace, pod, metav1.DryRunAll); err == nil {
			t.Error("another digest")
		}
		pod.Labels, pod.Spec.InitContainers = nil, nil
		setImages(t, nextImage, initImage)
		eventually(t, func() error {
			_, err := create(t, namespace, pod, metav1.DryRunAll)
			return err
		})
	})
	t.Run("pods that are there", func(t *testing.T) { changesOfPods(t, namespace) })
}

// followsTheService: also when the policy was away for a time, and with it the last one of its kind
// of parameter.
func followsTheService(t *testing.T, namespace string, forged func(func(*corev1.Container, *corev1.PodSpec)) func(*corev1.Pod)) {
	t.Helper()
	policies := cp.Client.AdmissionregistrationV1().ValidatingAdmissionPolicies()
	removePolicy(t)
	if err := policies.Delete(t.Context(), "iam4kube-net-admin", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "app"}, Spec: plainSpec()}
	forged(func(c *corev1.Container, _ *corev1.PodSpec) { c.Image = "registry.example/evil:1" })(pod)
	eventually(t, func() error { // until the policy is not in effect
		_, err := create(t, namespace, pod, metav1.DryRunAll)
		return err
	})
	t.Cleanup(func() { replaceService(t, service()) })
	policy, moved := corev1.IPFamilyPolicyRequireDualStack, service()
	moved.Spec.IPFamilyPolicy, moved.Spec.ClusterIP, moved.Spec.ClusterIPs = &policy, "10.96.0.79", []string{"10.96.0.79", "fd00:96::79"}
	replaceService(t, moved)
	if err := cp.ApplyFiles(t.Context(), manifest("webhook-policy.yaml")); err != nil {
		t.Fatal(err)
	}
	setImages(t, initImage)
	for to, refused := range map[string]bool{"10.96.0.77:80": true, "10.96.0.79:80": false, "[fd00:96::79]:80": false} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "app"}, Spec: plainSpec()}
		forged(func(c *corev1.Container, _ *corev1.PodSpec) { c.Args[3] = to })(pod)
		eventually(t, func() error {
			_, err := create(t, namespace, pod, metav1.DryRunAll)
			if have := err != nil && strings.Contains(err.Error(), "not for: "+inject.ContainerName); have != refused || !have && err != nil {
				return fmt.Errorf("to %s: want refused: %v: %w", to, refused, err)
			}
			return nil
		})
	}
}

// removePolicy leaves the policy without its binding, so without effect.
func removePolicy(t *testing.T) {
	t.Helper()
	if err := cp.Client.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings().Delete(background, "iam4kube-net-admin", metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
}

// pinnedBy is what a policy adds to an image.
var pinnedBy = "@sha256:" + strings.Repeat("0123456789abcdef", 4)

const nextImage = "registry.example/iam4kube/ip2service:v2"

// changesOfPods: a pod that was there before the policy is left alone, but for its spec.
func changesOfPods(t *testing.T, namespace string) {
	t.Helper()
	pods := cp.Client.CoreV1().Pods(namespace)
	pod, err := create(t, namespace, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "app"}, Spec: plainSpec()})
	if err != nil {
		t.Fatal(err)
	}
	setImages(t, nextImage)
	eventually(t, func() error { // what it runs is not allowed any more
		if _, err := create(t, namespace, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "new"}, Spec: plainSpec()}, metav1.DryRunAll); err == nil {
			return errNotYet
		}
		return nil
	})
	pod.Labels = map[string]string{"a": "b"}
	if pod, err = pods.Update(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	setImages(t, initImage)
	changed := pod.DeepCopy()
	changed.Spec.InitContainers[0].Image = "registry.example/evil:1"
	if _, err := pods.Update(t.Context(), changed, metav1.UpdateOptions{}); err == nil || !strings.HasSuffix(err.Error(), "not for: "+inject.ContainerName) {
		t.Errorf("the image of the init container: %v", err)
	}
	debug := func(capabilities *corev1.Capabilities) func() error {
		return func() error {
			changed := pod.DeepCopy()
			changed.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
				Name: "debug", Image: "registry.invalid/debug:1", SecurityContext: &corev1.SecurityContext{Capabilities: capabilities},
			}}}
			_, err := pods.UpdateEphemeralContainers(t.Context(), pod.Name, changed, metav1.UpdateOptions{DryRun: []string{metav1.DryRunAll}})
			return err
		}
	}
	eventually(t, debug(nil))
	if err := debug(&corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN"}})(); err == nil || !strings.HasSuffix(err.Error(), "not for: debug") {
		t.Errorf("an ephemeral container: %v", err)
	}
}

// setImages changes what the policy takes for our images.
func setImages(t *testing.T, images ...string) {
	t.Helper()
	policies := cp.Client.AdmissionregistrationV1().ValidatingAdmissionPolicies()
	p, err := policies.Get(t.Context(), "iam4kube-net-admin", metav1.GetOptions{})
	if err == nil {
		p.Spec.Variables[0].Expression = "['" + strings.Join(images, "', '") + "']"
		_, err = policies.Update(t.Context(), p, metav1.UpdateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}
