package fakests

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// OIDCProvider is an IAM identity provider for OpenID Connect: an account trusts the tokens of an
// issuer, where a role's trust policy names it.
type OIDCProvider struct {
	Account   string   `json:"account"`   // 12 digits
	URL       string   `json:"url"`       // the issuer's, https://HOST[/PATH]
	ClientIDs []string `json:"clientIDs"` // audiences, sts.amazonaws.com for example
}

// name is that of the provider in ARNs and in condition keys.
func (p OIDCProvider) name() string { return strings.TrimPrefix(p.URL, "https://") }

func (p OIDCProvider) arn(partition string) string {
	return "arn:" + partition + ":iam::" + p.Account + ":oidc-provider/" + p.name()
}

// AddOIDCProvider makes a provider, or replaces the one of the same account and URL. It panics on
// what IAM would refuse.
func (f *Fake) AddOIDCProvider(p OIDCProvider) {
	if err := f.addOIDCProvider(p); err != nil {
		panic(err)
	}
}

func (f *Fake) addOIDCProvider(p OIDCProvider) error {
	u, err := url.Parse(p.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.Port() != "" || u.RawQuery != "" || u.Fragment != "" || strings.HasSuffix(p.URL, "/") {
		return fmt.Errorf("fakests: provider %q: want https://HOST[/PATH] without a port", p.URL)
	}
	if !regexp.MustCompile(`\A\d{12}\z`).MatchString(p.Account) || len(p.ClientIDs) == 0 {
		return fmt.Errorf("fakests: provider %q needs an account and an audience", p.URL)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.providers[[2]string{p.Account, p.URL}] = p
	return nil
}

// RemoveOIDCProvider deletes a provider.
func (f *Fake) RemoveOIDCProvider(account, issuer string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.providers, [2]string{account, issuer})
}

// SetClock moves the clock by which tokens are verified, and the header Date of answers, away
// from this machine's.
func (f *Fake) SetClock(ahead time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ahead = ahead
}

// now is the time at AWS.
func (f *Fake) now() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Now().Add(f.ahead)
}

// published are the keys of an issuer as they were read last.
type published struct {
	mu   sync.Mutex
	keys map[string]jwk
	read time.Time
}

// jwk is a key of RFC 7517.
type jwk struct {
	Kty string `json:"kty"`
	Kid string `json:"kid"`
	Alg string `json:"alg"`
	Use string `json:"use"`
	N   string `json:"n"`
	E   string `json:"e"`
}

// key returns the issuer's key with that ID. A key that was not there when the documents were
// read last is unknown until they are read again, Config.KeysFor later.
func (f *Fake) key(ctx context.Context, issuer, kid string) (jwk, *apiError) {
	f.mu.Lock()
	p := f.published[issuer]
	if p == nil {
		p = &published{}
		f.published[issuer] = p
	}
	f.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.keys == nil || time.Since(p.read) >= f.cfg.KeysFor {
		keys, err := f.readKeys(ctx, issuer)
		var network *url.Error
		switch {
		case errors.As(err, &network):
			return jwk{}, errIDPCommunication
		case err != nil:
			return jwk{}, errNoVerificationKey
		}
		p.keys, p.read = keys, time.Now()
	}
	k, known := p.keys[kid]
	if !known {
		return jwk{}, errNoVerificationKey
	}
	return k, nil
}

// readTimeout is AWS's for each document,
// https://repost.aws/knowledge-center/iam-sts-invalididentitytoken
const readTimeout = 5 * time.Second

func (f *Fake) readKeys(ctx context.Context, issuer string) (map[string]jwk, error) {
	var discovery struct {
		Issuer        string   `json:"issuer"`
		Keys          string   `json:"jwks_uri"`
		ResponseTypes []string `json:"response_types_supported"`
		SubjectTypes  []string `json:"subject_types_supported"`
		Algorithms    []string `json:"id_token_signing_alg_values_supported"`
		Claims        []string `json:"claims_supported"`
	}
	if err := f.readDocument(ctx, issuer+"/.well-known/openid-configuration", &discovery); err != nil {
		return nil, err
	}
	if discovery.Issuer != issuer || !strings.HasPrefix(discovery.Keys, "https://") || !slices.Contains(discovery.ResponseTypes, "id_token") ||
		len(discovery.SubjectTypes) == 0 || !slices.Contains(discovery.Algorithms, "RS256") || len(discovery.Claims) == 0 {
		return nil, fmt.Errorf("the discovery document lacks what IAM asks for: %+v", discovery)
	}
	var set struct {
		Keys []jwk `json:"keys"`
	}
	if err := f.readDocument(ctx, discovery.Keys, &set); err != nil {
		return nil, err
	}
	keys := map[string]jwk{}
	for _, k := range set.Keys {
		if k.Kty != "RSA" || k.Alg != "RS256" || k.Kid == "" || keys[k.Kid].Kid != "" {
			return nil, fmt.Errorf("a key that IAM does not take, or an ID twice: %+v", k)
		}
		keys[k.Kid] = k
	}
	if len(keys) == 0 || len(keys) > 100 {
		return nil, fmt.Errorf("%d keys, want 1 to 100", len(keys))
	}
	return keys, nil
}

func (f *Fake) readDocument(ctx context.Context, address string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody)
	if err != nil {
		return err
	}
	client := f.cfg.Issuers
	if client == nil {
		client = http.DefaultClient
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: status %d", address, response.StatusCode)
	}
	const most = 1 << 20
	return json.NewDecoder(io.LimitReader(response.Body, most)).Decode(into)
}
