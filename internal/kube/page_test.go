package kube

import (
	"context"
	"slices"
	"strconv"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/pager"
)

// A list in pages is followed to its last page, and of no object more is held than is
// kept of it.
func TestKeepsPagesWhole(t *testing.T) {
	keep := func(m *corev1.ConfigMap) string { return m.Name }
	page := func(_ context.Context, options metav1.ListOptions) (runtime.Object, error) {
		n, _ := strconv.Atoi(options.Continue) // the first page has no token
		list := &corev1.ConfigMapList{ListMeta: metav1.ListMeta{ResourceVersion: "7"}}
		for i := range 2 {
			list.Items = append(list.Items, corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: strconv.Itoa(2*n + i)}})
		}
		if n < 2 {
			list.Continue = strconv.Itoa(n + 1)
		}
		return keepPage(list, keep)
	}
	list, _, err := pager.New(page).ListWithAlloc(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	of, err := meta.ListAccessor(list)
	if err != nil || of.GetResourceVersion() != "7" {
		t.Errorf("resourceVersion of %v, %v", of, err)
	}
	items, err := meta.ExtractListWithAlloc(list)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, item := range items {
		k, ok := item.(kept[string])
		if !ok {
			t.Fatalf("holds a %T", item)
		}
		names = append(names, k.value)
	}
	if !slices.Equal(names, []string{"0", "1", "2", "3", "4", "5"}) {
		t.Errorf("kept %q", names)
	}
}

// An object of another kind is an error, not a panic in the middle of a list.
func TestRefusesAPageOfSomethingElse(t *testing.T) {
	list := &corev1.SecretList{Items: []corev1.Secret{{}}}
	if _, err := keepPage(list, func(*corev1.ConfigMap) string { return "" }); err == nil {
		t.Error("took a Secret for a ConfigMap")
	}
}
