package fakests_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/aws-sdk-go-v2/service/sts/types"

	"github.com/iam4kube/iam4kube/test/fakests"
)

// issuer is a web server with the documents of one, and its key.
type issuer struct {
	url    string
	key    *rsa.PrivateKey
	client *http.Client

	mu        sync.Mutex
	discovery map[string]any
	keys      []map[string]any
	status    int
}

const issuerURL = "https://example.com/cluster" // the certificate of httptest is for it

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{url: issuerURL, key: key, status: http.StatusOK}
	i.discovery = map[string]any{
		"issuer": issuerURL, "jwks_uri": issuerURL + "/keys.json", "response_types_supported": []string{"id_token"},
		"subject_types_supported": []string{"public"}, "id_token_signing_alg_values_supported": []string{"RS256"}, "claims_supported": []string{"sub"},
	}
	i.keys = []map[string]any{{
		"kty": "RSA", "alg": "RS256", "use": "sig", "kid": "k1", "e": "AQAB", "n": base64.RawURLEncoding.EncodeToString(key.N.Bytes()),
	}}
	server := httptest.NewTLSServer(i)
	t.Cleanup(server.Close)
	i.client = server.Client()
	transport := i.client.Transport.(*http.Transport).Clone()
	transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, server.Listener.Addr().String())
	}
	i.client.Transport = transport
	return i
}

func (i *issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	w.WriteHeader(i.status)
	switch r.URL.Path {
	case "/cluster/.well-known/openid-configuration":
		_ = json.NewEncoder(w).Encode(i.discovery)
	case "/cluster/keys.json":
		_ = json.NewEncoder(w).Encode(map[string]any{"keys": i.keys})
	}
}

func (i *issuer) change(change func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change()
}

