package metadata

import (
	"crypto/ed25519"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// Whoever asks, whatever the answer, gets what he wants signed by this process's key, and
// nothing that means something elsewhere.
func TestProof(t *testing.T) {
	proof := func(e *edge, path, challenge string) (key, signature string) {
		r := httptest.NewRequest(http.MethodGet, path, http.NoBody)
		r.RemoteAddr, r.Host = "10.9.9.9:1", "10.0.0.1:8080"
		if challenge != "" {
			r.Header.Set("X-Iam4kube-Challenge", challenge)
		}
		w := httptest.NewRecorder()
		e.ServeHTTP(w, r)
		key, signature, _ = strings.Cut(w.Header().Get("X-Iam4kube-Proof"), " ")
		return key, signature
	}
	a, b := newEdge(t, time.Second, newHub()), newEdge(t, time.Second, newHub())
	key, signature := proof(a, "/iam4kube/ready", "challenge")
	public, err := base64.StdEncoding.DecodeString(key)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := base64.StdEncoding.DecodeString(signature)
	if err != nil {
		t.Fatal(err)
	}
	if !ed25519.Verify(public, []byte("iam4kube-server\nchallenge"), signed) {
		t.Error("the signature is none")
	}
	if again, other := proof(a, "/iam4kube/ready", "challenge"); again != key || other != signature {
		t.Error("the process has another key")
	}
	if another, _ := proof(b, "/iam4kube/ready", "challenge"); another == key || another == "" {
		t.Error("two processes have one key")
	}
	for path, challenge := range map[string]string{"/iam4kube/ready": "", "/iam4kube/ready?wait=0s": strings.Repeat("x", maxChallenge+1), list: "challenge"} {
		if key, _ := proof(a, path, challenge); key != "" {
			t.Errorf("%s with %q is answered with a proof", path, challenge)
		}
	}
}
