package metadata

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/iam4kube/iam4kube/internal/server/podtoken"
)

// discovery is an API server that names the keys of tokens, or is away. It has no network, so
// that time passes for it as for everybody else in the bubble.
type discovery struct {
	key  *ecdsa.PrivateKey
	away atomic.Bool
}

const tokenIssuer = "https://kubernetes.default.svc"

// RoundTrip implements http.RoundTripper.
func (d *discovery) RoundTrip(r *http.Request) (*http.Response, error) {
	if d.away.Load() {
		return nil, errors.New("connection refused")
	}
	var answer any = map[string]string{"issuer": tokenIssuer}
	if r.URL.Path == "/openid/v1/jwks" {
		answer = jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{KeyID: "k", Key: &d.key.PublicKey, Use: "sig"}}}
	}
	body, err := json.Marshal(answer)
	if err != nil {
		return nil, err
	}
	return &http.Response{
		StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}},
		ContentLength: int64(len(body)), Body: io.NopCloser(bytes.NewReader(body)), Request: r,
	}, nil
}

// token is one of the pod a, whose ServiceAccount has its name. jti tells several apart.
func (d *discovery) token(t *testing.T, account types.UID, jti string) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: d.key}, (&jose.SignerOptions{}).WithHeader("kid", "k"))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	token, err := jwt.Signed(signer).Claims(map[string]any{
		"iss": tokenIssuer, "aud": []string{podtoken.Audience}, "sub": "system:serviceaccount:ns:a", "jti": jti,
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(time.Hour).Unix(),
		"kubernetes.io": map[string]any{
			"namespace": "ns", "pod": map[string]string{"name": "a", "uid": "a"}, "serviceaccount": map[string]string{"name": "a", "uid": string(account)},
		},
	}).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// withTokens lets the edge verify tokens, by an API server that is away at first, or not.
func (e *edge) withTokens(t *testing.T, away bool) *discovery {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	d := &discovery{key: key}
	d.away.Store(away)
	client, err := kubernetes.NewForConfigAndClient(&rest.Config{Host: "http://192.0.2.1"}, &http.Client{Transport: d})
	if err != nil {
		t.Fatal(err)
	}
	e.cfg.PodTokens = podtoken.New(client.Discovery().RESTClient(), e.hub, prometheus.NewRegistry(), zap.NewNop())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = e.cfg.PodTokens.Run(ctx) // it returns no error
	}()
	t.Cleanup(func() { cancel(); <-done })
	return d
}

// getContainer asks for credentials with the token.
func (e *edge) getContainer(ctx context.Context, from, token string) *httptest.ResponseRecorder {
	request := httptest.NewRequestWithContext(ctx, http.MethodGet, "http://169.254.170.2"+pathContainer, nil)
	request.RemoteAddr = from + ":40000"
	request.RequestURI = pathContainer
	request.Header["Authorization"] = []string{token}
	recorder := httptest.NewRecorder()
	e.ServeHTTP(recorder, request)
	return recorder
}

// permutations are all orders.
func permutations(names []string) [][]string {
	if len(names) == 0 {
		return [][]string{nil}
	}
	var all [][]string
	for i, first := range names {
		for _, rest := range permutations(slices.Delete(slices.Clone(names), i, i+1)) {
			all = append(all, append([]string{first}, rest...))
		}
	}
	return all
}

