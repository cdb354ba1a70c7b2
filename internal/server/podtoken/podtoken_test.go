package podtoken

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/iam4kube/iam4kube/internal/server/identity"
	"github.com/iam4kube/iam4kube/internal/server/waiting"
)

const issuer = "https://kubernetes.default.svc"

// api answers what an API server does, with keys that change. It is a double because a real
// one does not change its keys or fail when a test wants it; test/server has the real one.
type api struct {
	*httptest.Server
	keys  atomic.Pointer[jose.JSONWebKeySet]
	asked atomic.Int32
	fails atomic.Bool
}

func newAPI(t *testing.T, keys ...jose.JSONWebKey) *api {
	t.Helper()
	a := &api{}
	a.set(keys...)
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case a.fails.Load():
			http.Error(w, "no", http.StatusInternalServerError)
		case r.URL.Path == pathConfiguration:
			_ = json.NewEncoder(w).Encode(map[string]string{"issuer": issuer, "jwks_uri": "https://192.0.2.1/"})
		case r.URL.Path == pathKeys:
			a.asked.Add(1)
			_ = json.NewEncoder(w).Encode(a.keys.Load())
		default:
			t.Errorf("asked for %s", r.URL)
		}
	}))
	t.Cleanup(a.Close)
	return a
}

func (a *api) set(keys ...jose.JSONWebKey) { a.keys.Store(&jose.JSONWebKeySet{Keys: keys}) }

func (a *api) verifier(t *testing.T, hub *waiting.Hub) *Verifier {
	t.Helper()
	client, err := kubernetes.NewForConfig(&rest.Config{Host: a.URL})
	if err != nil {
		t.Fatal(err)
	}
	return New(client.Discovery().RESTClient(), hub, prometheus.NewRegistry(), zap.NewNop())
}

var rsaKey, otherKey = sync.OnceValue(newRSA), sync.OnceValue(newRSA)

func newRSA() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
}

func public(id string, key any) jose.JSONWebKey {
	return jose.JSONWebKey{KeyID: id, Key: key, Use: "sig", Algorithm: string(jose.RS256)}
}

// signed is a token that is right but for what change does.
func signed(t *testing.T, algorithm jose.SignatureAlgorithm, id string, key any, change func(map[string]any)) string {
	t.Helper()
	now := time.Now()
	c := map[string]any{
		"iss": issuer, "aud": []string{Audience}, "sub": "system:serviceaccount:shop:orders",
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(time.Hour).Unix(),
		"kubernetes.io": map[string]any{
			"namespace": "shop", "pod": map[string]string{"name": "orders-0", "uid": "p-1"},
			"serviceaccount": map[string]string{"name": "orders", "uid": "a-1"}, "node": map[string]string{"name": "n", "uid": "n-1"},
		},
	}
	if change != nil {
		change(c)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: key}, (&jose.SignerOptions{}).WithHeader("kid", id))
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.Signed(signer).Claims(c).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func bound(c map[string]any) map[string]any {
	m, _ := c["kubernetes.io"].(map[string]any)
	return m
}

