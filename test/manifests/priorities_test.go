package manifests

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
)

// limitedPriorities configures the API server as GKE's is: the priority classes system-*-critical
// are for namespaces with a ResourceQuota for them.
func limitedPriorities() (path string, err error) {
	file, err := os.CreateTemp("", "iam4kube-admission-*.yaml")
	if err != nil {
		return "", err
	}
	_, err = file.WriteString(`apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
  - name: ResourceQuota
    configuration:
      apiVersion: apiserver.config.k8s.io/v1
      kind: ResourceQuotaConfiguration
      limitedResources:
        - resource: pods
          matchScopes:
            - {scopeName: PriorityClass, operator: In, values: [system-node-critical, system-cluster-critical]}
`)
	if closed := file.Close(); err == nil {
		err = closed
	}
	return file.Name(), err
}

// countQuota writes what the controller of quotas does, and into the object what came of it.
func countQuota(ctx context.Context, object *unstructured.Unstructured) error {
	quotas := cp.Client.CoreV1().ResourceQuotas(object.GetNamespace())
	quota, err := quotas.Get(ctx, object.GetName(), metav1.GetOptions{})
	if err != nil {
		return err
	}
	quota.Status.Hard = quota.Spec.Hard
	quota.Status.Used = corev1.ResourceList{corev1.ResourcePods: resource.MustParse("0")}
	if quota, err = quotas.UpdateStatus(ctx, quota, metav1.UpdateOptions{}); err != nil {
		return err
	}
	object.SetResourceVersion(quota.ResourceVersion)
	return nil
}

// admitted: the API server takes a pod of ours, once it has seen the quota.
func admitted(t *testing.T, w workload) {
	t.Helper()
	eventually(t, func() error {
		if err := create(t, own, w.template.Spec, nil); err != nil {
			return fmt.Errorf("ours, %s: %w", w.name, err)
		}
		return nil
	})
}

func TestOursMayBeCriticalWhereThatIsLimited(t *testing.T) {
	elsewhere := newNamespace(t, nil)
	for _, overlay := range overlays {
		t.Run(overlay, func(t *testing.T) {
			for _, w := range workloads(t, mustBuild(t, manifest(overlay))) {
				if w.template.Spec.PriorityClassName == "" {
					t.Errorf("%s has no priority", w.name)
				}
				admitted(t, w)
				const limited = "insufficient quota"
				spec := *w.template.Spec.DeepCopy()
				spec.NodeSelector, spec.Tolerations = nil, nil
				if err := create(t, elsewhere, spec, nil); err == nil || !strings.Contains(err.Error(), limited) {
					t.Errorf("%s in a namespace without the quota: %v", w.name, err)
				}
			}
		})
	}
}

// takes is the scheduler's look at a node's labels.
func takes(t *testing.T, spec corev1.PodSpec, node map[string]string) bool {
	t.Helper()
	return slices.ContainsFunc(spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms, func(term corev1.NodeSelectorTerm) bool {
		for _, e := range term.MatchExpressions {
			operator := map[corev1.NodeSelectorOperator]selection.Operator{
				corev1.NodeSelectorOpNotIn: selection.NotIn, corev1.NodeSelectorOpDoesNotExist: selection.DoesNotExist,
			}[e.Operator]
			requirement, err := labels.NewRequirement(e.Key, operator, e.Values)
			if err != nil {
				t.Fatal(err)
			}
			if !requirement.Matches(labels.Set(node)) {
				return false
			}
		}
		return true
	})
}

// TestDaemonSetsStayOffNodesWithoutAKubelet: a pod for one of those stays Pending, and what waits
// for the DaemonSet would wait with it.
func TestDaemonSetsStayOffNodesWithoutAKubelet(t *testing.T) {
	for _, overlay := range overlays {
		for _, w := range workloads(t, mustBuild(t, manifest(overlay))) {
			if w.name != "iam4kube-ip2service" && w.name != "iam4kube-cleanup" {
				continue
			}
			onServers := overlay == "uninstall" || overlay == "no-dedicated-nodes"
			for _, tc := range []struct {
				node map[string]string
				want bool
			}{
				{map[string]string{"eks.amazonaws.com/compute-type": "fargate"}, false},
				{map[string]string{"type": "virtual-kubelet", "kubernetes.io/role": "agent"}, false},
				{map[string]string{"node.kubernetes.io/instance-type": "eklet"}, false},
				{map[string]string{"node.kubernetes.io/instance-type": "virtual-kubelet"}, false},
				{map[string]string{"liqo.io/type": "virtual-node"}, false},
				{map[string]string{"eks.amazonaws.com/compute-type": "auto", "node.kubernetes.io/instance-type": "m7g.large", "type": "gpu"}, true},
				{map[string]string{}, true},
				{map[string]string{serverNode: "true"}, onServers},
			} {
				if have := takes(t, w.template.Spec, tc.node); have != tc.want {
					t.Errorf("%s of %s on a node with %v: %v", w.name, overlay, tc.node, have)
				}
			}
		}
	}
}

// TestDeploymentsNameTheirStrategy: kubectl's client-side apply of a strategy without its type
// says "configured" each time.
func TestDeploymentsNameTheirStrategy(t *testing.T) {
	for _, overlay := range overlays {
		for _, object := range mustBuild(t, manifest(overlay)) {
			_, strategy, _ := unstructured.NestedFieldNoCopy(object.Object, "spec", "strategy")
			if _, named, _ := unstructured.NestedFieldNoCopy(object.Object, "spec", "strategy", "type"); strategy != named {
				t.Errorf("%s %s of %s has a strategy without a type", object.GetKind(), object.GetName(), overlay)
			}
		}
	}
}
