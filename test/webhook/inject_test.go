package webhook

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/internal/webhook/inject"
)

func TestPodOfAnOptedInNamespaceStartsWithOurInitContainer(t *testing.T) {
	startReady(t)
	created, err := create(t, newNamespace(t, inject.Enabled, nil), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "app"}, Spec: plainSpec()})
	if err != nil {
		t.Fatal(err)
	}
	if len(created.Spec.InitContainers) != 1 || created.Spec.InitContainers[0].Image != initImage {
		t.Fatalf("%+v", created.Spec.InitContainers)
	}
	t.Logf("%+v", created.Spec.InitContainers[0])
}