// token is a good one, with these claims besides or instead; nil takes one away.
func (i *issuer) token(t *testing.T, header, other map[string]any) string {
	t.Helper()
	now := time.Now().Unix()
	claims := map[string]any{
		"iss": i.url, "sub": "system:serviceaccount:shop:orders", "aud": "sts.amazonaws.com", "iat": now - 1, "nbf": now - 1, "exp": now + 300,
	}
	maps.Copy(claims, other)
	maps.DeleteFunc(claims, func(_ string, value any) bool { return value == nil })
	all := map[string]any{"alg": "RS256", "kid": "k1"}
	maps.Copy(all, header)
	encode := func(value any) string {
		text, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(text)
	}
	signed := encode(all) + "." + encode(claims)
	sum := sha256.Sum256([]byte(signed))
	signature, err := rsa.SignPKCS1v15(rand.Reader, i.key, crypto.SHA256, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// irsa is a trust policy of the form that IRSA's documentation has.
func irsa(change ...func(*fakests.Trust)) fakests.Trust {
	trust := fakests.Trust{
		Federated: "arn:aws:iam::123456789012:oidc-provider/example.com/cluster",
		StringEquals: map[string][]string{
			"example.com/cluster:sub": {"system:serviceaccount:shop:orders"}, "example.com/cluster:aud": {"sts.amazonaws.com"},
		},
	}
	for _, c := range change {
		c(&trust)
	}
	return trust
}

func newVerifying(t *testing.T, i *issuer, trust fakests.Trust) (*fakests.Fake, func(token string) (*sts.AssumeRoleWithWebIdentityOutput, error)) {
	t.Helper()
	f := fakests.New(fakests.Config{Issuers: i.client})
	f.AddRole(fakests.Role{ARN: roleARN, Trust: trust})
	f.AddOIDCProvider(fakests.OIDCProvider{Account: "123456789012", URL: issuerURL, ClientIDs: []string{"sts.amazonaws.com"}})
	c := client(start(t, f), "", "", "")
	return f, func(token string) (*sts.AssumeRoleWithWebIdentityOutput, error) {
		return c.AssumeRoleWithWebIdentity(t.Context(), &sts.AssumeRoleWithWebIdentityInput{
			RoleArn: aws.String(roleARN), RoleSessionName: aws.String("shop@orders"), WebIdentityToken: aws.String(token),
			PolicyArns: []types.PolicyDescriptorType{{Arn: aws.String("arn:aws:iam::aws:policy/ReadOnlyAccess")}},
		})
	}
}

const (
	invalidToken = "The ID Token provided is not a valid JWT. (You may see this error if you sent an Access Token)"
	noKey        = "Couldn't retrieve verification key from your identity provider,  please reference AssumeRoleWithWebIdentity documentation for requirements"
	notTrusted   = "Not authorized to perform sts:AssumeRoleWithWebIdentity"
)

// A token is accepted for what it says, and for nothing else.
func TestVerifiedTokens(t *testing.T) {
	i, other := newIssuer(t), newIssuer(t)
	f, try := newVerifying(t, i, irsa())
	now := time.Now().Unix()
	for name, tc := range map[string]struct {
		header, claims map[string]any
		signer         *issuer
		change         func(string) string
		status         int
		code, message  string // no code: accepted
	}{
		"good":                 {},
		"audiences":            {claims: map[string]any{"aud": []string{"sts.amazonaws.com", "another"}}},
		"expired 4 min ago":    {claims: map[string]any{"exp": now - 240}},
		"expired 6 min ago":    {claims: map[string]any{"exp": now - 360}, status: 400, code: "ExpiredTokenException", message: "Token expired: current date/time"},
		"issued in the future": {claims: map[string]any{"iat": now + 60}, status: 400, code: "InvalidIdentityToken", message: "not valid yet"},
		"not yet":              {claims: map[string]any{"nbf": now + 60}, status: 400, code: "InvalidIdentityToken", message: "not valid yet"},
		"no expiry":            {claims: map[string]any{"exp": nil}, status: 400, code: "InvalidIdentityToken", message: invalidToken},
		"no subject":           {claims: map[string]any{"sub": nil}, status: 400, code: "InvalidIdentityToken", message: invalidToken},
		"another audience":     {claims: map[string]any{"aud": "sts.example.com"}, status: 400, code: "InvalidIdentityToken", message: "Incorrect token audience"},
		"another issuer":       {claims: map[string]any{"iss": "https://example.com"}, status: 400, code: "InvalidIdentityToken", message: "No OpenIDConnect provider found in your account for https://example.com"},
		"another subject":      {claims: map[string]any{"sub": "system:serviceaccount:shop:orders2"}, status: 403, code: "AccessDenied", message: notTrusted},
		"unpublished key":      {header: map[string]any{"kid": "k2"}, status: 400, code: "InvalidIdentityToken", message: noKey},
		"another's key":        {signer: other, status: 400, code: "InvalidIdentityToken", message: invalidToken},
		"no algorithm":         {header: map[string]any{"alg": "none"}, status: 400, code: "InvalidIdentityToken", message: invalidToken},
		"HMAC":                 {header: map[string]any{"alg": "HS256"}, status: 400, code: "InvalidIdentityToken", message: invalidToken},
		"changed":              {change: func(s string) string { return strings.Replace(s, ".", ".e30", 1) }, status: 400, code: "InvalidIdentityToken", message: invalidToken},
		"two parts":            {change: func(s string) string { return s[:strings.LastIndex(s, ".")] }, status: 400, code: "InvalidIdentityToken", message: invalidToken},
		"tags":                 {claims: map[string]any{"https://aws.amazon.com/tags": map[string]any{"principal_tags": map[string]any{"a": []string{"b"}}}}, status: 403, code: "AccessDenied", message: notTrusted},
		"source identity":      {claims: map[string]any{"https://aws.amazon.com/source_identity": "shop@orders"}, status: 403, code: "AccessDenied", message: notTrusted},
	} {
		t.Run(name, func(t *testing.T) {
			signer := i
			if tc.signer != nil {
				signer = tc.signer
			}
			token := signer.token(t, tc.header, tc.claims)
			if tc.change != nil {
				token = tc.change(token)
			}
			out, err := try(token)
			if tc.code != "" {
				wantErrorPart(t, err, tc.status, tc.code, tc.message)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			issued, _ := f.Issued(*out.Credentials.AccessKeyId)
			if issued.KeyID != "k1" || issued.CallerARN != "arn:aws:iam::123456789012:oidc-provider/example.com/cluster:system:serviceaccount:shop:orders" ||
				!slices.Equal(issued.PolicyARNs, []string{"arn:aws:iam::aws:policy/ReadOnlyAccess"}) || *out.SubjectFromWebIdentityToken != "system:serviceaccount:shop:orders" {
				t.Errorf("%+v", issued)
			}
			if !slices.Contains(f.Secrets(), token) {
				t.Error("the token is not among the secrets")
			}
		})
	}
}

func wantErrorPart(t *testing.T, err error, status int, code, part string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("StatusCode: %d", status)) || !strings.Contains(err.Error(), code) || !strings.Contains(err.Error(), part) {
		t.Errorf("got %v, want %d %s %q", err, status, code, part)
	}
}

// Tags and source identity come from the claims, as AWS documents them, where the role allows it.
func TestTagsOfTokens(t *testing.T) {
	i := newIssuer(t)
	f, try := newVerifying(t, i, irsa(func(trust *fakests.Trust) {
		trust.TagSession, trust.SetSourceIdentity = true, true
		trust.StringLike = map[string][]string{"aws:RequestTag/Department": {"Eng*"}}
	}))
	tags := func(principal, transitive any) map[string]any {
		return map[string]any{
			"https://aws.amazon.com/tags":            map[string]any{"principal_tags": principal, "transitive_tag_keys": transitive},
			"https://aws.amazon.com/source_identity": "DiegoRamirez",
		}
	}
	good := map[string]any{"Project": []string{"Automation"}, "Department": []string{"Engineering"}}
	out, err := try(i.token(t, nil, tags(good, []string{"Project"})))
	if err != nil {
		t.Fatal(err)
	}
	issued, _ := f.Issued(*out.Credentials.AccessKeyId)
	if want := []fakests.Tag{{Key: "Department", Value: "Engineering"}, {Key: "Project", Value: "Automation"}}; !slices.Equal(issued.Tags, want) ||
		!slices.Equal(issued.Transitive, []string{"Project"}) || issued.SourceIdentity != "DiegoRamirez" {
		t.Errorf("%+v", issued)
	}
	for name, claims := range map[string]map[string]any{
		"two values":         tags(map[string]any{"Department": []string{"Engineering", "Sales"}}, nil),
		"no tag of that key": tags(good, []string{"Cost"}),
		"twice":              tags(map[string]any{"Department": []string{"Engineering"}, "department": []string{"Engineering"}}, nil),
		"AWS's":              tags(map[string]any{"aws:Department": []string{"Engineering"}}, nil),
		"too long":           tags(map[string]any{"Department": []string{strings.Repeat("E", 257)}}, nil),
		"another department": tags(map[string]any{"Department": []string{"Sales"}}, nil),
		"characters":         tags(map[string]any{"Department": []string{"Eng;"}}, nil),
	} {
		if _, err := try(i.token(t, nil, claims)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// What keeps AWS from verifying, and a key that is new where the documents were read before.
func TestIssuersDocuments(t *testing.T) {
	i := newIssuer(t)
	_, try := newVerifying(t, i, irsa())
	token := i.token(t, nil, nil)
	for name, change := range map[string]func(){
		"status":       func() { i.status = http.StatusForbidden },
		"other issuer": func() { i.discovery["issuer"] = issuerURL + "/" },
		"no claims":    func() { delete(i.discovery, "claims_supported") },
		"no keys":      func() { i.keys = nil },
		"key ID twice": func() { i.keys = append(i.keys, i.keys[0]) },
		"small key":    func() { i.keys[0]["n"] = base64.RawURLEncoding.EncodeToString(big.NewInt(1 << 60).Bytes()) },
	} {
		t.Run(name, func(t *testing.T) {
			discovery, keys := maps.Clone(i.discovery), []map[string]any{maps.Clone(i.keys[0])}
			i.change(change)
			_, err := try(token)
			wantErrorPart(t, err, 400, "InvalidIdentityToken", "")
			i.change(func() { i.discovery, i.keys, i.status = discovery, keys, http.StatusOK })
			if _, err := try(token); err != nil {
				t.Error(err)
			}
		})
	}
	f := fakests.New(fakests.Config{Issuers: &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return nil, net.ErrClosed
	}}}})
	f.AddOIDCProvider(fakests.OIDCProvider{Account: "123456789012", URL: issuerURL, ClientIDs: []string{"sts.amazonaws.com"}})
	_, err := client(start(t, f), "", "", "").AssumeRoleWithWebIdentity(t.Context(), &sts.AssumeRoleWithWebIdentityInput{
		RoleArn: aws.String(roleARN), RoleSessionName: aws.String("shop@orders"), WebIdentityToken: aws.String(token),
	})
	wantErrorPart(t, err, 400, "IDPCommunicationError", "")
}

func TestKeysAreKept(t *testing.T) {
	i := newIssuer(t)
	f := fakests.New(fakests.Config{Issuers: i.client, KeysFor: time.Hour})
	f.AddRole(fakests.Role{ARN: roleARN, Trust: irsa()})
	f.AddOIDCProvider(fakests.OIDCProvider{Account: "123456789012", URL: issuerURL, ClientIDs: []string{"sts.amazonaws.com"}})
	c := client(start(t, f), "", "", "")
	try := func(kid string) error {
		_, err := c.AssumeRoleWithWebIdentity(t.Context(), &sts.AssumeRoleWithWebIdentityInput{
			RoleArn: aws.String(roleARN), RoleSessionName: aws.String("shop@orders"), WebIdentityToken: aws.String(i.token(t, map[string]any{"kid": kid}, nil)),
		})
		return err
	}
	if err := try("k1"); err != nil {
		t.Fatal(err)
	}
	i.change(func() {
		second := maps.Clone(i.keys[0])
		second["kid"] = "k2"
		i.keys = append(i.keys, second)
	})
	wantErrorPart(t, try("k2"), 400, "InvalidIdentityToken", noKey)
	// AWS's clock is another matter: it does not make the keys older.
	f.SetClock(-2 * time.Minute)
	wantErrorPart(t, try("k1"), 400, "InvalidIdentityToken", "not valid yet")
	f.SetClock(9 * time.Minute)
	if err := try("k1"); err != nil {
		t.Error(err)
	}
	f.SetClock(11 * time.Minute)
	wantErrorPart(t, try("k1"), 400, "ExpiredTokenException", "")
}
