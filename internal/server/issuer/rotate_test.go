package issuer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/iam4kube/iam4kube/internal/kube"
)

// secrets is the API server's part of it: one Secret, whose version every change must know. The
// real one is test/webidentity's.
type secrets struct {
	kube.Secrets
	secret  *corev1.Secret
	version int
	// before and after are what happens at the next update: its failure, before or after the effect.
	before, after error
}

var resource = schema.GroupResource{Resource: "secrets"}

func (s *secrets) Get(context.Context, string, metav1.GetOptions) (*corev1.Secret, error) {
	if s.secret == nil {
		return nil, apierrors.NewNotFound(resource, SecretName)
	}
	return s.secret.DeepCopy(), nil
}

func (s *secrets) Create(_ context.Context, secret *corev1.Secret, _ metav1.CreateOptions) (*corev1.Secret, error) {
	if s.secret != nil {
		return nil, apierrors.NewAlreadyExists(resource, SecretName)
	}
	s.put(secret)
	return s.secret.DeepCopy(), nil
}

func (s *secrets) Update(_ context.Context, secret *corev1.Secret, _ metav1.UpdateOptions) (*corev1.Secret, error) {
	if s.before != nil {
		return nil, s.before
	}
	if secret.ResourceVersion != s.secret.ResourceVersion {
		return nil, apierrors.NewConflict(resource, SecretName, errors.New("another version"))
	}
	s.put(secret)
	return s.secret.DeepCopy(), s.after
}

func (s *secrets) put(secret *corev1.Secret) {
	s.version++
	s.secret = secret.DeepCopy()
	s.secret.ResourceVersion = fmt.Sprint(s.version)
}

// rig is an operator with a web server, a Secret and a clock.
type rig struct {
	*Operator
	secrets   *secrets
	said      *bytes.Buffer
	documents *bytes.Buffer
	at        time.Time

	mu     sync.Mutex
	files  map[string][]byte
	status int
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{secrets: &secrets{}, said: &bytes.Buffer{}, documents: &bytes.Buffer{}, at: time.Date(2026, time.November, 30, 12, 0, 0, 0, time.UTC), status: http.StatusOK}
	server := httptest.NewTLSServer(r)
	t.Cleanup(server.Close)
	r.Operator = NewOperator(server.URL+"/cluster", r.secrets, r.said, r.documents)
	r.client, r.now = server.Client(), func() time.Time { return r.at }
	r.client.CheckRedirect = reader.CheckRedirect
	return r
}

func (r *rig) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if content := r.files[strings.TrimPrefix(request.URL.Path, "/cluster/")]; content != nil {
		w.Header().Set("Location", "/cluster/elsewhere")
		w.WriteHeader(r.status)
		_, _ = w.Write(content)
		return
	}
	http.NotFound(w, request)
}

func (r *rig) serve(files map[string][]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.files = files
}

// publish prints into a folder and serves what is there.
func (r *rig) publish(t *testing.T) {
	t.Helper()
	folder := t.TempDir()
	if err := r.Print(t.Context(), folder); err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for _, path := range []string{PathConfiguration, PathKeys} {
		content, err := os.ReadFile(filepath.Join(folder, path))
		if err != nil {
			t.Fatal(err)
		}
		files[path] = content
	}
	r.serve(files)
}

// rotate checks what a step says, or that it waits and changes nothing.
func (r *rig) rotate(t *testing.T, how Rotation, said string) {
	t.Helper()
	r.said.Reset()
	before := r.secrets.version
	err := r.Rotate(t.Context(), how)
	if wait, waits := strings.CutPrefix(said, "!"); waits {
		if err == nil || !strings.Contains(err.Error(), wait) || r.secrets.version != before || r.said.Len() > 0 {
			t.Errorf("%v, %s: want an error with %q, and no change", err, r.said, wait)
		}
		return
	}
	if err != nil || !strings.Contains(r.said.String(), said) || r.secrets.version != before+1 {
		t.Errorf("%v, %s: want %q", err, r.said, said)
	}
}

// state is which of the keys a to c the Secret holds, in order of their appearance.
func (r *rig) state(t *testing.T, names map[string]string) string {
	t.Helper()
	s, err := parse(r.secrets.secret)
	if err != nil {
		t.Fatal(err)
	}
	var parts []string
	for _, k := range []*key{s.current, s.next, s.previous} {
		if k == nil {
			parts = append(parts, "-")
			continue
		}
		if names[k.id] == "" {
			names[k.id] = string(rune('a' + len(names)))
		}
		parts = append(parts, names[k.id])
	}
	return strings.Join(parts, "")
}

// A rotation from its beginning to the next one, with each step tried too early first.
func TestRotationStates(t *testing.T) {
	r, names := newRig(t), map[string]string{}
	hour := Rotation{After: time.Hour}
	want := func(state string) {
		t.Helper()
		if got := r.state(t, names); got != state {
			t.Fatalf("current, next, previous: %s, want %s", got, state)
		}
	}
	if err := r.Rotate(t.Context(), hour); err == nil || !strings.Contains(err.Error(), "nothing to rotate") {
		t.Errorf("%v", err)
	}
	r.publish(t) // makes the first
	want("a--")
	r.rotate(t, hour, "Step 1 of 3")
	want("ab-")
	r.rotate(t, hour, "!does not serve both keys")
	r.publish(t)
	r.rotate(t, hour, "Step 2 of 3")
	want("ab-")
	r.at = r.at.Add(time.Hour - time.Second)
	r.rotate(t, hour, "!may sign after 2026-11-30T13:00:00Z")
	r.at = r.at.Add(time.Second)
	r.serve(nil)
	r.rotate(t, hour, "!HTTP status 404") // it was taken away again
	r.publish(t)
	r.rotate(t, hour, "Step 3 of 3")
	want("b-a")
	r.rotate(t, hour, "!again after 2026-11-30T13:15:00Z")
	for _, tc := range []struct {
		pass time.Duration
		kids int
	}{{0, 2}, {keepPrevious, 1}} {
		r.at = r.at.Add(tc.pass)
		r.documents.Reset()
		if err := r.Print(t.Context(), ""); err != nil || strings.Count(r.documents.String(), `"kid"`) != tc.kids || strings.Contains(r.documents.String(), `"d"`) {
			t.Errorf("%v: %s, want %d keys", err, r.documents, tc.kids)
		}
	}
	r.rotate(t, hour, "Step 1 of 3")
	want("bc-")
	r.rotate(t, Rotation{AtOnce: true}, "A new key signs now")
	want("d--")
}

