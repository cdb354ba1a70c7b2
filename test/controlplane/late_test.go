package controlplane

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// What a held watch would say arrives when it is let go, in its order and without a gap; lists
// and other watches are not late.
func TestLateWatches(t *testing.T) {
	late, err := NewLateWatches(shared.Config())
	must(t, err)
	t.Cleanup(late.Close)
	through, ctx, namespace := client(t, late.Config(shared.Config())).CoreV1(), t.Context(), newNamespace(t)
	accounts, err := through.ServiceAccounts(namespace).Watch(ctx, metav1.ListOptions{})
	must(t, err)
	t.Cleanup(accounts.Stop)
	maps, err := through.ConfigMaps(namespace).Watch(ctx, metav1.ListOptions{})
	must(t, err)
	t.Cleanup(maps.Stop)

	late.Late("serviceaccounts", Held)
	for _, name := range []string{"one", "two"} {
		must(t, shared.CreateServiceAccount(ctx, ServiceAccount{Namespace: namespace, Name: name}))
	}
	_, err = through.ConfigMaps(namespace).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "map"}}, metav1.CreateOptions{})
	must(t, err)
	next(t, maps)
	list, err := through.ServiceAccounts(namespace).List(ctx, metav1.ListOptions{})
	must(t, err)
	if len(list.Items) != 2 {
		t.Errorf("listed %d", len(list.Items))
	}
	select {
	case e := <-accounts.ResultChan():
		t.Fatalf("not held: %v", e)
	default:
	}
	start, by := time.Now(), 300*time.Millisecond
	late.Late("serviceaccounts", 0)
	for _, name := range []string{"one", "two"} {
		if e := next(t, accounts); e.Type != watch.Added || e.Object.(*corev1.ServiceAccount).Name != name {
			t.Errorf("%v, want %s", e, name)
		}
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("let go after %v", took)
	}
	late.Late("serviceaccounts", by)
	start = time.Now()
	must(t, shared.CreateServiceAccount(ctx, ServiceAccount{Namespace: namespace, Name: "three"}))
	next(t, accounts)
	if took := time.Since(start); took < by {
		t.Errorf("late by %v, want %v", took, by)
	}
}

func next(t *testing.T, w watch.Interface) watch.Event {
	t.Helper()
	select {
	case e := <-w.ResultChan():
		return e
	case <-time.After(time.Minute):
		t.Fatal("nothing was heard")
		return watch.Event{}
	}
}
