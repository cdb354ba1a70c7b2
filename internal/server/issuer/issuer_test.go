package issuer

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/util/keyutil"

	"github.com/iam4kube/iam4kube/internal/server/role"
)

const testURL = "https://issuer.example/cluster"

var app = role.Role{ARN: "arn:aws:iam::123456789012:role/app", SessionName: "ns@app", Namespace: "ns", ServiceAccount: "app"}

// made are keys for all tests, because each takes a tenth of a second.
var made = func() (all [3][]byte) {
	for i := range all {
		var err error
		if all[i], err = newKey(); err != nil {
			panic(err)
		}
	}
	return all
}()

func mustParse(t *testing.T, secret *corev1.Secret) *set {
	t.Helper()
	s, err := parse(secret)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A token says what STS reads, lives for five minutes, and verifies with the published key that
// its header names.
func TestToken(t *testing.T) {
	now := time.Date(2026, time.November, 30, 12, 0, 0, 0, time.UTC)
	keys := mustParse(t, secretOf(map[string][]byte{CurrentKey: made[0], NextKey: made[1]}, nil))
	s, err := newSigning(testURL, keys)
	if err != nil {
		t.Fatal(err)
	}
	tagged := app
	tagged.Tags, tagged.SourceIdentity = "kubernetes-namespace=ns\nteam=a b=c", "ns@app"
	for _, tc := range []struct {
		role role.Role
		tags string
	}{
		{app, ``},
		{tagged, `"https://aws.amazon.com/source_identity":"ns@app","https://aws.amazon.com/tags":{"principal_tags":{"kubernetes-namespace":["ns"],"team":["a b=c"]},"transitive_tag_keys":["kubernetes-namespace","team"]},`},
	} {
		token, err := s.token(tc.role, now)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.RS256})
		if err != nil {
			t.Fatal(err)
		}
		docs, err := documents(testURL, keys, now)
		if err != nil {
			t.Fatal(err)
		}
		var published jose.JSONWebKeySet
		if err := json.Unmarshal(docs[1].Content, &published); err != nil {
			t.Fatal(err)
		}
		all := map[string]any{}
		if err := parsed.Claims(published.Key(parsed.Headers[0].KeyID)[0], &all); err != nil {
			t.Fatal(err)
		}
		if jti, _ := all["jti"].(string); len(jti) < 20 {
			t.Errorf("jti %q", jti)
		}
		delete(all, "jti")
		got, err := json.Marshal(all)
		issued := now.Unix() - 60
		want := fmt.Sprintf(`{"aud":"sts.amazonaws.com","exp":%d,%s"iat":%d,"iss":%q,"nbf":%d,"sub":"system:serviceaccount:ns:app"}`, issued+300, tc.tags, issued, testURL, issued)
		if err != nil || string(got) != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		if again, err := s.token(tc.role, now); err != nil || again == token {
			t.Errorf("the same token twice, %v", err)
		}
	}
}

// The discovery document has what IAM asks of one, and no document has a private key.
func TestDocuments(t *testing.T) {
	now := time.Date(2026, time.November, 30, 12, 0, 0, 0, time.UTC)
	previous, err := mustParse(t, secretOf(map[string][]byte{CurrentKey: made[2]}, nil)).current.publicPEM()
	if err != nil {
		t.Fatal(err)
	}
	data := map[string][]byte{CurrentKey: made[0], NextKey: made[1], PreviousKey: previous}
	for since, want := range map[time.Duration]int{0: 3, keepPrevious - time.Second: 3, keepPrevious: 2} {
		keys := mustParse(t, secretOf(data, map[string]string{AnnotationChanged: now.Add(-since).Format(time.RFC3339)}))
		docs, err := documents(testURL, keys, now)
		if err != nil {
			t.Fatal(err)
		}
		var discovery map[string]any
		if err := json.Unmarshal(docs[0].Content, &discovery); err != nil {
			t.Fatal(err)
		}
		if docs[0].Path != ".well-known/openid-configuration" || discovery["issuer"] != testURL || discovery["jwks_uri"] != testURL+"/"+docs[1].Path {
			t.Errorf("%s: %s", docs[0].Path, docs[0].Content)
		}
		for _, field := range []string{"response_types_supported", "subject_types_supported", "id_token_signing_alg_values_supported", "claims_supported", "authorization_endpoint"} {
			if discovery[field] == nil {
				t.Errorf("no %s", field)
			}
		}
		var published jose.JSONWebKeySet
		if err := json.Unmarshal(docs[1].Content, &published); err != nil {
			t.Fatal(err)
		}
		if len(published.Keys) != want {
			t.Errorf("%v after the change: %d keys, want %d", since, len(published.Keys), want)
		}
		for _, k := range published.Keys {
			if _, public := k.Key.(*rsa.PublicKey); !public || k.Algorithm != "RS256" || k.Use != "sig" || k.KeyID == "" {
				t.Errorf("%+v", k)
			}
		}
	}
}

