package sts

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/iam4kube/iam4kube/internal/server/role"
)

// No verb of fmt, no encoder and no logger shows a Secret; Reveal does.
func TestSecretIsNeverShown(t *testing.T) {
	const content = "never-to-be-seen"
	secret := Secret(content)
	if secret.Reveal() != content || secret.String() != redacted {
		t.Errorf("%q, %q", secret.Reveal(), secret.String())
	}
	in := struct{ S Secret }{secret}
	for _, value := range []any{secret, &secret, in, &in, []Secret{secret}, map[string]Secret{"key": secret}, Credentials{SecretAccessKey: secret}} {
		texts := map[string]string{}
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%10.3s", "%q", "%x", "% x", "%X", "%d", "%t", "%c", "%U", "%o", "%b", "%e", "%z", "%T"} {
			texts[verb] = fmt.Sprintf(verb, value)
		}
		encoded, err := json.Marshal(value)
		if err != nil {
			t.Error(err)
		}
		texts["JSON"] = string(encoded)
		entry, err := zapcore.NewJSONEncoder(zapcore.EncoderConfig{}).EncodeEntry(zapcore.Entry{}, []zapcore.Field{zap.Any("any", value), zap.Reflect("reflect", value)})
		if err != nil {
			t.Error(err)
		}
		texts["zap"] = entry.String()
		for how, text := range texts {
			if strings.Contains(text, content) || strings.Contains(strings.ToLower(text), fmt.Sprintf("%x", content)) {
				t.Errorf("%T by %s: %s", value, how, text)
			}
		}
	}
}

func TestRegion(t *testing.T) {
	var host string
	e := &endpoint{answer: func(r *http.Request) (int, string) {
		host = r.URL.Host
		return success("2999-01-01T00:00:00Z")(r)
	}}
	setenv(t, map[string]string{"AWS_REGION": ""})
	_, err := New(t.Context(), NewLimiter(10, 20), "", prometheus.NewRegistry())
	if err == nil || !strings.Contains(err.Error(), "AWS_REGION") || !strings.Contains(err.Error(), "--region") {
		t.Errorf("without a region: %v", err)
	}
	for configured, want := range map[string]string{"": "sts.eu-central-1.amazonaws.com", "cn-north-1": "sts.cn-north-1.amazonaws.com.cn"} {
		t.Setenv("AWS_REGION", configured)
		client, err := New(t.Context(), NewLimiter(10, 20), "eu-central-1", prometheus.NewRegistry(), withHTTPClient(e))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.AssumeRole(t.Context(), anyRole); err != nil || host != want {
			t.Errorf("%q: %v from %s, want %s", configured, err, host, want)
		}
	}
}

// refused is the metric that says so of the server's own credentials.
func refused(t *testing.T, c *Client) float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(c.metrics.refused)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return families[0].GetMetric()[0].GetGauge().GetValue()
}

// Whom STS takes the server for, or why that cannot be learnt, and what the metric says of it.
func TestGetCallerIdentity(t *testing.T) {
	const arn = "arn:aws:iam::999988887777:user/iam4kube"
	setenv(t, nil)
	answer := failure(403, "InvalidClientTokenId", "The security token included in the request is invalid. token-never-to-be-seen")
	client := newClient(t, &endpoint{answer: func(r *http.Request) (int, string) { return answer(r) }})
	_, err := client.GetCallerIdentity(t.Context())
	var failed *Error
	if !errors.As(err, &failed) || failed.Kind != Identity || strings.Contains(err.Error(), "never-to-be-seen") || refused(t, client) != 1 {
		t.Errorf("%v", err)
	}
	answer = func(*http.Request) (int, string) {
		return http.StatusOK, "<GetCallerIdentityResponse><GetCallerIdentityResult><Arn>" + arn + "</Arn><UserId>AIDA</UserId><Account>999988887777</Account></GetCallerIdentityResult></GetCallerIdentityResponse>"
	}
	self, err := client.GetCallerIdentity(t.Context())
	if want := (Self{ARN: arn, Account: "999988887777", Region: "eu-west-1"}); err != nil || *self != want || refused(t, client) != 0 {
		t.Errorf("%v, %v, want %v", self, err, want)
	}
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	_, err = newClient(t, &endpoint{answer: answer}).GetCallerIdentity(t.Context())
	if !errors.As(err, &failed) || failed.Kind != Identity || failed.Cause == nil {
		t.Errorf("without credentials: %v", err)
	}
}

