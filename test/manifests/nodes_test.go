package manifests

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

func spec(change func(*corev1.PodSpec)) corev1.PodSpec {
	s := corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "registry.invalid/app:1"}}}
	change(&s)
	return s
}

// affinity asks for a node that fits one of the terms, each a requirement for the label.
func affinity(terms ...corev1.NodeSelectorRequirement) *corev1.Affinity {
	selector := &corev1.NodeSelector{}
	for _, term := range terms {
		selector.NodeSelectorTerms = append(selector.NodeSelectorTerms, corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{term}})
	}
	return &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: selector}}
}

var (
	elsewhere  = corev1.NodeSelectorRequirement{Key: serverNode, Operator: corev1.NodeSelectorOpDoesNotExist}
	there      = corev1.NodeSelectorRequirement{Key: serverNode, Operator: corev1.NodeSelectorOpExists}
	zone       = corev1.NodeSelectorRequirement{Key: corev1.LabelTopologyZone, Operator: corev1.NodeSelectorOpExists}
	everything = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
	toleration = []corev1.Toleration{{Key: serverNode, Operator: corev1.TolerationOpExists}}
)

func TestForeignPodsStayOffTheServersNodes(t *testing.T) {
	objects := mustBuild(t, manifest("both"))
	if err := apply(t.Context(), objects); err != nil {
		t.Fatal(err)
	}
	// Of the overlay with the start-up taint, which other tests have applied.
	_ = cp.Client.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings().Delete(t.Context(), "iam4kube-new-nodes", metav1.DeleteOptions{})
	namespace := newNamespace(t, nil)
	const byTaint, bySelector, byName = "tolerate other taints", "must not ask for it", "spec.nodeName could name"
	mirror := map[string]string{corev1.MirrorPodAnnotationKey: "x"}
	for _, tc := range []struct {
		name        string
		change      func(*corev1.PodSpec)
		annotations map[string]string
		refused     string
	}{
		{"plain", func(*corev1.PodSpec) {}, nil, ""},
		{"toleration", func(s *corev1.PodSpec) { s.Tolerations = toleration }, nil, byTaint},
		{"toleration of a value", func(s *corev1.PodSpec) { s.Tolerations = []corev1.Toleration{{Key: serverNode, Value: "true"}} }, nil, byTaint},
		{"toleration of everything", func(s *corev1.PodSpec) { s.Tolerations = everything }, nil, byTaint},
		{"toleration of another taint", func(s *corev1.PodSpec) {
			s.Tolerations = []corev1.Toleration{{Key: "gpu", Operator: corev1.TolerationOpExists}}
		}, nil, ""},
		{"toleration of everything, kept off", func(s *corev1.PodSpec) { s.Tolerations, s.Affinity = everything, affinity(elsewhere) }, nil, ""},
		{"toleration of everything, kept off by one of two terms", func(s *corev1.PodSpec) { s.Tolerations, s.Affinity = everything, affinity(elsewhere, zone) }, nil, byTaint},
		{"nodeSelector", func(s *corev1.PodSpec) { s.NodeSelector = map[string]string{serverNode: "true"} }, nil, bySelector},
		{"nodeSelector for another label", func(s *corev1.PodSpec) { s.NodeSelector = map[string]string{corev1.LabelHostname: "a"} }, nil, ""},
		{"node affinity", func(s *corev1.PodSpec) { s.Affinity = affinity(zone, there) }, nil, bySelector},
		{"node affinity for another label", func(s *corev1.PodSpec) { s.Affinity = affinity(zone) }, nil, ""},
		{"nodeName", func(s *corev1.PodSpec) { s.NodeName = "a" }, nil, byName},
		{"nodeName, in the shape of a static pod", func(s *corev1.PodSpec) {
			s.NodeName = "a"
			s.AutomountServiceAccountToken = new(bool)
		}, mirror, byName},
	} {
		t.Run(tc.name, func(t *testing.T) {
			eventually(t, func() error { // until the policy is in effect
				err := create(t, namespace, spec(tc.change), tc.annotations)
				if refused := err != nil && strings.Contains(err.Error(), "iam4kube-server-nodes"); refused != (tc.refused != "") || !refused && err != nil ||
					refused && !strings.Contains(err.Error(), tc.refused) {
					return fmt.Errorf("want refused %q: %w", tc.refused, err)
				}
				return nil
			})
		})
	}
	t.Run("a static pod, from a node", func(t *testing.T) {
		asNode := cp.Config()
		asNode.Impersonate = rest.ImpersonationConfig{UserName: "system:node:a", Groups: []string{"system:nodes", "system:masters"}}
		_, err := kubernetes.NewForConfigOrDie(asNode).CoreV1().Pods(namespace).Create(t.Context(), &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "static", Annotations: mirror},
			Spec:       spec(func(s *corev1.PodSpec) { s.NodeName = "a" }),
		}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err != nil {
			t.Error(err)
		}
	})
	t.Run("ours", func(t *testing.T) {
		for _, w := range workloads(t, objects) {
			admitted(t, w)
		}
	})
	t.Run("pods that are there", func(t *testing.T) { changes(t, namespace) })
}

