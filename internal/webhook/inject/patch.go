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

const containers, initContainers = "/spec/containers", "/spec/initContainers"

// patch puts the container in front of the pod's init containers, in place of all that
// have its name. A container is never believed to be ours because of its name; what is
// stricter in the first one of that name stays.
func patch(p *pod, ours corev1.Container, service Service) Decision {
	var same []int
	var operations []operation
	present := p.Spec.InitContainers
	for i, raw := range present {
		var c container
		if err := utiljson.Unmarshal(raw, &c); err != nil {
			return unreadable(err)
		}
		if c.Name == ContainerName {
			same = append(same, i)
		} else if service.ipv6Alone() {
			operations = append(operations, askByIPv6(c, initContainers, i)...)
		}
	}
	for i, c := range p.Spec.Containers {
		if service.ipv6Alone() {
			operations = append(operations, askByIPv6(c, containers, i)...)
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
		return decision(operations, same)
	}
	for _, i := range slices.Backward(same) {
		operations = append(operations, operation{Op: "remove", Path: fmt.Sprintf("%s/%d", initContainers, i)})
	}
	if len(present) == 0 {
		operations = append(operations, operation{"add", initContainers, []json.RawMessage{container}})
	} else {
		operations = append(operations, operation{"add", initContainers + "/0", json.RawMessage(container)})
	}
	return decision(operations, same)
}

func decision(operations []operation, same []int) Decision {
	if len(operations) == 0 {
		return Decision{Outcome: Unchanged, Reason: Present}
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

// The environment variables by which AWS clients choose where the metadata service is:
// the address, or only its family.
const (
	endpoint     = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
	endpointMode = "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE"
)

// askByIPv6 tells the AWS clients of a container, number i of the list, unless it says by
// itself where they ask.
func askByIPv6(c container, list string, i int) []operation {
	for _, e := range c.Env {
		if e.Name == endpoint || e.Name == endpointMode {
			return nil
		}
	}
	path := fmt.Sprintf("%s/%d/env", list, i)
	variable := corev1.EnvVar{Name: endpointMode, Value: "IPv6"}
	if c.Env == nil {
		return []operation{{"add", path, []corev1.EnvVar{variable}}}
	}
	return []operation{{"add", path + "/-", variable}}
}