func TestVerify(t *testing.T) {
	elliptic, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := newAPI(t, public("rsa", &rsaKey().PublicKey), jose.JSONWebKey{KeyID: "ec", Key: &elliptic.PublicKey, Use: "sig"},
		jose.JSONWebKey{KeyID: "shared", Key: []byte(strings.Repeat("k", 32))}, jose.JSONWebKey{KeyID: "enc", Key: &otherKey().PublicKey, Use: "enc"})
	v := a.verifier(t, waiting.NewHub(1, 1))
	if _, err := v.Verify(signed(t, jose.RS256, "rsa", rsaKey(), nil), time.Now()); !errors.Is(err, ErrNoKeys) {
		t.Fatalf("without keys: %v", err)
	}
	if err := v.fetch(t.Context()); err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&rsaKey().PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	now := time.Now()
	good := signed(t, jose.RS256, "rsa", rsaKey(), nil)
	cut := strings.LastIndexByte(good, '.')
	rs := func(change func(map[string]any)) string { return signed(t, jose.RS256, "rsa", rsaKey(), change) }
	set := func(name string, value any) string { return rs(func(c map[string]any) { c[name] = value }) }
	in := func(name string, value any) string {
		return rs(func(c map[string]any) { bound(c)[name] = value })
	}
	none := "eyJhbGciOiJub25lIiwia2lkIjoicnNhIn0." + strings.Split(good, ".")[1] + "."
	for _, tc := range []struct{ name, token, says string }{
		{"good", good, ""},
		{"of an elliptic curve", signed(t, jose.ES256, "ec", elliptic, nil), ""},
		{"for several audiences", set("aud", []string{"x", Audience}), ""},
		{"expired within the skew", set("exp", now.Add(-30*time.Second).Unix()), ""},
		{"not valid yet within the skew", set("nbf", now.Add(30*time.Second).Unix()), ""},
		{"expired", set("exp", now.Add(-2*time.Minute).Unix()), "expired"},
		{"not valid yet", set("nbf", now.Add(2*time.Minute).Unix()), "not valid yet"},
		{"issued later", set("iat", now.Add(2*time.Minute).Unix()), "not valid yet"},
		{"that never expires", rs(func(c map[string]any) { delete(c, "exp") }), "when it expires"},
		{"for another audience", set("aud", "sts.amazonaws.com"), "audience"},
		{"for no audience", rs(func(c map[string]any) { delete(c, "aud") }), "audience"},
		{"of another issuer", set("iss", "https://issuer.example"), "issuer"},
		{"of another's subject", set("sub", "system:serviceaccount:shop:other"), "ServiceAccount"},
		{"bound to no pod", in("pod", map[string]string{}), "no pod"},
		{"bound to a Secret", in("pod", nil), "no pod"},
		{"without its account's UID", in("serviceaccount", map[string]string{"name": "orders"}), "ServiceAccount"},
		{"without a namespace", in("namespace", ""), "ServiceAccount"},
		{"of another key", signed(t, jose.RS256, "rsa", otherKey(), nil), "signature"},
		{"of an unknown key", signed(t, jose.RS256, "other", otherKey(), nil), "none of the API server's"},
		{"of a key for encryption", signed(t, jose.RS256, "enc", otherKey(), nil), "none of the API server's"},
		{"without a key's ID", signed(t, jose.RS256, "", rsaKey(), nil), "none of the API server's"},
		{"of a key that is no secret", signed(t, jose.HS256, "rsa", publicPEM, nil), "not a ServiceAccount's token"},
		{"of a shared key", signed(t, jose.HS256, "shared", []byte(strings.Repeat("k", 32)), nil), "not a ServiceAccount's token"},
		{"PSS", signed(t, jose.PS256, "rsa", rsaKey(), nil), "not a ServiceAccount's token"},
		{"unsigned", none, "not a ServiceAccount's token"},
		{"cut", good[:cut], "not a ServiceAccount's token"},
		{"without a signature", good[:cut+1], "signature"},
		{"twice", good + good, "not a ServiceAccount's token"},
		{"twice, with a comma", good + "," + good, "not a ServiceAccount's token"},
		{"behind Bearer", "Bearer " + good, "not a ServiceAccount's token"},
		{"with a space", good + " ", "not a ServiceAccount's token"},
		{"other claims", good[:strings.IndexByte(good, '.')+1] + strings.Split(set("sub", "x"), ".")[1] + good[cut:], "signature"},
		{"garbage", "garbage", "not a ServiceAccount's token"},
	} {
		proven, err := v.Verify(tc.token, now.Add(-time.Hour))
		switch {
		case tc.says == "" && err != nil:
			t.Errorf("%s: %v", tc.name, err)
		case tc.says == "" && (proven.Pod != "orders-0" || proven.PodUID != "p-1" || proven.Namespace != "shop" || proven.ServiceAccount != "orders" || proven.ServiceAccountUID != "a-1" || proven.Issued == 0):
			t.Errorf("%s: %+v", tc.name, proven)
		case tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says) || proven != identity.Token{}):
			t.Errorf("%s: %+v, %v", tc.name, proven, err)
		case err != nil && strings.Contains(err.Error(), "eyJ"):
			t.Errorf("%s: a token is in the error: %v", tc.name, err)
		}
	}
}

// A key that is not known is asked for, at most once a second, and whoever waits is woken;
// a token of a key that the API server does not name is then wrong.
func TestUnknownKeyIsAskedFor(t *testing.T) {
	a := newAPI(t, public("old", &otherKey().PublicKey))
	hub := waiting.NewHub(10, 10)
	v := a.verifier(t, hub)
	if err := v.fetch(t.Context()); err != nil {
		t.Fatal(err)
	}
	since := time.Now()
	token := signed(t, jose.RS256, "new", rsaKey(), nil)
	if _, err := v.Verify(token, since); !errors.Is(err, ErrUnknownKey) {
		t.Fatal(err)
	}
	a.set(public("new", &rsaKey().PublicKey))
	waiter, err := hub.Join("somebody", "")
	if err != nil {
		t.Fatal(err)
	}
	defer waiter.Leave()
	waiter.Watch(Keys)
	done := make(chan struct{})
	ctx := t.Context()
	go func() { defer close(done); _ = v.Run(ctx) }()
	select {
	case <-waiter.C:
	case <-time.After(time.Minute):
		t.Fatal("nobody was woken")
	}
	if _, err := v.Verify(token, since); err != nil {
		t.Errorf("with the new key: %v", err)
	}
	if _, err := v.Verify(signed(t, jose.RS256, "none", rsaKey(), nil), since); err == nil || errors.Is(err, ErrUnknownKey) {
		t.Errorf("of a key that is none: %v", err)
	}
	// Verified tokens need no key, and what was known stays if the API server fails.
	a.fails.Store(true)
	before := a.asked.Load()
	for i := range 100 {
		if _, err := v.Verify(signed(t, jose.RS256, fmt.Sprint(i), rsaKey(), nil), time.Now()); !errors.Is(err, ErrUnknownKey) {
			t.Fatal(err)
		}
	}
	if err := v.fetch(ctx); err == nil || !v.Known() {
		t.Errorf("%v, known: %t", err, v.Known())
	}
	if asked := a.asked.Load() - before; asked > 3 {
		t.Errorf("asked %d times", asked)
	}
	if _, err := v.Verify(token, time.Now()); err != nil {
		t.Errorf("while the API server fails: %v", err)
	}
}