// In whatever order pod, ServiceAccount, annotation and credentials come after the token, the
// request is answered with the last of them, at that moment. So is a client's that gives each
// try one second, and none of its tries is left behind or asks STS anew.
func TestEveryOrderAfterTheToken(t *testing.T) {
	for _, order := range permutations([]string{"pod", "account", "annotation", "credentials"}) {
		t.Run(strings.Join(order, ","), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := newEdge(t, 15*time.Second, newHub())
				d := e.withTokens(t, false)
				start := time.Now()
				var mu sync.Mutex // of seen
				seen := map[string]bool{}
				setAccount := func() {
					a := account("a", "")
					if seen["annotation"] {
						a = account("a", "one")
					}
					a.UID = "account-a"
					e.setAccount(a)
				}
				events := map[string]func(){
					"pod":     func() { e.setPod(pod("a", ip, 0)) },
					"account": setAccount,
					"annotation": func() {
						if seen["account"] {
							setAccount()
						}
					},
					"credentials": func() { e.sts.verdict("one") <- nil },
				}
				for i, event := range order {
					time.AfterFunc(time.Duration(i+1)*1100*time.Millisecond, func() {
						mu.Lock()
						defer mu.Unlock()
						seen[event] = true
						events[event]()
					})
				}
				last := time.Duration(len(order)) * 1100 * time.Millisecond
				token := d.token(t, "account-a", "1")
				patient := make(chan struct{})
				go func() {
					defer close(patient)
					got := e.getContainer(t.Context(), ip, token)
					check(t, "the patient client", got, time.Since(start), http.StatusOK, last, "ASIA-one")
				}()
				for {
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					got := e.getContainer(ctx, ip, token)
					cancel()
					if got.Code != statusClientClosed {
						check(t, "the last try", got, time.Since(start), http.StatusOK, last, "ASIA-one")
						break
					}
				}
				<-patient
				e.sts.mu.Lock()
				defer e.sts.mu.Unlock()
				if e.hub.Len() != 0 || e.sts.calls["one"] != 1 {
					t.Errorf("%d wait, %d calls of STS", e.hub.Len(), e.sts.calls["one"])
				}
			})
		})
	}
}

// While the API server is away tokens that were never seen are verified with the keys that
// are known, and known pods served by them, also when nothing has been heard for so long that
// an address proves nothing any more.
func TestTokensWhileTheAPIServerIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEdge(t, 2*time.Second, newHub())
		d := e.withTokens(t, false)
		a := account("a", "one")
		a.UID = "account-a"
		e.setAccount(a)
		e.setPod(pod("a", ip, 0))
		e.sts.verdict("one") <- nil
		synctest.Wait()
		d.away.Store(true)
		for minute := range 45 {
			if minute == 15 {
				e.cfg.Identity.SetStale(true)
			}
			start := time.Now()
			got := e.getContainer(t.Context(), ip, d.token(t, "account-a", time.Now().String()))
			check(t, "a new token", got, time.Since(start), http.StatusOK, 0, "ASIA-one")
			status := http.StatusOK
			if minute >= 15 {
				status = http.StatusServiceUnavailable
			}
			if got, _ := e.get(t.Context(), ip, list); got.Code != status {
				t.Errorf("by address after %d minutes: %d %s", minute, got.Code, got.Body)
			}
			time.Sleep(time.Minute) //nolint:forbidigo // the clock of the bubble
		}
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		other := &discovery{key: key} // with the same key ID, so that the signature is wrong
		got := e.getContainer(t.Context(), ip, other.token(t, "account-a", "1"))
		check(t, "a forged token", got, 0, http.StatusUnauthorized, 0, "signature")
	})
}

// A replica that starts while the API server is away holds whoever comes with a token, and
// serves him when it has read the keys.
func TestTokensWaitForTheFirstKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEdge(t, time.Minute, newHub())
		a := account("a", "one")
		a.UID = "account-a"
		e.setAccount(a)
		e.setPod(pod("a", ip, 0))
		e.sts.verdict("one") <- nil
		d := e.withTokens(t, true)
		start := time.Now()
		answers := make(chan *httptest.ResponseRecorder, 1)
		token := d.token(t, "account-a", "1")
		go func() { answers <- e.getContainer(t.Context(), ip, token) }()
		const outage = 20 * time.Second
		time.AfterFunc(outage, func() { d.away.Store(false) })
		got := <-answers
		if took := time.Since(start); got.Code != http.StatusOK || took < outage || took > outage+fetchMost {
			t.Errorf("%d after %v: %s", got.Code, took, got.Body)
		}
	})
}

// fetchMost is the longest pause between two reads of the keys while they fail.
const fetchMost = 32 * time.Second
