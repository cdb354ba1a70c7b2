package inject

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	utiljson "k8s.io/apimachinery/pkg/util/json"
)

// operation of a JSON patch.
type operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"`
}

const initContainers = "/spec/initContainers"

// patch puts the container in front of the pod's init containers, in place of all that
// have its name. A container is never believed to be ours because of its name; what is
// stricter in the first one of that name stays.
func patch(present []json.RawMessage, ours corev1.Container) Decision {
	var same []int
	for i, raw := range present {
		var n named
		if err := utiljson.Unmarshal(raw, &n); err != nil {
			return Decision{Outcome: Denied, Reason: Malformed, Message: fmt.Sprintf("iam4kube cannot read an init container of the pod: %v", err)}
		}
		if n.Name == ContainerName {
			same = append(same, i)
		}
	}
	if len(same) > 0 {
		var c corev1.Container
		if err := utiljson.Unmarshal(present[same[0]], &c); err == nil { // else nothing of it can stay
			ours = stricter(ours, c)
		}
	}
	container, err := json.Marshal(ours)
	if err != nil {
		return Decision{Outcome: Denied, Reason: Malformed, Message: err.Error()}
	}
	if slices.Equal(same, []int{0}) && equal(present[0], container) {
		return Decision{Outcome: Unchanged, Reason: Present}
	}
	var operations []operation
	for _, i := range slices.Backward(same) {
		operations = append(operations, operation{Op: "remove", Path: fmt.Sprintf("%s/%d", initContainers, i)})
	}
	if len(present) == 0 {
		operations = append(operations, operation{"add", initContainers, []json.RawMessage{container}})
	} else {
		operations = append(operations, operation{"add", initContainers + "/0", json.RawMessage(container)})
	}
	text, err := json.Marshal(operations)
	if err != nil {
		return Decision{Outcome: Denied, Reason: Malformed, Message: err.Error()}
	}
	reason := New
	if len(same) > 0 {
		reason = Restored
	}
	return Decision{Outcome: Injected, Reason: reason, Patch: text}
}

// equal compares what was injected with what has come back, all fields, known here or
// not.
func equal(present, container json.RawMessage) bool {
	var a, b map[string]any
	if utiljson.Unmarshal(present, &a) != nil || utiljson.Unmarshal(container, &b) != nil {
		return false
	}
	withoutToken(a)
	withoutDefaults(a, b)
	return reflect.DeepEqual(a, b)
}

// withoutDefaults forgets the resources that a LimitRange has added to those of ours.
// They have to stay: nobody would add them again, and then the LimitRange or a
// ResourceQuota would refuse the pod.
func withoutDefaults(present, ours map[string]any) {
	have, _ := present["resources"].(map[string]any)
	want, _ := ours["resources"].(map[string]any)
	for _, list := range []string{"limits", "requests"} {
		amounts, _ := have[list].(map[string]any)
		wanted, _ := want[list].(map[string]any)
		maps.DeleteFunc(amounts, func(name string, _ any) bool { return wanted[name] == nil })
		if len(amounts) == 0 && len(wanted) == 0 {
			delete(have, list)
		}
	}
}

// withoutToken forgets the token of the ServiceAccount, which the API server mounts into
// each container of a pod.
func withoutToken(container map[string]any) {
	mounts, _ := container["volumeMounts"].([]any)
	if len(mounts) != 1 {
		return
	}
	mount, _ := mounts[0].(map[string]any)
	name, _ := mount["name"].(string)
	delete(mount, "name")
	token := map[string]any{"mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true}
	if strings.HasPrefix(name, "kube-api-access-") && reflect.DeepEqual(mount, token) {
		delete(container, "volumeMounts")
	} else {
		mount["name"] = name
	}
}
