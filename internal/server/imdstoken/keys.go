package imdstoken

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/iam4kube/iam4kube/internal/kube"
	"github.com/iam4kube/iam4kube/internal/logging"
)

const (
	// SecretName is the Secret with the keys, in the server's own namespace.
	SecretName = "iam4kube-token-key"
	// CurrentKey and PreviousKey are the keys of its data. Tokens are made with the
	// current key and verified with both. PreviousKey may be absent.
	CurrentKey, PreviousKey = "current", "previous"
	// MinKeyLength is the least number of bytes of either: the output of SHA-256,
	// the least that RFC 2104 recommends.
	MinKeyLength = 32
	// MaxKeyLength bounds what is kept of a Secret, which can hold 1 MiB. HMAC makes no
	// use of more than the 64 bytes of a block of SHA-256.
	MaxKeyLength = 1024
	// MaxTTL is the longest life of a token, in seconds.
	MaxTTL = 21600
)

// ErrNoKey says that the Secret has not been read yet.
var ErrNoKey = errors.New("the key for IMDSv2 tokens is not known yet")

// Keys makes and verifies tokens with the keys in the Secret, as it is changed by
// whoever edits it. Make and Verify never wait.
type Keys struct {
	secrets kube.Secrets
	log     *zap.Logger
	// keys is nil before the first.
	keys atomic.Pointer[keyring]
	// missing tells Run that there is no Secret.
	missing chan struct{}
	refused prometheus.Counter
}

// NewKeys returns Keys for the Secret among secrets.
func NewKeys(secrets kube.Secrets, registry prometheus.Registerer, log *zap.Logger) *Keys {
	k := &Keys{
		secrets: secrets,
		log:     log,
		missing: make(chan struct{}, 1),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "iam4kube_token_key_refused_total",
			Help: "Times that the Secret with the IMDSv2 token key held no usable key, so that the last good keys stay in use.",
		}),
	}
	registry.MustRegister(k.refused)
	return k
}

// Make returns a token for the caller's address.
func (k *Keys) Make(caller netip.Addr, ttl time.Duration) (string, error) {
	keys := k.keys.Load()
	if keys == nil {
		return "", ErrNoKey
	}
	return newToken(keys.signers[0], caller, time.Now().Add(ttl)), nil
}

// Verify reports whether the token was made for this address, by any replica, and
// has not expired now.
func (k *Keys) Verify(token string, caller netip.Addr, now time.Time) bool {
	keys := k.keys.Load()
	return keys != nil && keys.verify(token, caller, now)
}

// Known reports whether there are keys.
func (k *Keys) Known() bool { return k.keys.Load() != nil }

// Resource follows the Secret.
func (k *Keys) Resource() kube.Resource[*corev1.Secret, *corev1.Secret] {
	name := fields.OneTermEqualSelector("metadata.name", SecretName).String()
	return kube.Resource[*corev1.Secret, *corev1.Secret]{
		Name:     "secrets",
		Selector: func(o *metav1.ListOptions) { o.FieldSelector = name },
		List: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return k.secrets.List(ctx, o)
		},
		Watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return k.secrets.Watch(ctx, o)
		},
		Keep: func(s *corev1.Secret) *corev1.Secret { return s },
		Sink: sink{k},
	}
}

type sink struct{ *Keys }

func (s sink) Set(secret *corev1.Secret) { s.take(secret) }
func (s sink) Delete(*corev1.Secret)     { s.askForSecret() }

func (s sink) Replace(secrets []*corev1.Secret) {
	if len(secrets) == 0 {
		s.askForSecret()
		return
	}
	s.take(secrets[0])
}

func (k *Keys) askForSecret() {
	select {
	case k.missing <- struct{}{}:
	default:
	}
}

// take puts the keys of the Secret into use, or refuses all of them.
func (k *Keys) take(secret *corev1.Secret) {
	keys, err := keysOf(secret)
	if err != nil {
		k.refused.Inc()
		k.log.Error("the token key in the Secret is not usable, the last good keys stay in use", zap.Error(err))
		return
	}
	before := k.keys.Swap(newKeyring(keys))
	if before == nil || same(before.signers, keys) {
		return
	}
	// Whoever rotates sees by it that a replica is done.
	name := PreviousKey
	if !same(before.signers[:1], keys[:1]) {
		name = CurrentKey
	}
	k.log.Info("took over a changed token key from the Secret", zap.String(logging.Kind, name))
}

func same(a, b []*signer) bool {
	return slices.EqualFunc(a, b, func(a, b *signer) bool { return bytes.Equal(a.key, b.key) })
}

func keysOf(secret *corev1.Secret) ([]*signer, error) {
	var keys []*signer
	for _, name := range []string{CurrentKey, PreviousKey} {
		data := secret.Data[name]
		if name == PreviousKey && len(data) == 0 {
			continue
		}
		if len(data) < MinKeyLength || len(data) > MaxKeyLength {
			return nil, fmt.Errorf("Secret %s: data key %q has %d bytes, want %d to %d random bytes", secret.Name, name, len(data), MinKeyLength, MaxKeyLength) //nolint:staticcheck // Secret is a Kubernetes kind
		}
		keys = append(keys, newSigner(data))
	}
	return keys, nil
}

// Run creates the Secret whenever there is none, until ctx ends. Its content then
// is what this replica uses already, so that a Secret deleted by mistake costs no
// token; or else a new key.
func (k *Keys) Run(ctx context.Context) error {
	const retry = time.Second
	timer := time.NewTimer(0)
	timer.Stop()
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-k.missing:
		case <-timer.C:
		}
		// If another replica is faster, its Secret comes through the watch.
		_, err := k.secrets.Create(ctx, k.newSecret(), metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) && ctx.Err() == nil {
			k.log.Warn("could not create the Secret with the token key", zap.Error(err), zap.Duration(logging.Retry, retry))
			timer.Reset(retry)
		}
	}
}

func (k *Keys) newSecret() *corev1.Secret {
	data := map[string][]byte{}
	if keys := k.keys.Load(); keys != nil {
		for i, s := range keys.signers {
			data[[]string{CurrentKey, PreviousKey}[i]] = s.key
		}
	} else {
		key := make([]byte, MinKeyLength)
		rand.Read(key)
		data[CurrentKey] = key
	}
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: SecretName}, Data: data}
}
