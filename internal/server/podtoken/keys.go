package podtoken

import (
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/go-jose/go-jose/v4"
	"go.uber.org/zap"
	"k8s.io/client-go/rest"
)

// The API server's discovery of its tokens' issuer and keys,
// https://kubernetes.io/docs/tasks/configure-pod-container/configure-service-account/#service-account-issuer-discovery
const (
	pathConfiguration = "/.well-known/openid-configuration"
	pathKeys          = "/openid/v1/jwks"
)

const (
	// fetchEvery is how often the keys are read without anybody's need, so that one that is
	// not used any more ends.
	fetchEvery = 10 * time.Minute
	// fetchPause is between two reads, whatever tokens come.
	fetchPause = time.Second
	// mostFailing is the longest pause after reads that fail, doubled from fetchPause.
	mostFailing  = 30 * time.Second
	fetchTimeout = 5 * time.Second
)

// keys are what the API server says of the tokens that it issues.
type keys struct {
	issuer string
	byID   map[string]any
	// asked is when the API server was asked for them.
	asked time.Time
}

// Run keeps the keys known until ctx ends. It reads them at once, then every ten minutes,
// and when a token names a key that is not known.
func (v *Verifier) Run(ctx context.Context) error {
	failures, pause := 0, fetchPause
	for ctx.Err() == nil {
		err := v.fetch(ctx)
		switch {
		case err == nil && failures > 0:
			v.log.Info("the keys of ServiceAccounts' tokens are known")
		case err != nil && failures == 0 && ctx.Err() == nil:
			v.log.Warn("could not read the keys of ServiceAccounts' tokens", zap.Error(err))
		}
		if failures++; err == nil {
			failures, pause = 0, fetchPause
		}
		v.hub.Wake(Keys)
		v.remembered.expire(time.Now())
		v.rest(ctx, fetchPause, nil)
		if failures == 0 {
			v.rest(ctx, fetchEvery, v.wanted)
			continue
		}
		v.rest(ctx, pause, v.wanted)
		pause = min(2*pause, mostFailing)
	}
	return nil
}

// rest waits for so long, or for less if somebody wants the keys.
func (*Verifier) rest(ctx context.Context, d time.Duration, wanted <-chan struct{}) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-wanted:
	case <-ctx.Done():
	}
}

// fetch reads issuer and keys. What was known stays if it fails.
func (v *Verifier) fetch(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	asked := time.Now()
	var configuration struct {
		Issuer string `json:"issuer"`
	}
	var set jose.JSONWebKeySet
	for path, into := range map[string]any{pathConfiguration: &configuration, pathKeys: &set} {
		if err := get(ctx, v.api, path, into); err != nil {
			return fmt.Errorf("GET %s of the API server: %w", path, err)
		}
	}
	byID, err := usable(set)
	switch {
	case err != nil:
		return err
	case configuration.Issuer == "":
		return fmt.Errorf("GET %s of the API server: it names no issuer", pathConfiguration)
	}
	v.keys.Store(&keys{configuration.Issuer, byID, asked})
	return nil
}

func get(ctx context.Context, api rest.Interface, path string, into any) error {
	// The paths have media types of their own, and none that the client asks for.
	body, err := api.Get().AbsPath(path).SetHeader("Accept", "*/*").DoRaw(ctx)
	if err != nil {
		if failed, ok := errors.AsType[*url.Error](err); ok {
			return failed.Err // without the address, which the log has often enough
		}
		return err
	}
	return json.Unmarshal(body, into)
}

// usable are the keys that verify signatures. A symmetric one would let whoever knows it
// make tokens, so it is none.
func usable(set jose.JSONWebKeySet) (map[string]any, error) {
	byID := map[string]any{}
	for _, k := range set.Keys {
		switch k.Key.(type) {
		case *rsa.PublicKey, *ecdsa.PublicKey:
			if k.KeyID != "" && k.Valid() && (k.Use == "" || k.Use == "sig") {
				byID[k.KeyID] = k.Key
			}
		}
	}
	if len(byID) == 0 {
		return nil, fmt.Errorf("GET %s of the API server: no key with an ID, of RSA or an elliptic curve", pathKeys)
	}
	return byID, nil
}
