package sts

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/iam4kube/iam4kube/internal/server/role"
)

// tokens hands out one token, or none.
type tokens struct{ none error }

func (k tokens) Wait(ctx context.Context) error {
	if k.none != nil {
		<-ctx.Done()
	}
	return k.none
}

func (k tokens) Token(role.Role) (string, error) { return "token-never-to-be-seen", k.none }
func (tokens) URL() string                       { return "https://issuer.example/a" }

func newWebClient(t *testing.T, e *endpoint, k tokens) *Client {
	t.Helper()
	client, err := NewWithWebIdentity(t.Context(), NewLimiter(10, 20), "", k, prometheus.NewRegistry(), config.WithHTTPClient(e))
	if err != nil {
		t.Fatal(err)
	}
	return client
}

var tagged = role.Role{
	ARN: "arn:aws:iam::123456789012:role/app", SessionName: "ns@app", Duration: 12 * time.Hour, Namespace: "ns", ServiceAccount: "app",
	PolicyARNs: "arn:aws:iam::aws:policy/ReadOnlyAccess", Tags: "a=b", SourceIdentity: "ns@app",
}

// What is sent is unsigned, although there are credentials in the environment, and the SDK asks
// nobody else: not the metadata service either, which nothing here turns off.
func TestWebIdentityIsUnsigned(t *testing.T) {
	for name, more := range map[string]map[string]string{
		"credentials at hand":      {},
		"none":                     {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
		"half of another identity": {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_WEB_IDENTITY_TOKEN_FILE": "/none"},
		"an agent that is nowhere": {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://nowhere.example"},
	} {
		t.Run(name, func(t *testing.T) {
			setenv(t, map[string]string{"AWS_EC2_METADATA_DISABLED": ""})
			for variable, value := range more {
				t.Setenv(variable, value)
			}
			var sent []*http.Request
			var form url.Values
			e := &endpoint{answer: func(r *http.Request) (int, string) {
				sent = append(sent, r)
				if err := r.ParseForm(); err != nil {
					t.Error(err)
				}
				form = r.PostForm
				status, body := success("2999-01-01T00:00:00Z")(r)
				return status, strings.ReplaceAll(body, "AssumeRole", "AssumeRoleWithWebIdentity")
			}}
			client := newWebClient(t, e, tokens{})
			ctx, err := client.Admit(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			got, err := client.AssumeRole(ctx, tagged)
			if err != nil || got.AccessKeyID != "ASIA2222222222222222" {
				t.Fatal(got, err)
			}
			if len(sent) != 1 || sent[0].URL.Host != "sts.eu-west-1.amazonaws.com" || sent[0].Header.Get("Authorization") != "" {
				t.Errorf("%d requests, the first: %v", len(sent), sent[0])
			}
			// Tags and source identity are in the token.
			want := url.Values{
				"Action": {"AssumeRoleWithWebIdentity"}, "Version": {"2011-06-15"}, "RoleArn": {tagged.ARN}, "RoleSessionName": {"ns@app"},
				"DurationSeconds": {"43200"}, "WebIdentityToken": {"token-never-to-be-seen"}, "PolicyArns.member.1.arn": {tagged.PolicyARNs},
			}
			if form.Encode() != want.Encode() {
				t.Errorf("sent %v, want %v", form, want)
			}
		})
	}
}

// Every request counts at the limiter, as those of AssumeRole do.
func TestLimiterCountsWebIdentity(t *testing.T) {
	setenv(t, nil)
	synctest.Test(t, func(t *testing.T) {
		e := &endpoint{answer: failure(http.StatusForbidden, "AccessDenied", "no")}
		client, err := NewWithWebIdentity(t.Context(), NewLimiter(1, 1), "", tokens{}, prometheus.NewRegistry(), withHTTPClient(e))
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if _, err := client.AssumeRole(t.Context(), anyRole); err == nil {
				t.Error("no error")
			}
		}
		if len(e.times) != 3 {
			t.Errorf("%d requests", len(e.times))
		}
		checkWindows(t, e.times, 1, 1)
	})
}

// Without a key nothing is sent, and that is nobody's fault but the operator's.
func TestNoKeyToSignWith(t *testing.T) {
	setenv(t, nil)
	synctest.Test(t, func(t *testing.T) {
		e := &endpoint{answer: success("2999-01-01T00:00:00Z")}
		none := errors.New("the Secret cannot be read")
		client, err := NewWithWebIdentity(t.Context(), NewLimiter(10, 20), "", tokens{none}, prometheus.NewRegistry(), withHTTPClient(e))
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		ctx, err := client.Admit(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(start); waited != attemptTimeout {
			t.Errorf("waited %v for a key", waited)
		}
		_, err = client.AssumeRole(ctx, anyRole)
		failure, ok := errors.AsType[*Error](err)
		if !ok || failure.Kind != Identity || !errors.Is(failure.Cause, none) || strings.Contains(failure.Error(), "Secret") || len(e.times) != 0 {
			t.Errorf("%v after %d requests", err, len(e.times))
		}
	})
}

// What STS says of tokens, as its users reported it, and how it is sorted: what is wrong in one
// account denies its roles, what is wrong with the issuer is the server's.
func TestClassifyWebIdentity(t *testing.T) {
	setenv(t, nil)
	for _, tc := range []struct {
		name   string
		answer func(*http.Request) (int, string)
		kind   Kind
		says   []string
	}{
		{"trust", failure(403, "AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity"), Denied, []string{
			"Not authorized to perform sts:AssumeRoleWithWebIdentity", "issuer.example/a:sub system:serviceaccount:ns:app", "issuer.example/a:aud sts.amazonaws.com", "sts:TagSession", "sts:SetSourceIdentity",
		}},
		{"no provider", failure(400, "InvalidIdentityToken", "No OpenIDConnect provider found in your account for https://issuer.example/a"), Denied, []string{"account 123456789012", "https://issuer.example/a"}},
		{"audience", failure(400, "InvalidIdentityToken", "Incorrect token audience"), Denied, []string{"account 123456789012", "sts.amazonaws.com"}},
		{"thumbprint", failure(400, "InvalidIdentityToken", "OpenIDConnect provider's HTTPS certificate doesn't match configured thumbprint"), Denied, []string{"account 123456789012", "https://issuer.example/a", "thumbprint"}},
		{"region", failure(403, "RegionDisabledException", "STS is not activated in this region for account:123456789012."), Denied, []string{"account:123456789012"}},
		{"keys", failure(400, "InvalidIdentityToken", "Couldn't retrieve verification key from your identity provider,  please reference AssumeRoleWithWebIdentity documentation for requirements"), Identity, []string{"Couldn't retrieve", "https://issuer.example/a/.well-known/openid-configuration", "server issuer"}},
		{"expired", failure(400, "ExpiredTokenException", "Token expired: current date/time 1 must be before the expiration date/time 0"), Identity, []string{"Token expired"}},
		{"slow", failure(400, "IDPCommunicationError", "An error occurred"), Unavailable, []string{"An error occurred", "https://issuer.example/a"}},
		{"duration", failure(400, "ValidationError", "The requested DurationSeconds exceeds the MaxSessionDuration set for this role."), Denied, []string{"MaxSessionDuration"}},
		{"throttled", failure(400, "Throttling", "Rate exceeded"), Throttled, []string{"Rate exceeded"}},
		{"broken", failure(500, "InternalFailure", "unknown error"), Unavailable, []string{"unknown error"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			client := newWebClient(t, &endpoint{answer: tc.answer}, tokens{})
			_, err := client.AssumeRole(t.Context(), tagged)
			failure, ok := errors.AsType[*Error](err)
			if !ok || failure.Kind != tc.kind || strings.Contains(err.Error(), "never-to-be-seen") || strings.Contains(err.Error(), "clock") {
				t.Fatalf("%v, want %s", err, tc.kind)
			}
			for _, part := range tc.says {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q does not say %q", err, part)
				}
			}
			if (failure.Cause != nil) != (tc.kind == Identity) {
				t.Errorf("cause %v", failure.Cause)
			}
			if want := map[bool]float64{true: 1}[tc.kind == Identity]; refused(t, client) != want {
				t.Errorf("the metric of a refused identity is %v", refused(t, client))
			}
		})
	}
}

// A clock that is off by minutes is named, whatever STS's text makes of it; seconds are not.
func TestClockIsNamed(t *testing.T) {
	setenv(t, nil)
	for off, says := range map[time.Duration]string{
		150 * time.Second: "ahead of that of STS by 2m", -150 * time.Second: "behind that of STS by 2m", 20 * time.Second: "", -20 * time.Second: "",
	} {
		e := &endpoint{answer: failure(400, "InvalidIdentityToken", "wrong"), header: http.Header{"Date": {time.Now().Add(-off).UTC().Format(http.TimeFormat)}}}
		_, err := newWebClient(t, e, tokens{}).AssumeRole(t.Context(), tagged)
		if err == nil || !strings.Contains(err.Error(), says) || (says == "") == strings.Contains(err.Error(), "clock") {
			t.Errorf("off by %v: %v", off, err)
		}
	}
}
