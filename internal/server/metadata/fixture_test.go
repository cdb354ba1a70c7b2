package metadata

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	k8smetadata "k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"github.com/iam4kube/iam4kube/internal/server/credentials"
	"github.com/iam4kube/iam4kube/internal/server/identity"
	"github.com/iam4kube/iam4kube/internal/server/imdstoken"
	"github.com/iam4kube/iam4kube/internal/server/podevents"
	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/internal/server/sts"
	"github.com/iam4kube/iam4kube/internal/server/waiting"
)

// The one pod that the fixture knows, and what it may get.
const (
	podAddress = "10.1.2.3"
	roleName   = "a+b=c,d.e@f-g_h"
	secretKey  = "secret-access-key-of-the-pod"
	sessionKey = "session-token-of-the-pod"
)

// issuer is STS: it grants every role.
type issuer struct{}

func (issuer) Admit(ctx context.Context) (context.Context, error) { return ctx, ctx.Err() }

func (issuer) AssumeRole(context.Context, role.Role) (*sts.Credentials, error) {
	now := time.Now()
	return &sts.Credentials{
		AccessKeyID: "ASIA2222222222222222", SecretAccessKey: secretKey, SessionToken: sessionKey,
		Issued: now, Expiration: now.Add(time.Hour),
	}, nil
}

// newServer returns the handler as the server has it, with one warm pod. Its clients
// for the API server are never used.
func newServer(t testing.TB, maxWait time.Duration) *Server {
	t.Helper()
	api := &rest.Config{Host: "http://127.0.0.1:1"}
	metadataClient, err := k8smetadata.NewForConfig(api)
	if err != nil {
		t.Fatal(err)
	}
	registry, log := prometheus.NewRegistry(), zap.NewNop()
	hub := waiting.NewHub(64, 1024)
	cache := credentials.New(issuer{}, hub, registry, log)
	events := podevents.New(nil, registry, log)
	index := identity.New(identity.Config{Hub: hub, Roles: cache, Observer: events, Sessions: role.Sessions{Duration: time.Hour}, Registry: registry})
	tokens := imdstoken.NewKeys(nil, registry, log)

	tokens.Resource().Sink.Set(&corev1.Secret{Data: map[string][]byte{imdstoken.CurrentKey: make([]byte, imdstoken.MinKeyLength)}})
	namespaces := index.Namespaces(metadataClient)
	namespaces.Sink.Set(namespaces.Keep(&metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: "default"}}))
	accounts := index.ServiceAccounts(metadataClient)
	accounts.Sink.Set(accounts.Keep(&metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
		Namespace: "default", Name: "app", Annotations: map[string]string{role.AnnotationARN: "arn:aws:iam::123456789012:role/team/" + roleName},
	}}))
	pods := index.Pods(nil)
	pods.Sink.Set(pods.Keep(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "app-0", UID: types.UID("1")},
		Spec:       corev1.PodSpec{ServiceAccountName: "app"},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: podAddress}}},
	}))

	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- cache.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	cache.Fill()
	<-cache.Filled()
	return New(Config{
		Identity: index, Credentials: cache, Tokens: tokens, Events: events, Hub: hub,
		MaxWait: maxWait, IMDSv1: true, Region: "eu-west-1", AvailabilityZone: "eu-west-1a",
		Registry: registry, Log: log,
	})
}

// token is one that the handler accepts from the pod.
func (s *Server) token(t testing.TB) string {
	t.Helper()
	token, err := s.cfg.Tokens.Make(netip.MustParseAddr(podAddress), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return token
}
