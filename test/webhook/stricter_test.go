package webhook

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/internal/webhook"
	"github.com/iam4kube/iam4kube/internal/webhook/inject"
	"github.com/iam4kube/iam4kube/test/controlplane"
)

// The admission plugin AlwaysPullImages changes what is injected, and refuses pods in which
// that is undone.
func TestAlwaysPullImages(t *testing.T) {
	for name, begin := range ways {
		t.Run(name, func(t *testing.T) { testAlwaysPullImages(t, begin) })
	}
}

func testAlwaysPullImages(t *testing.T, begin func(testing.TB)) {
	t.Helper()
	all := cp
	t.Cleanup(func() { cp = all }) // after those of what runs here
	var err error
	if cp, err = controlplane.Start(t.Context(), controlplane.Options{
		ServiceAccountAdmission: true,
		APIServerArgs:           []string{"--service-cluster-ip-range=10.96.0.0/16", "--enable-admission-plugins=AlwaysPullImages"},
	}); err != nil {
		cp = all
		t.Fatal(err)
	}
	strict := cp
	t.Cleanup(func() {
		if err := strict.Stop(); err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(cp.CreateNamespace(t.Context(), ownNamespace), cp.ApplyFiles(t.Context(), manifest("webhook-rbac.yaml")), createService(t.Context())); err != nil {
		t.Fatal(err)
	}
	begin(t)
	namespace := newNamespace(t, inject.Enabled, nil)
	created, err := create(t, namespace, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "app"}, Spec: plainSpec()})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range append(created.Spec.InitContainers, created.Spec.Containers...) {
		if c.ImagePullPolicy != corev1.PullAlways {
			t.Errorf("%s: %s", c.Name, c.ImagePullPolicy)
		}
	}
	if first := created.Spec.InitContainers[0].Name; first != inject.ContainerName {
		t.Errorf("first is %s", first)
	}
}

// Flags that are passed on are in the container.
func TestFlagsArePassedOn(t *testing.T) {
	h := start(t, func(c *webhook.Config) {
		c.InitPullPolicy, c.AllowDNS = "Never", true
		c.Intercept = []netip.Addr{netip.MustParseAddr("169.254.169.254"), netip.MustParseAddr("fd00:ec2::23")}
	})
	h.waitReady(t)
	install(t, h)
	created, err := create(t, newNamespace(t, inject.Enabled, nil), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "app"}, Spec: plainSpec()}, metav1.DryRunAll)
	if err != nil {
		t.Fatal(err)
	}
	if c := created.Spec.InitContainers[0]; c.ImagePullPolicy != corev1.PullNever || !strings.HasSuffix(strings.Join(c.Args, " "), " --allow-dns --intercept-ip 169.254.169.254 --intercept-ip fd00:ec2::23") {
		t.Errorf("%s, %q", c.ImagePullPolicy, c.Args)
	}
}