// GetCallerIdentity is a request to STS like any other.
func TestLimiterCountsGetCallerIdentity(t *testing.T) {
	setenv(t, nil)
	synctest.Test(t, func(t *testing.T) {
		e := &endpoint{answer: failure(http.StatusForbidden, "AccessDenied", "no")}
		client, err := New(t.Context(), NewLimiter(1, 1), "", prometheus.NewRegistry(), withHTTPClient(e))
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if _, err := client.GetCallerIdentity(t.Context()); err == nil {
				t.Error("no error")
			}
		}
		if len(e.times) != 3 {
			t.Errorf("%d requests", len(e.times))
		}
		checkWindows(t, e.times, 1, 1)
	})
}

// CloudTrail says which program asked.
func TestUserAgent(t *testing.T) {
	setenv(t, nil)
	var agent string
	client := newClient(t, &endpoint{answer: func(r *http.Request) (int, string) {
		agent = r.UserAgent()
		return success("2999-01-01T00:00:00Z")(r)
	}})
	if _, err := client.AssumeRole(t.Context(), anyRole); err != nil || !strings.Contains(agent, " iam4kube-server/unreleased") {
		t.Errorf("%v by %q", err, agent)
	}
}

// What STS says, and how it is sorted.
func TestClassify(t *testing.T) {
	setenv(t, nil)
	// The message of AWS, as its users reported it.
	const canonical = "The request signature we calculated does not match the signature you provided. The Canonical String for this request should have been " +
		"'POST\n/\n\nhost:sts.eu-west-1.amazonaws.com\nx-amz-security-token:token-never-to-be-seen\n'"
	for _, tc := range []struct {
		name   string
		answer func(*http.Request) (int, string)
		kind   Kind
		says   string
	}{
		{"denied", failure(403, "AccessDenied", "User: a is not authorized"), Denied, "AccessDenied: User: a is not authorized"},
		{"invalid", failure(400, "ValidationError", "Request ARN is invalid"), Denied, "ValidationError: Request ARN is invalid"},
		{"throttled", failure(400, "Throttling", "Rate exceeded"), Throttled, "Throttling: Rate exceeded"},
		{"unknown code, throttled", failure(429, "SlowDown", "slower"), Throttled, "SlowDown: slower"},
		{"unreadable, throttled", func(*http.Request) (int, string) { return 429, "too many" }, Throttled, "STS answered HTTP status 429"},
		{"expired", failure(403, "ExpiredToken", canonical), Identity, "ExpiredToken: STS refuses the server's own AWS credentials"},
		{"signature", failure(403, "SignatureDoesNotMatch", canonical), Identity, "SignatureDoesNotMatch: STS refuses the server's own AWS credentials"},
		{"incomplete signature", failure(400, "IncompleteSignature", canonical), Identity, "IncompleteSignature: STS refuses the server's own AWS credentials"},
		{"key", failure(403, "InvalidClientTokenId", canonical), Identity, "InvalidClientTokenId: STS refuses the server's own AWS credentials"},
		{"region, role's account", failure(403, "RegionDisabledException", "STS is not activated in this region for account:123456789012."), Denied, "RegionDisabledException: STS is not activated in this region for account:123456789012."},
		{"region, no account", failure(403, "RegionDisabledException", "STS is not activated in this region."), Denied, "RegionDisabledException: STS is not activated in this region."},
		{"region, server's account", failure(403, "RegionDisabledException", "STS is not activated in this region for account:999988887777."), Identity, "RegionDisabledException: STS is not activated in this region for the server's account"},
		{"broken", failure(500, "InternalFailure", "unknown error"), Unavailable, "InternalFailure: unknown error"},
		{"unknown code", failure(400, "SomethingNew", "text"), Unavailable, "SomethingNew: text"},
		{"text", func(*http.Request) (int, string) { return 504, "Gateway Timeout" }, Unavailable, "STS gave no readable answer, HTTP status 504"},
		{"proxy", func(*http.Request) (int, string) { return 502, "<html><body>Bad Gateway</p>" }, Unavailable, "502"},
		{"expired at once", success("2001-01-01T00:00:00Z"), Unavailable, "expired at 2001-01-01T00:00:00Z"},
		{"no time", success("soon"), Unavailable, "no readable answer"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := newClient(t, &endpoint{answer: tc.answer}).AssumeRole(t.Context(), anyRole)
			var failure *Error
			if !errors.As(err, &failure) || failure.Kind != tc.kind || !strings.Contains(failure.Error(), tc.says) {
				t.Fatalf("%v, want %s and %q", err, tc.kind, tc.says)
			}
			if text := fmt.Sprintf("%v %+v %#v", failure, failure, failure); strings.Contains(text, "never-to-be-seen") {
				t.Errorf("a secret is in %s", text)
			}
		})
	}
}

