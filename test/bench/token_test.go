package bench

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/iam4kube/iam4kube/internal/server/podtoken"
	"github.com/iam4kube/iam4kube/internal/server/waiting"
	"github.com/iam4kube/iam4kube/test/environment"
)

const (
	containerPath = "/v1/credentials"
	// tokensPerPod are tokens of each pod that the server has not seen.
	tokensPerPod = 100
	// firstSightMost is the contract's bound for the processor time of such a request, in
	// microseconds, and rememberedMost for what rememberedTokens take of the memory, in MiB.
	firstSightMost = 150
	rememberedMost = 16

	rememberedTokens = 50_000
)

// newContainerPod is a client of the container credentials protocol, with a token that the
// server has verified.
func newContainerPod(b *testing.B, server *environment.Server, from netip.Addr, name, arn string) *pod {
	b.Helper()
	token := newPodToken(b, name)
	response, body, err := server.Do(b.Context(), server.Client(b, from), http.MethodGet, containerPath, http.Header{"Authorization": {token}})
	if err != nil {
		b.Fatal(err)
	}
	if response.StatusCode != http.StatusOK {
		b.Fatalf("%s: %s %s", from, response.Status, body)
	}
	checkOwner(b, body, arn, podsNamespace(b)+"@"+name)
	return &pod{from: from, want: []byte(body), request: containerRequest(token)}
}

// newPodToken is a new one of the pod, whose ServiceAccount has its name.
func newPodToken(b *testing.B, name string) string {
	b.Helper()
	object, err := env.Client.CoreV1().Pods(podsNamespace(b)).Get(b.Context(), name, metav1.GetOptions{})
	if err != nil {
		b.Fatal(err)
	}
	token, err := podToken(b.Context(), podsNamespace(b), name, object.UID, name)
	if err != nil {
		b.Fatal(err)
	}
	return token
}

func containerRequest(token string) []byte {
	return []byte("GET " + containerPath + " HTTP/1.1\r\nHost: 169.254.170.2\r\nUser-Agent: bench\r\nAuthorization: " + token + "\r\n\r\n")
}

// podToken returns a new token for the pod and its ServiceAccount, as its kubelet gets it.
func podToken(ctx context.Context, namespace, name string, uid types.UID, account string) (string, error) {
	hour := int64(3600)
	request, err := env.Client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, account, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{
			Audiences: []string{podtoken.Audience}, ExpirationSeconds: &hour,
			BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: corev1.SchemeGroupVersion.Version, Name: name, UID: uid},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	return request.Status.Token, nil
}

// tokenFigures are what tokens cost.
type tokenFigures struct {
	// firstSight is in microseconds of processor time for each request, and remembered in
	// MiB for rememberedTokens.
	firstSight, remembered float64
}

func (f tokenFigures) report() {
	var text strings.Builder
	fmt.Fprintf(&text, "\ntokens of ServiceAccounts, signed with ES256 as by the API server of these benchmarks\n\n")
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "\tiam4kube\tcontract\t")
	line := func(name string, value, most float64) {
		missed := ""
		if value > most {
			missed = " MISSED"
		}
		fmt.Fprintf(table, "%s\t%s\t≤ %s%s\t\n", name, short(value), short(most), missed)
	}
	line(fmt.Sprintf("server CPU per request, first sight of a token, %d of them, µs", podCount*tokensPerPod), f.firstSight, firstSightMost)
	line(fmt.Sprintf("memory for %d remembered tokens, MiB", rememberedTokens), f.remembered, rememberedMost)
	_ = table.Flush() // a Builder never fails
	_, _ = os.Stdout.WriteString(text.String() + "\n")
}

// measureTokens sends new tokens, each once, from all pods at the same time, as warm requests
// are sent: a server that has nothing else to do spends more on going to sleep and waking up.
func measureTokens(b *testing.B, p *peer) tokenFigures {
	b.Helper()
	fmt.Fprintln(os.Stderr, "tokens: requesting new ones")
	requests := make([][][]byte, podCount)
	for i := range requests {
		for range tokensPerPod {
			requests[i] = append(requests[i], containerRequest(newPodToken(b, fmt.Sprintf("app-%d", i))))
		}
	}
	for _, client := range p.containerPods {
		if err := client.dial(b.Context(), p.address); err != nil {
			b.Fatal(err)
		}
	}
	before := environment.ProcessorTime(b, p.pid)
	var clients errgroup.Group
	for i, client := range p.containerPods {
		clients.Go(func() error {
			defer client.close()
			fresh := *client
			for _, request := range requests[i] {
				fresh.request = request
				if err := fresh.do(); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := clients.Wait(); err != nil {
		b.Fatal(err)
	}
	used := environment.ProcessorTime(b, p.pid) - before
	p.answered += podCount * tokensPerPod
	return tokenFigures{float64(used.Microseconds()) / (podCount * tokensPerPod), measureRemembered(b)}
}

// measureRemembered verifies so many tokens and returns by how much memory grew. The names
// are as long as those of a Deployment's pods.
func measureRemembered(b *testing.B) float64 {
	b.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	const issuer = "https://kubernetes.default.svc"
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var answer any = map[string]string{"issuer": issuer}
		if r.URL.Path == "/openid/v1/jwks" {
			answer = jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{KeyID: "k", Key: &key.PublicKey, Use: "sig"}}}
		}
		_ = json.NewEncoder(w).Encode(answer)
	}))
	b.Cleanup(api.Close)
	client, err := kubernetes.NewForConfig(&rest.Config{Host: api.URL})
	if err != nil {
		b.Fatal(err)
	}
	hub := waiting.NewHub(1, 1)
	verifier := podtoken.New(client.Discovery().RESTClient(), hub, prometheus.NewRegistry(), zap.NewNop())
	ctx, stop := context.WithCancel(b.Context())
	var running errgroup.Group
	running.Go(func() error { return verifier.Run(ctx) })
	defer func() {
		stop()
		_ = running.Wait() // it has no error
	}()
	environment.Eventually(b, time.Minute, func() error {
		if !verifier.Known() {
			return fmt.Errorf("no keys")
		}
		return nil
	})
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, (&jose.SignerOptions{}).WithHeader("kid", "k"))
	if err != nil {
		b.Fatal(err)
	}
	before := heap()
	for i := range rememberedTokens {
		uid := types.UID(fmt.Sprintf("%08d-89ab-4cde-8f01-23456789abcd", i))
		account, pod := fmt.Sprintf("application-%d", i%5000), fmt.Sprintf("application-%d-5d4f7c9b8d-%05d", i%5000, i)
		now := time.Now()
		token, err := jwt.Signed(signer).Claims(map[string]any{
			"iss": issuer, "aud": []string{podtoken.Audience}, "sub": "system:serviceaccount:team-1:" + account,
			"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(time.Hour).Unix(),
			"kubernetes.io": map[string]any{
				"namespace": "team-1", "pod": map[string]any{"name": pod, "uid": uid}, "serviceaccount": map[string]any{"name": account, "uid": uid},
			},
		}).Serialize()
		if err != nil {
			b.Fatal(err)
		}
		if _, err := verifier.Verify(token, now); err != nil {
			b.Fatal(err)
		}
	}
	grown := heap() - before
	runtime.KeepAlive(verifier)
	return grown / (1 << 20)
}

// heap is what is in use of the memory, in bytes.
func heap() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}
