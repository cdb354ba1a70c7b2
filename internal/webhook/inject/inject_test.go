package inject

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestDenialSaysWhatToDo(t *testing.T) {
	pod := []byte(`{"metadata":{"name":"app"},"spec":{"containers":[{"name":"app"}]}}`)
	for _, tc := range []struct {
		name    string
		service Service
		reason  Reason
		parts   []string
	}{
		{"missing", Missing("iam4kube", "iam4kube"), NoService, []string{"iam4kube/iam4kube", "does not exist", "create it", "--service-name"}},
		{"not seen yet", Unknown(), NotSynced, []string{"try again"}},
		{"headless", service(t, "clusterIP: None\nclusterIPs: [None]\nports: [{port: 80}]"), Headless, []string{"headless", "type ClusterIP"}},
		{"without the port", service(t, "clusterIPs: [10.96.0.77]\nports: [{name: http, port: 80, protocol: UDP}]"), NoPort, []string{"named http"}},
	} {
		d := config.Decide("shop", pod, tc.service)
		if d.Outcome != Denied || d.Reason != tc.reason || d.Patch != nil || d.Pod != "app" {
			t.Errorf("%s: %+v", tc.name, d)
		}
		for _, part := range append(tc.parts, "iam4kube.io/inject: disabled") {
			if !strings.Contains(d.Message, part) {
				t.Errorf("%s: %q does not say %q", tc.name, d.Message, part)
			}
		}
	}
}

func TestWhatIsNoPodIsDenied(t *testing.T) {
	for _, raw := range []string{``, `[]`, `{"spec":{"hostNetwork":"no"}}`, `{}`, `{"spec":{"containers":[{}],"initContainers":[7]}}`, `{"spec":{"initContainers":{}}}`} {
		if d := config.Decide("shop", []byte(raw), Service{}); d.Outcome != Denied || d.Reason != Malformed || d.Message == "" {
			t.Errorf("%s: %+v", raw, d)
		}
	}
}

// FuzzDecide: the patch applies to the pod it was made for, changes nothing but containers
// of our name, and there is nothing left to do after it.
func FuzzDecide(f *testing.F) {
	for _, path := range fixturePaths(f) {
		fixture := readFixture(f, path)
		f.Add(fixture.namespace, string(fixture.pod))
	}
	f.Fuzz(func(t *testing.T, namespace, text string) {
		// What the API server sends is well-formed and names each key once.
		var object map[string]any
		if json.Unmarshal([]byte(text), &object) != nil {
			return
		}
		pod, err := json.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		to := service(t, "clusterIPs: [10.96.0.77]\nports: [{port: 80}]")
		first := config.Decide(namespace, pod, to)
		if !slices.Contains(Reasons[first.Outcome], first.Reason) {
			t.Errorf("%s %s", first.Outcome, first.Reason)
		}
		if first.Outcome != Injected {
			if first.Patch != nil {
				t.Errorf("%s with a patch: %s", first.Outcome, first.Patch)
			}
			return
		}
		patched := apply(t, pod, first.Patch)
		if second := config.Decide(namespace, patched, to); second.Outcome != Unchanged || second.Patch != nil {
			t.Errorf("the second time: %+v\n%s", second, patched)
		}
		if before, after := withoutOurs(t, pod), withoutOurs(t, patched); !reflect.DeepEqual(before, after) {
			t.Errorf("before:\n%v\nafter:\n%v", before, after)
		}
	})
}

// withoutOurs is the pod without init containers of our name, numbers as they are written.
func withoutOurs(t *testing.T, pod []byte) map[string]any {
	t.Helper()
	var object map[string]any
	decoder := json.NewDecoder(bytes.NewReader(pod))
	decoder.UseNumber()
	if err := decoder.Decode(&object); err != nil {
		t.Fatal(err)
	}
	spec, _ := object["spec"].(map[string]any)
	containers, _ := spec["initContainers"].([]any)
	containers = slices.DeleteFunc(containers, func(c any) bool {
		container, _ := c.(map[string]any)
		return container["name"] == ContainerName
	})
	delete(spec, "initContainers")
	if len(containers) > 0 {
		spec["initContainers"] = containers
	}
	if len(spec) == 0 {
		delete(object, "spec")
	}
	return object
}