// The Secret is changed as a whole or not at all, and somebody else's change is not undone.
func TestRotationFails(t *testing.T) {
	r := newRig(t)
	r.publish(t)
	r.secrets.before = apierrors.NewForbidden(resource, SecretName, errors.New("no update"))
	r.rotate(t, Rotation{}, "!no update")
	r.secrets.before = apierrors.NewConflict(resource, SecretName, errors.New("another version"))
	r.rotate(t, Rotation{}, "!run this again")
	// The answer is lost, the change is not: the same command goes on from there.
	r.secrets.before, r.secrets.after = nil, errors.New("connection lost")
	if err := r.Rotate(t.Context(), Rotation{}); err == nil || r.state(t, map[string]string{}) != "ab-" {
		t.Errorf("%v", err)
	}
	r.secrets.after = nil
	r.rotate(t, Rotation{}, "!does not serve both keys")
	r.publish(t)
	r.rotate(t, Rotation{}, "Step 3 of 3")
	// What is unusable is no obstacle to an emergency, and one to all else.
	r.secrets.secret.Data[CurrentKey] = []byte("none")
	r.rotate(t, Rotation{}, "!want an RSA key")
	r.rotate(t, Rotation{AtOnce: true}, "A new key signs now")
}

// A file that is the same stays as it is, so that what synchronises by time has nothing to do.
func TestPrintLeavesTheSameFiles(t *testing.T) {
	r, folder := newRig(t), t.TempDir()
	old := time.Date(2001, time.January, 1, 0, 0, 0, 0, time.UTC)
	path := filepath.Join(folder, PathKeys)
	for range 2 {
		if err := r.Print(t.Context(), folder); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o644 {
			t.Fatal(info, err)
		}
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Print(t.Context(), folder); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || !info.ModTime().Equal(old) {
		t.Error(info.ModTime(), err)
	}
}

// What the URL serves is what AWS finds there: the check tells what is wrong, and nothing where
// the URL cannot be read from here.
func TestCheck(t *testing.T) {
	r := newRig(t)
	r.publish(t)
	good := r.files
	i := New(r.URL, nil, prometheus.NewRegistry(), zap.NewNop())
	i.take(r.secrets.secret)
	registry := prometheus.NewRegistry()
	var told []string
	c := NewChecker(i, registry, func(problem string) { told = append(told, problem) })
	c.client = r.client
	replace := func(path, old, replacement string) map[string][]byte {
		files := maps.Clone(good)
		files[path] = bytes.Replace(files[path], []byte(old), []byte(replacement), 1)
		return files
	}
	id := i.signing.Load().keys.current.id
	for _, tc := range []struct {
		name    string
		files   map[string][]byte
		status  int
		url     string
		outcome string
		says    string
	}{
		{name: "good", files: good, outcome: published},
		{name: "nothing", outcome: unpublished, says: "HTTP status 404"},
		{name: "redirect", files: good, status: http.StatusFound, outcome: unpublished, says: "HTTP status 302"},
		{name: "other issuer", files: replace(PathConfiguration, `/cluster"`, `/cluster/"`), outcome: unpublished, says: "names the issuer"},
		{name: "no JSON", files: replace(PathKeys, "{", "["), outcome: unpublished, says: "is not the JSON"},
		{name: "other key", files: replace(PathKeys, id, "another"), outcome: unpublished, says: "serves no key " + id},
		{name: "the ID of another key", files: replace(PathKeys, `"n": "`, `"n": "BBBB`), outcome: unpublished, says: "serves no key " + id},
		{name: "other algorithm", files: replace(PathKeys, "RS256", "RS512"), outcome: unpublished, says: "serves no key " + id},
		{name: "nobody", files: good, url: "https://127.0.0.1:1/cluster", outcome: unreachable},
		{name: "good again", files: good, outcome: published},
	} {
		r.serve(tc.files)
		r.status = max(tc.status, http.StatusOK)
		told = nil
		i.url = r.URL
		if tc.url != "" {
			i.url = tc.url
		}
		c.report(c.check(t.Context()))
		if wrong := tc.outcome == unpublished; (len(told) == 1) != wrong || wrong && !strings.Contains(told[0], tc.says) {
			t.Errorf("%s: told %q, want %q", tc.name, told, tc.says)
		}
		if got := outcome(t, registry); got != tc.outcome {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.outcome)
		}
	}
}

// outcome is the one that the metric says.
func outcome(t *testing.T, registry *prometheus.Registry) (one string) {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range families[0].GetMetric() {
		if m.GetGauge().GetValue() == 1 {
			one += m.GetLabel()[0].GetValue()
		}
	}
	return one
}
