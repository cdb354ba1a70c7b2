package fakests

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"slices"
	"strings"
	"time"
)

// skew is what STS allows beyond a token's expiry. For nbf and iat nothing is documented, so
// nothing is allowed here,
// https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html
const skew = 5 * time.Minute

// claims of an ID token, as far as STS reads them,
// https://docs.aws.amazon.com/IAM/latest/UserGuide/id_session-tags.html#id_session-tags_adding-assume-role-idp
type claims struct {
	Issuer    string   `json:"iss"`
	Subject   string   `json:"sub"`
	Audience  audience `json:"aud"`
	Expires   *int64   `json:"exp"`
	Issued    *int64   `json:"iat"`
	NotBefore *int64   `json:"nbf"`
	Tags      struct {
		Principal  map[string][]string `json:"principal_tags"`
		Transitive []string            `json:"transitive_tag_keys"`
	} `json:"https://aws.amazon.com/tags"`
	SourceIdentity string `json:"https://aws.amazon.com/source_identity"`
}

// audience is one text or a list.
type audience []string

func (a *audience) UnmarshalJSON(text []byte) error {
	var one string
	if json.Unmarshal(text, &one) == nil {
		*a = audience{one}
		return nil
	}
	return json.Unmarshal(text, (*[]string)(a))
}

// token is a JWT in its parts. It is verified by means of Go's own library alone: what a JOSE
// library makes and reads could be wrong alike.
type token struct {
	header struct {
		Algorithm string `json:"alg"`
		Key       string `json:"kid"`
	}
	claims    claims
	signed    string
	signature []byte
}

func parseToken(text string) (*token, bool) {
	parts := strings.Split(text, ".")
	if len(parts) != 3 {
		return nil, false
	}
	t := &token{signed: parts[0] + "." + parts[1]}
	var err error
	if t.signature, err = base64.RawURLEncoding.Strict().DecodeString(parts[2]); err != nil {
		return nil, false
	}
	for i, into := range []any{&t.header, &t.claims} {
		raw, err := base64.RawURLEncoding.Strict().DecodeString(parts[i])
		if err != nil || json.Unmarshal(raw, into) != nil {
			return nil, false
		}
	}
	return t, t.header.Algorithm == "RS256" && t.header.Key != ""
}

func (t *token) isSignedBy(k jwk) bool {
	n, err := base64.RawURLEncoding.Strict().DecodeString(k.N)
	e, err2 := base64.RawURLEncoding.Strict().DecodeString(k.E)
	if err != nil || err2 != nil || len(n) < 2048/8 {
		return false
	}
	sum := sha256.Sum256([]byte(t.signed))
	public := &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(new(big.Int).SetBytes(e).Int64())}
	return rsa.VerifyPKCS1v15(public, crypto.SHA256, sum[:], t.signature) == nil
}

// verifyToken is AWS's way from a token to what it says of its bearer, for a role of that account.
func (f *Fake) verifyToken(ctx context.Context, text, account string) (*token, OIDCProvider, *apiError) {
	t, ok := parseToken(text)
	if !ok {
		return nil, OIDCProvider{}, errInvalidIdentityToken
	}
	f.mu.Lock()
	provider, known := f.providers[[2]string{account, t.claims.Issuer}]
	f.mu.Unlock()
	if !known {
		return nil, provider, errNoProvider(t.claims.Issuer)
	}
	k, err := f.key(ctx, t.claims.Issuer, t.header.Key)
	if err != nil {
		return nil, provider, err
	}
	if !t.isSignedBy(k) {
		return nil, provider, errInvalidIdentityToken
	}
	isFor := func(aud string) bool { return slices.Contains(provider.ClientIDs, aud) }
	if !slices.ContainsFunc(t.claims.Audience, isFor) {
		return nil, provider, errWrongAudience
	}
	return t, provider, t.claims.checkTimes(f.now())
}

func (c claims) checkTimes(now time.Time) *apiError {
	switch {
	case c.Subject == "" || c.Expires == nil || c.Issued == nil:
		return errInvalidIdentityToken
	case now.After(time.Unix(*c.Expires, 0).Add(skew)):
		return errExpiredIdentityToken(now, time.Unix(*c.Expires, 0))
	case now.Before(time.Unix(*c.Issued, 0)), c.NotBefore != nil && now.Before(time.Unix(*c.NotBefore, 0)):
		return errTokenOfTheFuture
	}
	return nil
}

// readClaims takes tags and source identity from the token, and checks them as parameters.
func (req *assumeRequest) readClaims(c claims) *apiError {
	var violations []string
	for key, values := range c.Tags.Principal {
		if len(values) != 1 {
			return errParameter("https://aws.amazon.com/tags", "has other than one value for "+key)
		}
		violations = append(violations, tagKeyPattern.check(key)...)
		violations = append(violations, tagValuePattern.check(values[0])...)
		req.tags = append(req.tags, Tag{key, values[0]})
	}
	slices.SortFunc(req.tags, func(a, b Tag) int { return strings.Compare(a.Key, b.Key) })
	req.transitive = c.Tags.Transitive
	if c.SourceIdentity != "" {
		violations = append(violations, sourceIdentityPattern.check(c.SourceIdentity)...)
		req.sourceIdentity = c.SourceIdentity
	}
	if len(req.tags) > maxTags {
		violations = append(violations, "too many tags")
	}
	if len(violations) > 0 {
		return errValidation(violations)
	}
	return req.checkSession()
}
