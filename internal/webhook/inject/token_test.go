package inject

import (
	"bytes"
	"encoding/json"
	"testing"
)

// FuzzDecideToken: the patch applies to the pod it was made for, and there is nothing left to
// do after it.
func FuzzDecideToken(f *testing.F) {
	for _, path := range fixturePaths(f, "token") {
		fixture := readFixture(f, path)
		f.Add(fixture.namespace, string(fixture.pod), fixture.only)
	}
	f.Fuzz(func(t *testing.T, namespace, text string, only bool) {
		// What the API server sends is well-formed and names each key once.
		var object map[string]any
		if json.Unmarshal([]byte(text), &object) != nil {
			return
		}
		pod, err := json.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		d := config.DecideToken(namespace, pod, only)
		if (d.Outcome == Injected) != (d.Patch != nil) || (d.Outcome == Denied) != (d.Message != "") {
			t.Fatalf("%+v", d)
		}
		if d.Outcome != Injected {
			return
		}
		if again := config.DecideToken(namespace, apply(t, pod, d.Patch), only); again.Outcome != Unchanged {
			t.Errorf("the second time: %s %s", again.Outcome, again.Reason)
		}
	})
}

// A pod that both are asked about has both, whichever comes first, and is stable then.
func TestTokenBesideInjection(t *testing.T) {
	to := service(t, "clusterIPs: [10.96.0.77]\nports: [{port: 80}]")
	pod := []byte(`{"metadata":{"name":"app"},"spec":{"containers":[{"name":"app"}]}}`)
	first := apply(t, pod, config.Decide("shop", pod, to).Patch)
	first = apply(t, first, config.DecideToken("shop", first, false).Patch)
	second := apply(t, pod, config.DecideToken("shop", pod, false).Patch)
	second = apply(t, second, config.Decide("shop", second, to).Patch)
	if !bytes.Equal(first, second) {
		t.Errorf("%s\n%s", first, second)
	}
	for _, d := range []Decision{config.Decide("shop", first, to), config.DecideToken("shop", first, false)} {
		if d.Outcome != Unchanged {
			t.Errorf("%s %s", d.Outcome, d.Reason)
		}
	}
}