func newIssuer(log *zap.Logger) (*Issuer, *prometheus.Registry) {
	registry := prometheus.NewRegistry()
	return New(testURL, nil, registry, log), registry
}

// kid is the key with which the Issuer signs now; empty: none.
func kid(t *testing.T, i *Issuer) string {
	t.Helper()
	token, err := i.Token(app)
	if err != nil {
		return ""
	}
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		t.Fatal(err)
	}
	return parsed.Headers[0].KeyID
}

// Edits of the Secret are followed; what is not usable changes nothing, and no part of a key is
// in what is said of it.
func TestSecretIsFollowed(t *testing.T) {
	core, logs := observer.New(zapcore.DebugLevel)
	i, registry := newIssuer(zap.New(core))
	first, second := mustParse(t, secretOf(map[string][]byte{CurrentKey: made[0]}, nil)).current.id, mustParse(t, secretOf(map[string][]byte{CurrentKey: made[1]}, nil)).current.id
	small, err := keyutil.MarshalPrivateKeyToPEM(smallKey(t))
	if err != nil {
		t.Fatal(err)
	}
	bad := []*corev1.Secret{
		secretOf(nil, nil),
		secretOf(map[string][]byte{CurrentKey: made[0][:len(made[0])/2]}, nil),
		secretOf(map[string][]byte{CurrentKey: small}, nil),
		secretOf(map[string][]byte{CurrentKey: bytes.Repeat([]byte("x"), maxPEM+1)}, nil),
		secretOf(map[string][]byte{NextKey: made[0]}, nil),
		secretOf(map[string][]byte{CurrentKey: made[0], NextKey: []byte("none")}, nil),
		secretOf(map[string][]byte{CurrentKey: made[0], PreviousKey: []byte("none")}, nil),
		secretOf(map[string][]byte{CurrentKey: made[0]}, map[string]string{AnnotationChanged: "yesterday"}),
	}
	follow := i.Resource().Sink
	for _, s := range bad {
		follow.Set(s)
	}
	if kid(t, i) != "" {
		t.Error("signs with a bad key")
	}
	follow.Replace([]*corev1.Secret{secretOf(map[string][]byte{CurrentKey: made[0]}, nil)})
	for _, s := range bad {
		follow.Set(s)
	}
	if got := kid(t, i); got != first {
		t.Errorf("signs with %s, want %s", got, first)
	}
	follow.Set(secretOf(map[string][]byte{CurrentKey: made[0], NextKey: made[1]}, nil))
	if got := kid(t, i); got != first {
		t.Errorf("the next key signs already")
	}
	follow.Set(secretOf(map[string][]byte{CurrentKey: made[1]}, nil))
	if got := kid(t, i); got != second {
		t.Errorf("signs with %s, want %s", got, second)
	}
	var said []string
	for _, line := range logs.All() {
		text := fmt.Sprint(line.Message, line.ContextMap())
		said = append(said, text)
		for _, key := range made {
			for line := range strings.Lines(string(key)) {
				if len(line) > 20 && !strings.Contains(line, "-----") && strings.Contains(text, strings.TrimSpace(line)) {
					t.Errorf("a key is in %s", text)
				}
			}
		}
	}
	changes := slices.DeleteFunc(slices.Clone(said), func(s string) bool { return !strings.HasPrefix(s, "tokens for STS") })
	if len(changes) != 2 || !strings.Contains(changes[0], first) || !strings.Contains(changes[1], second) {
		t.Errorf("%q", changes)
	}
	families, err := registry.Gather()
	if err != nil || families[0].GetMetric()[0].GetCounter().GetValue() != float64(2*len(bad)) {
		t.Errorf("%v, %v", families, err)
	}
}

// What is not IAM's form of an issuer is refused.
func TestValidateURL(t *testing.T) {
	for url, good := range map[string]bool{
		"https://issuer.example": true, "https://s3.eu-west-1.amazonaws.com/bucket/cluster": true, "https://192.0.2.1/a": true,
		"": false, "issuer.example": false, "http://issuer.example": false, "https://": false, "https://issuer.example/": false,
		"https://issuer.example:443": false, "https://issuer.example/a?b": false, "https://issuer.example/a#b": false, "https://issuer.example/a?": false, "https://issuer.example/a#": false,
		"https://user@issuer.example": false, "https://issuer.example/a b": false, "https://issuer.example\n": false, "https://issuer.example/" + strings.Repeat("a", 255): false,
	} {
		if err := ValidateURL(url); (err == nil) != good {
			t.Errorf("%q: %v", url, err)
		}
	}
}

// smallKey is one of 1024 bits, which Go makes only where it is told to.
func smallKey(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	t.Setenv("GODEBUG", "rsa1024min=0")
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	return small
}