func TestUnusableKeysAreRefused(t *testing.T) {
	a := newAPI(t, jose.JSONWebKey{KeyID: "shared", Key: []byte("k")})
	v := a.verifier(t, waiting.NewHub(1, 1))
	if err := v.fetch(t.Context()); err == nil || v.Known() {
		t.Errorf("%v, known: %t", err, v.Known())
	}
}

// What is remembered ends with the token, and is bounded.
func TestRemembered(t *testing.T) {
	r, now := newRemembered(), time.Now()
	proven := identity.Token{Namespace: "a", Pod: "b", PodUID: "c", ServiceAccount: "d", ServiceAccountUID: "e", Issued: 1}
	r.put(r.hash("token"), proven, now.Add(time.Second), now)
	if got, ok := r.get(r.hash("token"), now); !ok || got != proven {
		t.Errorf("%+v, %t", got, ok)
	}
	for _, other := range []string{"Token", "token ", "", strings.Repeat("x", 10000)} {
		if _, ok := r.get(r.hash(other), now); ok {
			t.Errorf("%q is taken for another", other)
		}
	}
	if _, ok := r.get(r.hash("token"), now.Add(time.Second)); ok {
		t.Error("remembered after it expired")
	}
	if newRemembered().hash("token") == r.hash("token") {
		t.Error("the hash has no key")
	}
	r.expire(now.Add(time.Second))
	if r.len() != 0 {
		t.Error("not forgotten")
	}
	for i := range mostRemembered + 10 {
		r.put(r.hash(fmt.Sprint(i)), proven, now.Add(time.Hour), now)
	}
	if r.len() > mostRemembered {
		t.Errorf("%d are remembered", r.len())
	}
	if _, ok := r.get(r.hash(fmt.Sprint(mostRemembered+9)), now); !ok {
		t.Error("the newest is forgotten")
	}
}

// 50,000 tokens of pods with names as a Deployment makes them fit into the memory that is
// promised. What has longer names than there are is not remembered.
func TestMemoryOfRemembered(t *testing.T) {
	const count, most = 50_000, 16 << 20
	r, now := newRemembered(), time.Now()
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	nth := func(i int) (string, identity.Token) {
		return fmt.Sprint("token ", i), identity.Token{
			Namespace: "team-42", Pod: fmt.Sprintf("application-1234-5d4f7c9b8d-%05d", i), PodUID: types.UID(fmt.Sprintf("%08d-89ab-4cde-8f01-23456789abcd", i)),
			ServiceAccount: "application-1234", ServiceAccountUID: "01234567-89ab-4cde-8f01-23456789abcd", Issued: int64(i),
		}
	}
	before := heap()
	for i := range count {
		token, proven := nth(i)
		r.put(r.hash(token), proven, now.Add(time.Hour), now)
	}
	if grown := heap() - before; grown > most {
		t.Errorf("%d tokens take %d bytes, %d each", count, grown, grown/count)
	} else {
		t.Logf("%d tokens take %.1f MiB", count, float64(grown)/(1<<20))
	}
	for i := range count {
		token, proven := nth(i)
		if got, ok := r.get(r.hash(token), now); !ok || got != proven {
			t.Fatalf("%+v, %t, want %+v", got, ok, proven)
		}
	}
	long := identity.Token{Namespace: "a", Pod: strings.Repeat("b", 1<<16), PodUID: "c", ServiceAccount: "d", ServiceAccountUID: "e"}
	r.put(r.hash("long"), long, now.Add(time.Hour), now)
	if got, ok := r.get(r.hash("long"), now); ok {
		t.Errorf("remembered as %d bytes", len(got.Pod))
	}
}

// Whatever comes is refused without a panic, and never taken for somebody.
func FuzzVerify(f *testing.F) {
	f.Add("a.b.c")
	f.Add("eyJhbGciOiJSUzI1NiIsImtpZCI6InJzYSJ9.e30.AAAA")
	v := &Verifier{remembered: newRemembered(), wanted: make(chan struct{}, 1), outcomes: newOutcomes(prometheus.NewRegistry())}
	v.keys.Store(&keys{issuer: issuer, byID: map[string]any{"rsa": &rsaKey().PublicKey}})
	f.Fuzz(func(t *testing.T, token string) {
		if proven, err := v.Verify(token, time.Now()); err == nil || proven != (identity.Token{}) {
			t.Errorf("%q: %+v, %v", token, proven, err)
		}
	})
}
