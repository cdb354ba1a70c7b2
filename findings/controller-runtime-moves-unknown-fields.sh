#!/usr/bin/env bash
# controller-runtime's typed defaulting gives a field that its Go types do not know to another
# element of a list.
#
# A webhook built with admission.WithDefaulter that inserts an init container in front of a pod's
# own, as service meshes do, is sent a pod whose first init container has a field of a newer
# Kubernetes. The field is not among the Go type's, so the computed patch removes it, and
# controller-runtime takes that operation out of the patch again, to keep what it does not know.
# But JSON patches go by index, and at that index there is the inserted container now: in the
# patched pod the inserted container has the field, and the container of the user has lost it.
#
# Seen with controller-runtime v0.25.2 and k8s.io/api v0.37.2: the field "futureField" of the
# init container "users" is found on the init container "injected". (Compiling takes some minutes.)
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
export GOWORK=off
cat > go.mod <<'END'
module finding

go 1.26.0
END
cat > main.go <<'END'
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

const pod = `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "app"}, "spec": {
	"initContainers": [{"name": "users", "image": "a", "resources": {}, "futureField": "kept?"}],
	"containers": [{"name": "app", "image": "b", "resources": {}}]}}`

type injector struct{}

func (injector) Default(_ context.Context, pod *corev1.Pod) error {
	injected := corev1.Container{Name: "injected", Image: "c"}
	pod.Spec.InitContainers = append([]corev1.Container{injected}, pod.Spec.InitContainers...)
	return nil
}

func main() {
	webhook := admission.WithDefaulter[*corev1.Pod](clientgoscheme.Scheme, injector{})
	response := webhook.Handle(context.Background(), admission.Request{AdmissionRequest: admissionv1.AdmissionRequest{
		Operation: admissionv1.Create, Object: runtime.RawExtension{Raw: []byte(pod)},
	}})
	if !response.Allowed {
		panic(response.Result.Message)
	}
	operations, err := json.Marshal(response.Patches)
	if err != nil {
		panic(err)
	}
	patch, err := jsonpatch.DecodePatch(operations)
	if err != nil {
		panic(err)
	}
	patched, err := patch.Apply([]byte(pod))
	if err != nil {
		panic(err)
	}
	var result struct {
		Spec struct{ InitContainers []map[string]any }
	}
	if err := json.Unmarshal(patched, &result); err != nil {
		panic(err)
	}
	seen := ""
	for _, c := range result.Spec.InitContainers {
		fmt.Printf("init container %v: futureField %v\n", c["name"], c["futureField"])
		seen += fmt.Sprint(c["name"], "=", c["futureField"], " ")
	}
	if seen != "injected=kept? users=<nil> " {
		fmt.Println("that has changed")
		os.Exit(1)
	}
	fmt.Println("as described: the field went to the container that the webhook inserted")
}
END
go get sigs.k8s.io/controller-runtime@v0.25.2 k8s.io/api@v0.37.2 k8s.io/client-go@v0.37.2 2>log || { cat log; exit 1; }
go mod tidy 2>log || { cat log; exit 1; }
go list -m sigs.k8s.io/controller-runtime k8s.io/api
go run .