// A fraction of a second, which some STS-compatible services send, is read.
func TestExpirationWithFraction(t *testing.T) {
	setenv(t, nil)
	issued, err := newClient(t, &endpoint{answer: success("2999-01-02T03:04:05.678Z")}).AssumeRole(t.Context(), anyRole)
	if err != nil || !issued.Expiration.Equal(time.Date(2999, 1, 2, 3, 4, 5, 678e6, time.UTC)) {
		t.Errorf("%v, %v", issued, err)
	}
}

// Only the error of role chaining gets the hint.
func TestRoleChainingIsExplained(t *testing.T) {
	setenv(t, nil)
	for message, explained := range map[string]bool{
		"The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining.": true,
		"The requested DurationSeconds exceeds the MaxSessionDuration set for this role.":                    false,
	} {
		_, err := newClient(t, &endpoint{answer: failure(400, "ValidationError", message)}).AssumeRole(t.Context(), anyRole)
		if err == nil || strings.Contains(err.Error(), role.AnnotationDuration) != explained || !strings.Contains(err.Error(), message) {
			t.Errorf("%v", err)
		}
	}
}

// What a credential_process prints may be secret, also where it cannot be read.
func TestCredentialProcess(t *testing.T) {
	for name, tc := range map[string]struct{ command, says string }{
		"unreadable": {`echo "warning: {secret-never-to-be-seen}"`, "invalid character"},
		"incomplete": {`echo '{"Version":1,"AccessKeyId":"AKIA2222222222222222"}'`, "SecretAccessKey"},
		"fails":      {`sh -c 'echo secret-never-to-be-seen; exit 3'`, "exit status 3"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config")
			if err := os.WriteFile(path, []byte("[default]\ncredential_process = "+tc.command+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			setenv(t, map[string]string{"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_CONFIG_FILE": path})
			client := newClient(t, &endpoint{answer: success("2999-01-01T00:00:00Z")})
			ctx, err := client.Admit(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			_, err = client.AssumeRole(ctx, anyRole)
			var failure *Error
			if !errors.As(err, &failure) || failure.Kind != Identity || failure.Cause == nil {
				t.Fatalf("%v", err)
			}
			if cause := failure.Cause.Error(); !strings.Contains(cause, tc.says) || strings.Contains(cause, "never-to-be-seen") {
				t.Errorf("%s", cause)
			}
			if strings.Contains(failure.Error(), tc.says) {
				t.Errorf("pods get to see %s", failure)
			}
		})
	}
}
