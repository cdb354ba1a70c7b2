package identity

import (
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
	"github.com/iam4kube/iam4kube/internal/server/role"
)

// A ServiceAccount is told of what is wrong with its annotations, and that STS refuses its
// role while that is its role. Another one of the same name is another one.
func TestServiceAccountIsTold(t *testing.T) {
	w := newWorld()
	account := func(uid types.UID, arn string) *metav1.PartialObjectMetadata {
		a := serviceAccount("app", "x")
		a.UID, a.Annotations[role.AnnotationARN] = uid, arn
		return a
	}
	told := func(want ...string) {
		t.Helper()
		if !slices.Equal(w.seen.accounts, want) {
			t.Errorf("told %q, want %q", w.seen.accounts, want)
		}
		w.seen.accounts = nil
	}
	w.setAccount(account("1", "nonsense"))
	w.setAccount(account("1", "nonsense"))
	told("app 1 IAMRoleAnnotationInvalid")
	w.setAccount(account("1", "arn:aws:iam::123456789012:role/app"))
	old := w.accounts[types.NamespacedName{Namespace: "ns", Name: "app"}].role
	w.Refused(old, "AccessDenied", time.Now())
	told("app 1 IAMRoleDenied")
	w.setAccount(account("2", "arn:aws:iam::123456789012:role/other"))
	w.Refused(old, "AccessDenied", time.Now())
	told("app 1 gone")
	w.deleteAccount(account("2", ""))
	w.Refused(old, "AccessDenied", time.Now())
	told("app 2 gone")
}

// A dump says why a pod is not served.
func TestDumpSaysWhatAPodIs(t *testing.T) {
	w := newWorld()
	w.setPod(pod("host", "10.9.9.9", hostNetwork))
	w.setPod(pod("ended", "10.0.0.1", containersEnded, terminating))
	w.setPod(pod("running", "10.0.0.2"))
	var got []string
	for _, p := range w.Dump() {
		got = append(got, fmt.Sprint(p.Name, p.HostNetwork, p.Static, p.Ended))
	}
	if want := []string{"endedfalse false true", "hosttrue false false", "runningfalse false false"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// Who finds no role is told of an annotation that may have been meant for it, on the
// ServiceAccount first and then on the pod.
func TestLookalikes(t *testing.T) {
	w := newWorld()
	p := pod("app", "10.0.0.1")
	on := func(key string) *metav1.PartialObjectMetadata {
		a := serviceAccount("app", "")
		a.Annotations = map[string]string{key: "arn:aws:iam::123456789012:role/app"}
		return a
	}
	check := func(want string) {
		t.Helper()
		if got := w.Lookup(from("10.0.0.1")); got.Lookalike != want || got.Subject().Lookalike != want {
			t.Errorf("%q, want %q", got.Lookalike, want)
		}
	}
	w.setPod(p)
	check("")
	w.setAccount(on("example.com/other"))
	check("")
	w.setPod(with(p, func(p *corev1.Pod) { p.Annotations = map[string]string{role.PodAnnotation: "app"} }))
	check(role.PodAnnotation)
	w.setAccount(on("iam.amazonaws.com/roleARN"))
	check("iam.amazonaws.com/roleARN")
	w.setAccount(on(role.AnnotationARN))
	check("")
}

// A pod on its node's network is told that it gets nothing of the role of its ServiceAccount,
// whichever came first, and again of another role; static pods and those that have ended, and
// ServiceAccounts without a role, are nothing to tell of.
func TestHostNetworkIsReported(t *testing.T) {
	as := func(account string) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Spec.ServiceAccountName = account }
	}
	w := newWorld()
	told := func(names ...string) {
		t.Helper()
		slices.Sort(w.seen.bad)
		if !slices.Equal(w.seen.bad, names) {
			t.Errorf("reported on %v, want %v", w.seen.bad, names)
		}
		w.seen.bad = nil
	}
	before := pod("before", "10.9.9.9", hostNetwork, onHost("10.9.9.9"), as("app"))
	w.setPod(before)
	w.setPod(pod("own-network", "10.0.0.1", as("app")))
	w.setPod(pod("static", "10.9.9.9", hostNetwork, as("app"), func(p *corev1.Pod) {
		p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"}
	}))
	w.setPod(pod("ended", "10.9.9.9", hostNetwork, containersEnded, terminating, as("app")))
	w.setAccount(serviceAccount("app", ""))
	told()
	w.setAccount(serviceAccount("app", "one"))
	told("before")
	w.setAccount(serviceAccount("app", "one"))
	w.setPod(with(before, terminating))
	told()
	w.setPod(pod("after", "10.9.9.9", hostNetwork, onHost("10.9.9.9"), as("app")))
	told("after")
	w.setAccount(serviceAccount("app", "two"))
	told("after", "before")
	w.deleteAccount(serviceAccount("app", "two"))
	w.setPod(pod("orphan", "10.9.9.9", hostNetwork, as("app")))
	told()
}

// Each pod is told once that its ServiceAccount's annotation is wrong, whichever came
// first, and again when it is wrong in another way.
func TestBadAnnotationIsReported(t *testing.T) {
	w, a := newWorld(), pod("a", "10.0.0.1")
	bad := func(arn string) *metav1.PartialObjectMetadata {
		s := serviceAccount("a", "x")
		s.Annotations[role.AnnotationARN] = arn
		return s
	}
	w.setPod(a)
	w.setPod(pod("other", "10.0.0.2"))
	w.setAccount(bad("nonsense"))
	w.setAccount(bad("nonsense"))
	w.setPod(with(a, terminating))
	w.setPod(pod("a2", "10.0.0.3", func(p *corev1.Pod) { p.Spec.ServiceAccountName = "a" }))
	w.setPod(pod("a3", "10.0.0.4", containersEnded, terminating, func(p *corev1.Pod) { p.Spec.ServiceAccountName = "a" }))
	if want := []string{"a", "a2"}; !slices.Equal(w.seen.bad, want) {
		t.Errorf("reported on %v, want %v", w.seen.bad, want)
	}
	w.seen.bad = nil
	w.setAccount(bad("other nonsense"))
	slices.Sort(w.seen.bad)
	if want := []string{"a", "a2"}; !slices.Equal(w.seen.bad, want) {
		t.Errorf("reported on %v, want %v", w.seen.bad, want)
	}
	if w.Lookup(from("10.0.0.1")).Refusal != diagnosis.BadAnnotation {
		t.Error("the pod is not refused")
	}
}

// The labels of another provider's nodes name its own regions.
func TestLabelsOfOtherProviders(t *testing.T) {
	for provider, counts := range map[string]bool{
		"": true, "aws:///eu-central-1a/i-0123456789abcdef0": true, "eks-hybrid:///eu-central-1/cluster/node": true,
		"hcloud://4711": false, "gce://project/zone/node": false, "aws": true, "awsome://x": false, "kind://docker/kind/node": false,
	} {
		n := keepNode(&corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{corev1.LabelTopologyZone: "fsn1-dc14", corev1.LabelTopologyRegion: "fsn1"}},
			Spec:       corev1.NodeSpec{ProviderID: provider},
		})
		if got := n.Region == "fsn1" && n.Zone == "fsn1-dc14"; got != counts || !counts && n.Region+n.Zone != "" {
			t.Errorf("%q: %v", provider, n)
		}
	}
}
