package outage

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
	"github.com/iam4kube/iam4kube/internal/server/podtoken"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
)

// token is a new one of the pod, as its kubelet would get it from an API server that is away
// for the server alone.
func (w workload) token(t *testing.T) string {
	t.Helper()
	pod, err := env.Client.CoreV1().Pods(w.Namespace).Get(t.Context(), w.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	hour := int64(3600)
	request, err := env.Client.CoreV1().ServiceAccounts(w.Namespace).CreateToken(t.Context(), w.ServiceAccount, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{
			Audiences: []string{podtoken.Audience}, ExpirationSeconds: &hour,
			BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return request.Status.Token
}

// byToken asks with a token that the server has not seen, in the background.
func (w workload) byToken(t *testing.T, s *environment.Server) <-chan error {
	t.Helper()
	client, token, done := s.Client(t, w.from), w.token(t), make(chan error, 1)
	go func() {
		response, body, err := s.Do(t.Context(), client, http.MethodGet, "/v1/credentials", http.Header{"Authorization": {token}})
		switch {
		case err != nil:
		case response.StatusCode != http.StatusOK:
			err = fmt.Errorf("status %d: %s", response.StatusCode, body)
		case !strings.Contains(body, `"RoleArn":"`+w.arn+`"`):
			err = fmt.Errorf("not of %s: %s", w.arn, body)
		}
		done <- err
	}()
	return done
}

// While the API server is away tokens are verified with the keys that are known. A server that
// starts meanwhile is not ready and says why, holds who comes with a token, and serves him as
// soon as the API server is back.
func TestTokensDuringAnOutage(t *testing.T) {
	t.Parallel()
	gate, cfg := newGate(t)
	w := newWorkload(newNamespace(t, "tokens"), "app").create(t)
	s := env.Start(t, cfg)
	s.WaitReady(t)
	warm(t, s, w)
	set(t, gate, controlplane.Refuse)
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); pass(t, 100*time.Millisecond) {
		if err := <-w.byToken(t, s); err != nil {
			t.Fatalf("a new token during the outage: %v", err)
		}
	}
	if status, body := s.Readyz(t); status != http.StatusOK {
		t.Errorf("readiness changed: %s", body)
	}

	cfg.MaxWait = time.Minute
	late := env.Start(t, cfg)
	request := w.byToken(t, late)
	environment.Eventually(t, 10*time.Second, func() error {
		if late.Metric(t, "iam4kube_waiting_requests", "missing", string(diagnosis.TokenKeys)) != 1 {
			return errors.New("the request does not wait for the keys")
		}
		return nil
	})
	if status, body := late.Readyz(t); status != http.StatusServiceUnavailable || !strings.Contains(body, "the first list of pods, ServiceAccounts, nodes, namespaces, the token key or the issuer's key has not arrived") {
		t.Errorf("/readyz of a server that started meanwhile: %d %s", status, body)
	}
	set(t, gate, controlplane.Pass)
	if err := <-request; err != nil {
		t.Errorf("the request that waited for the keys: %v", err)
	}
	late.WaitReady(t)
}
