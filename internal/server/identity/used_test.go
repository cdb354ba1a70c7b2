package identity

import (
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// It is told which roles have pods, whether those or the ServiceAccount come first, alone or
// with others.
func TestRolesWithPodsAreTold(t *testing.T) {
	w := newWorld()
	used := func() (names []string) {
		for r, used := range w.wanted {
			if used {
				names = append(names, r.Name())
			}
		}
		slices.Sort(names)
		return names
	}
	want := func(what string, names ...string) {
		t.Helper()
		if got := used(); !slices.Equal(got, names) {
			t.Errorf("%s: %v, want %v", what, got, names)
		}
	}
	w.setAccount(serviceAccount("first", "first"))
	want("no pods")
	w.setPod(pod("first", "10.0.0.1"))
	want("a pod of an account", "first")
	w.setPod(pod("second", "10.0.0.2"))
	w.setAccount(serviceAccount("second", "second"))
	want("an account that has a pod", "first", "second")
	w.setAccount(serviceAccount("second", "other"))
	want("another role", "first", "other")
	w.setAccount(serviceAccount("many", "many"))
	all := []*corev1.Pod{pod("first", "10.0.0.1"), pod("second", "10.0.0.2")}
	for i := range 200 {
		all = append(all, pod(fmt.Sprint("many-", i), fmt.Sprintf("10.1.0.%d", i), func(p *corev1.Pod) { p.Spec.ServiceAccountName = "many" }))
	}
	w.listPods(all...)
	want("many at once", "first", "many", "other")
}
