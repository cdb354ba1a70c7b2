// Package podtoken verifies the tokens by which pods prove who they are: those of their
// ServiceAccounts that the API server signs and the kubelet puts into a volume
// (serviceAccountToken), bound to the pod. It owns the keys, and what was verified before.
// Whether the pod of a token is a live one is for package identity to say.
package podtoken

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/iam4kube/iam4kube/internal/server/identity"
	"github.com/iam4kube/iam4kube/internal/server/waiting"
)

// Audience is what a token has to be for.
const Audience = "iam4kube.io"

// skew is by how much the clocks of the API server and of this machine may differ.
const skew = time.Minute

// algorithms are those of RFC 7518 with which the API server signs, and their longer forms.
var algorithms = []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.ES256, jose.ES384, jose.ES512}

// keysKey is the type of Keys.
type keysKey struct{}

// Keys is the key in the waiting.Hub that is woken whenever the keys were read, or could
// not be.
var Keys any = keysKey{}

// Errors that time may mend: wait for Keys.
var (
	// ErrUnknownKey: the token is signed with a key that is not known yet.
	ErrUnknownKey = errors.New("the token is signed with a key that the API server did not name when it was asked last")
	// ErrNoKeys: no key is known yet.
	ErrNoKeys = errors.New("the API server has not yet named the keys of ServiceAccounts' tokens")
)

// Verifier verifies tokens. Its methods may be called from any goroutine.
type Verifier struct {
	api        rest.Interface
	hub        *waiting.Hub
	log        *zap.Logger
	keys       atomic.Pointer[keys]
	wanted     chan struct{}
	remembered *remembered
	outcomes   outcomes
}

// outcomes count requests with a token, by what it turned out to be.
type outcomes struct{ remembered, verified, refused prometheus.Counter }

func newOutcomes(registry prometheus.Registerer) outcomes {
	all := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "iam4kube_pod_tokens_total", Help: "Requests with a token of a ServiceAccount, by what it turned out to be.",
	}, []string{"outcome"})
	registry.MustRegister(all)
	return outcomes{all.WithLabelValues("remembered"), all.WithLabelValues("verified"), all.WithLabelValues("refused")}
}

// New returns a Verifier that knows no keys yet.
func New(api rest.Interface, hub *waiting.Hub, registry prometheus.Registerer, log *zap.Logger) *Verifier {
	v := &Verifier{
		api: api, hub: hub, log: log, wanted: make(chan struct{}, 1), remembered: newRemembered(), outcomes: newOutcomes(registry),
	}
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "iam4kube_pod_tokens_remembered", Help: "Verified tokens in memory, which need no signature to be verified.",
	}, func() float64 { return float64(v.remembered.len()) }))
	return v
}

// Known reports whether tokens can be verified.
func (v *Verifier) Known() bool { return v.keys.Load() != nil }

// claims are those of a ServiceAccount's token,
// https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#bound-service-account-tokens
type claims struct {
	jwt.Claims
	Kubernetes struct {
		Namespace      string `json:"namespace"`
		Pod            object `json:"pod"`
		ServiceAccount object `json:"serviceaccount"`
	} `json:"kubernetes.io"`
}

type object struct {
	Name string    `json:"name"`
	UID  types.UID `json:"uid"`
}

// Verify returns what the token proves. Its error is ErrUnknownKey or ErrNoKeys, or says
// what is wrong with the token, without a part of it. Keys that were asked for after since
// are the last word: then a token of an unknown key is wrong.
func (v *Verifier) Verify(token string, since time.Time) (identity.Token, error) {
	now := time.Now()
	hash := v.remembered.hash(token)
	if known, ok := v.remembered.get(hash, now); ok {
		v.outcomes.remembered.Inc()
		return known, nil
	}
	proven, expires, err := v.verify(token, now, since)
	switch {
	case err == nil:
		v.remembered.put(hash, proven, expires, now)
		v.outcomes.verified.Inc()
	case !errors.Is(err, ErrUnknownKey) && !errors.Is(err, ErrNoKeys):
		v.outcomes.refused.Inc()
	}
	return proven, err
}

func (v *Verifier) verify(token string, now, since time.Time) (proven identity.Token, expires time.Time, err error) {
	parsed, err := jwt.ParseSigned(token, algorithms)
	if err != nil {
		return proven, expires, errors.New("it is not a ServiceAccount's token (a JWT with one signature of RSA or an elliptic curve)")
	}
	known := v.keys.Load()
	if known == nil {
		v.want()
		return proven, expires, ErrNoKeys
	}
	key, ok := known.byID[parsed.Headers[0].KeyID]
	if !ok {
		if known.asked.After(since) {
			return proven, expires, errors.New("it is signed with a key that is none of the API server's")
		}
		v.want()
		return proven, expires, ErrUnknownKey
	}
	var c claims
	if err := parsed.Claims(key, &c); err != nil {
		return proven, expires, errors.New("its signature is wrong")
	}
	proven, err = c.proven(known.issuer, now)
	if err == nil {
		expires = c.Expiry.Time()
	}
	return proven, expires, err
}

// want asks Run to read the keys.
func (v *Verifier) want() {
	select {
	case v.wanted <- struct{}{}:
	default: // it is asked already
	}
}

// proven checks what a signed token says.
func (c claims) proven(issuer string, now time.Time) (identity.Token, error) {
	k := c.Kubernetes
	err := c.ValidateWithLeeway(jwt.Expected{Issuer: issuer, AnyAudience: jwt.Audience{Audience}, Time: now}, skew)
	switch {
	case errors.Is(err, jwt.ErrInvalidAudience):
		err = errors.New("it is not for the audience " + Audience)
	case errors.Is(err, jwt.ErrInvalidIssuer):
		err = errors.New("its issuer is not the API server's")
	case errors.Is(err, jwt.ErrExpired):
		err = errors.New("it has expired")
	case errors.Is(err, jwt.ErrNotValidYet), errors.Is(err, jwt.ErrIssuedInTheFuture):
		err = errors.New("it is not valid yet; are the clocks of this machine and of the API server right?")
	case err != nil:
		err = errors.New("its claims are wrong")
	case c.Expiry == nil, c.IssuedAt == nil:
		err = errors.New("it does not say when it was issued and when it expires")
	case k.Pod.Name == "" || k.Pod.UID == "":
		err = errors.New("it is bound to no pod; a pod's own comes from a projected volume (serviceAccountToken)")
	case k.Namespace == "" || k.ServiceAccount.Name == "" || k.ServiceAccount.UID == "",
		c.Subject != fmt.Sprintf("system:serviceaccount:%s:%s", k.Namespace, k.ServiceAccount.Name):
		err = errors.New("it does not name its ServiceAccount")
	}
	if err != nil {
		return identity.Token{}, err
	}
	return identity.Token{
		Namespace: k.Namespace, Pod: k.Pod.Name, PodUID: k.Pod.UID,
		ServiceAccount: k.ServiceAccount.Name, ServiceAccountUID: k.ServiceAccount.UID, Issued: c.IssuedAt.Time().Unix(),
	}, nil
}
