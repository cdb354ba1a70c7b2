package cluster

import (
	"errors"
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func TestFlags(t *testing.T) {
	flags := Flags(corev1.PodSpec{Containers: []corev1.Container{{
		Command: []string{"/server", "-a"}, Args: []string{"--b=1", "--b", "2", "--c", "--d=x=y", "--e", "--f=false"},
	}}})
	want := map[string][]string{"a": {""}, "b": {"1", "2"}, "c": {""}, "d": {"x=y"}, "e": {""}, "f": {"false"}}
	if !reflect.DeepEqual(flags, want) {
		t.Errorf("%v", flags)
	}
	if !On(flags, "c") || On(flags, "f") || On(flags, "g") || Value(flags, "b") != "2" || Value(flags, "g") != "" {
		t.Error("switches and values")
	}
}

func TestParseMetrics(t *testing.T) {
	m := ParseMetrics(`# HELP iam4kube_roles Wanted roles.
# TYPE iam4kube_roles gauge
iam4kube_roles{state="valid"} 3
iam4kube_roles{state="denied"} 1
iam4kube_build_info{goversion="go1.26",revision="a b",version="v1.2.3"} 1
iam4kube_stale 0
iam4kube_credentials_soonest_expiration_timestamp_seconds 1.7e+09
not a metric
`)
	if v := m.Of("iam4kube_roles", "state"); !reflect.DeepEqual(v, map[string]float64{"valid": 3, "denied": 1}) {
		t.Error(v)
	}
	if v := m.Label("iam4kube_build_info", "version"); v != "v1.2.3" {
		t.Error(v)
	}
	if v, found := m["iam4kube_stale"]; v != 0 || !found || m["iam4kube_credentials_soonest_expiration_timestamp_seconds"] != 1.7e9 {
		t.Error(m)
	}
	if lacks := m.Lacks("iam4kube_stale", "iam4kube_roles"); lacks != "" {
		t.Error(lacks)
	}
	if lacks := m.Lacks("iam4kube_stale", "iam4kube_role"); lacks != "iam4kube_role" {
		t.Error(lacks)
	}
}

// What was refused to the user is told apart from what is not there, and from failures.
func TestHidden(t *testing.T) {
	pods := schema.GroupResource{Resource: "pods"}
	for err, hidden := range map[error]bool{
		apierrors.NewForbidden(pods, "a", errors.New("no")): true, apierrors.NewUnauthorized("who"): true, ErrNoDebug: true,
		apierrors.NewNotFound(pods, "a"): false, errors.New("no way"): false, forwardError(errors.New("pods is forbidden")): true,
		forwardError(errors.New("error upgrading connection: lost")): false,
	} {
		if Hidden(err) != hidden {
			t.Errorf("%v", err)
		}
	}
}
