// Package issuer makes the tokens with which the server calls AssumeRoleWithWebIdentity, as an
// OpenID Connect issuer: it owns the form of the tokens, their key, which all replicas share
// through a Secret, the two documents by which AWS verifies them, the rotation of the key, and
// the check that the issuer's URL serves what it has to. It does not call STS.
package issuer

import (
	"context"
	"errors"
	"fmt"
	"net/url"
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

// ValidateURL says what is wrong with an issuer's URL. IAM takes none with a port, a query or a
// fragment, and compares it with the tokens' letter by letter,
// https://docs.aws.amazon.com/IAM/latest/APIReference/API_CreateOpenIDConnectProvider.html
func ValidateURL(issuer string) error {
	const most = 255 // IAM's
	u, err := url.Parse(issuer)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.Host != u.Hostname() || u.String() != issuer || len(issuer) > most ||
		u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || issuer[len(issuer)-1] == '/' {
		return fmt.Errorf("want https://HOST or https://HOST/PATH as IAM knows it, up to %d characters, without a port, a query or a final slash", most)
	}
	return nil
}

// Issuer signs tokens with the key in the Secret, as it is changed by whoever edits it.
type Issuer struct {
	url     string
	secrets kube.Secrets
	log     *zap.Logger

	signing atomic.Pointer[signing]
	// known is closed when there is a key.
	known chan struct{}
	// missing tells Run that there is no Secret, changed the Checker that there are other keys.
	missing, changed chan struct{}
	refused          prometheus.Counter
}

// New returns the Issuer of that URL for the Secret among secrets.
func New(issuerURL string, secrets kube.Secrets, registry prometheus.Registerer, log *zap.Logger) *Issuer {
	i := &Issuer{
		url: issuerURL, secrets: secrets, log: log,
		known: make(chan struct{}), missing: make(chan struct{}, 1), changed: make(chan struct{}, 1),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "iam4kube_issuer_key_refused_total",
			Help: "Times that the Secret with the issuer's key held no usable key, so that the last good keys stay in use.",
		}),
	}
	registry.MustRegister(i.refused)
	return i
}

// URL is the issuer's.
func (i *Issuer) URL() string { return i.url }

// errNoKey: the Secret has not been read, or holds nothing that can be used.
var errNoKey = errors.New("the Secret " + SecretName + " has no usable key, or cannot be read")

// Wait waits until there is a key to sign with.
func (i *Issuer) Wait(ctx context.Context) error {
	select {
	case <-i.known:
		return nil
	case <-ctx.Done():
		return errNoKey
	}
}

// Resource follows the Secret.
func (i *Issuer) Resource() kube.Resource[*corev1.Secret, *corev1.Secret] {
	name := fields.OneTermEqualSelector("metadata.name", SecretName).String()
	return kube.Resource[*corev1.Secret, *corev1.Secret]{
		Name:     "issuer-key", // the metrics' "secrets" are those of the token key
		Selector: func(o *metav1.ListOptions) { o.FieldSelector = name },
		List: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return i.secrets.List(ctx, o)
		},
		Watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return i.secrets.Watch(ctx, o)
		},
		Keep: func(s *corev1.Secret) *corev1.Secret { return s },
		Sink: sink{i},
	}
}

type sink struct{ *Issuer }

func (s sink) Set(secret *corev1.Secret) { s.take(secret) }
func (s sink) Delete(*corev1.Secret)     { tell(s.missing) }

func (s sink) Replace(secrets []*corev1.Secret) {
	if len(secrets) == 0 {
		tell(s.missing)
		return
	}
	s.take(secrets[0])
}

func tell(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default: // it is told already
	}
}

// take puts the keys of the Secret into use, or refuses all of them.
func (i *Issuer) take(secret *corev1.Secret) {
	keys, err := parse(secret)
	var next *signing
	if err == nil {
		next, err = newSigning(i.url, keys)
	}
	if err != nil {
		i.refused.Inc()
		i.log.Error("the issuer's key in the Secret is not usable, the last good keys stay in use", zap.Error(err))
		return
	}
	before := i.signing.Swap(next)
	if before == nil {
		close(i.known)
	}
	// Whoever rotates sees by it that a replica is done.
	if before == nil || before.keys.current.id != keys.current.id {
		i.log.Info("tokens for STS are signed with another key", zap.String(logging.Issuer, i.url), zap.String(logging.KeyID, keys.current.id))
	}
	tell(i.changed)
}

// Run creates the Secret whenever there is none, until ctx ends. Its content then is what this
// replica uses already, so that a Secret deleted by mistake costs nothing; or else a new key.
func (i *Issuer) Run(ctx context.Context) error {
	const retry = time.Second
	timer := time.NewTimer(0)
	timer.Stop()
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-i.missing:
		case <-timer.C:
		}
		// If another replica is faster, its Secret comes through the watch.
		if err := i.create(ctx); err != nil && !apierrors.IsAlreadyExists(err) && ctx.Err() == nil {
			i.log.Warn("could not create the Secret with the issuer's key", zap.Error(err), zap.Duration(logging.Retry, retry))
			timer.Reset(retry)
		}
	}
}

func (i *Issuer) create(ctx context.Context) error {
	var secret *corev1.Secret
	if in := i.signing.Load(); in != nil {
		secret = secretOf(in.keys.data, in.keys.annotations)
	} else {
		var err error
		if secret, err = newSecret(); err != nil {
			return err
		}
	}
	_, err := i.secrets.Create(ctx, secret, metav1.CreateOptions{})
	return err
}
