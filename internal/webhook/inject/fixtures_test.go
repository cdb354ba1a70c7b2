package inject

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write testdata/*.out.yaml")

var config = Config{
	Namespace: "iam4kube", Image: "registry.example/iam4kube/ip2service:v1", PullPolicy: corev1.PullIfNotPresent,
	ProbeTimeout: time.Minute, Wait: 5 * time.Second,
}

// fixture is a file of testdata: a Pod, before it perhaps the Service, and what else is in
// the pod's namespace, which is for the tests with an API server.
type fixture struct {
	namespace string
	pod       []byte // JSON
	service   Service
	// only is that the namespace insists on tokens.
	only bool
}

func readFixture(t testing.TB, path string) fixture {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f := fixture{service: service(t, "clusterIPs: [10.96.0.77]\nports: [{name: http, port: 80}]")}
	for documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text))); ; {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return f
		}
		if err != nil {
			t.Fatal(err)
		}
		var object struct {
			Kind     string
			Metadata struct {
				Namespace string
				Labels    map[string]string
			}
		}
		if err := yaml.Unmarshal(document, &object); err != nil {
			t.Fatal(err)
		}
		switch object.Kind {
		case "Pod":
			f.namespace = object.Metadata.Namespace
			if f.pod, err = yaml.YAMLToJSON(document); err != nil {
				t.Fatal(err)
			}
		case "Namespace":
			f.only = object.Metadata.Labels["iam4kube.io/identity"] == "token"
		case "Service":
			var s corev1.Service
			if err := yaml.UnmarshalStrict(document, &s); err != nil {
				t.Fatal(err)
			}
			f.service = ServiceOf(&s)
		}
	}
}

// service reads the spec of a Service.
func service(t testing.TB, spec string) Service {
	t.Helper()
	s := corev1.Service{}
	s.Namespace, s.Name = "iam4kube", "iam4kube"
	if err := yaml.UnmarshalStrict([]byte(spec), &s.Spec); err != nil {
		t.Fatal(err)
	}
	return ServiceOf(&s)
}

func fixturePaths(t testing.TB, folders ...string) (paths []string) {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(append(append([]string{"testdata"}, folders...), "*.yaml")...))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		if !strings.HasSuffix(path, ".out.yaml") {
			paths = append(paths, path)
		}
	}
	if len(paths) < 30 {
		t.Fatalf("%d fixtures", len(paths))
	}
	return paths
}

// apply returns the pod as the API server makes it from the patch.
func apply(t testing.TB, pod, patch []byte) []byte {
	t.Helper()
	if len(patch) == 0 {
		return pod
	}
	operations, err := jsonpatch.DecodePatch(patch)
	if err != nil {
		t.Fatalf("%v: %s", err, patch)
	}
	patched, err := operations.Apply(pod)
	if err != nil {
		t.Fatalf("%v: %s", err, patch)
	}
	return patched
}

// result is what a testdata/*.out.yaml holds.
type result struct {
	Outcome Outcome `json:"outcome"`
	Reason  Reason  `json:"reason"`
	Message string  `json:"message,omitempty"`
	// Warnings are the same when the pod is asked about again.
	Warnings []string        `json:"warnings,omitempty"`
	Pod      json.RawMessage `json:"pod,omitempty"`
}

func TestFixtures(t *testing.T) {
	testFixtures(t, fixturePaths(t), func(f fixture, pod []byte) Decision { return config.Decide(f.namespace, pod, f.service) })
}

func TestTokenFixtures(t *testing.T) {
	testFixtures(t, fixturePaths(t, "token"), func(f fixture, pod []byte) Decision { return config.DecideToken(f.namespace, pod, f.only) })
}

func testFixtures(t *testing.T, paths []string, decide func(f fixture, pod []byte) Decision) {
	t.Helper()
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".yaml"), func(t *testing.T) {
			f := readFixture(t, path)
			d := decide(f, f.pod)
			got := result{Outcome: d.Outcome, Reason: d.Reason, Message: d.Message, Warnings: d.Warnings}
			if d.Outcome == Injected {
				got.Pod = apply(t, f.pod, d.Patch)
				if again := decide(f, got.Pod); again.Outcome != Unchanged || !slices.Equal(again.Warnings, d.Warnings) {
					t.Errorf("the second time: %s %s %q", again.Outcome, again.Reason, again.Warnings)
				}
			}
			text, err := yaml.Marshal(got)
			if err != nil {
				t.Fatal(err)
			}
			golden := strings.TrimSuffix(path, ".yaml") + ".out.yaml"
			if *update {
				if err := os.WriteFile(golden, text, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(text, want) {
				t.Errorf("got:\n%s\nwant:\n%s", text, want)
			}
		})
	}
}