// changes: a pod can be changed but for what would move it.
func changes(t *testing.T, namespace string) {
	t.Helper()
	pods := cp.Client.CoreV1().Pods(namespace)
	pod, err := pods.Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "app"}, Spec: spec(func(*corev1.PodSpec) {})}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// As the scheduler does.
	if err := pods.Bind(t.Context(), &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "app"}, Target: corev1.ObjectReference{Kind: "Node", Name: "a"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if pod, err = pods.Get(t.Context(), pod.Name, metav1.GetOptions{}); err != nil {
		t.Fatal(err)
	}
	pod.Labels = map[string]string{"a": "b"}
	pod.Spec.Containers[0].Image = "registry.invalid/app:2"
	if pod, err = pods.Update(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	pod.Spec.Tolerations = append(pod.Spec.Tolerations, toleration...)
	if _, err = pods.Update(t.Context(), pod, metav1.UpdateOptions{}); err == nil || !strings.Contains(err.Error(), "iam4kube-server-nodes") {
		t.Errorf("with the toleration: %v", err)
	}
}

// TestServerAndIP2ServiceAreNeverOnOneNode: or the server's own calls for its credentials would
// come back to it. Where the server has nodes of its own, the webhook is on them, too.
func TestServerAndIP2ServiceAreNeverOnOneNode(t *testing.T) {
	for _, overlay := range []string{"both", "node-wide", "injection", "startup-taint"} {
		for _, w := range workloads(t, mustBuild(t, manifest(overlay))) {
			spec := w.template.Spec
			if w.name == "iam4kube-ip2service" {
				terms := spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
				if len(terms) != 1 || terms[0].MatchExpressions[0].Key != serverNode || terms[0].MatchExpressions[0].Operator != corev1.NodeSelectorOpDoesNotExist {
					t.Errorf("%s of %s: %+v", w.name, overlay, terms)
				}
				continue
			}
			if spec.NodeSelector[serverNode] != "true" || !reflect.DeepEqual(spec.Tolerations, toleration) {
				t.Errorf("%s of %s: %v, %+v", w.name, overlay, spec.NodeSelector, spec.Tolerations)
			}
		}
	}
}

func TestAServerBesideIP2ServiceDoesNotAskTheMetadataService(t *testing.T) {
	objects := mustBuild(t, manifest("no-dedicated-nodes"))
	server := find[appsv1.Deployment](t, objects, "Deployment", "iam4kube-server").Spec.Template.Spec
	node := find[appsv1.DaemonSet](t, objects, "DaemonSet", "iam4kube-ip2service").Spec.Template.Spec
	environment := find[corev1.ConfigMap](t, objects, "ConfigMap", server.Containers[0].EnvFrom[0].ConfigMapRef.Name).Data
	for _, w := range workloads(t, objects) {
		if w.template.Spec.NodeSelector[serverNode] != "" || w.name != "iam4kube-ip2service" && w.template.Spec.Tolerations != nil {
			t.Errorf("%s: %v %v", w.name, w.template.Spec.NodeSelector, w.template.Spec.Tolerations)
		}
	}
	if !takes(t, node, map[string]string{serverNode: "true"}) || environment["AWS_EC2_METADATA_DISABLED"] != "true" || environment["AWS_REGION"] == "" {
		t.Errorf("ip2service %+v, environment %v", node.Affinity, environment)
	}
}
