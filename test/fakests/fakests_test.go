package fakests_test

import (
	"errors"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/iam4kube/iam4kube/test/fakests"
)

const (
	roleARN   = "arn:aws:iam::123456789012:role/teams/blue/reader"
	nodeRole  = "arn:aws:iam::111122223333:role/node"
	serverARN = "arn:aws:iam::111122223333:user/iam4kube"
)

var serverKey = fakests.Key{
	AccessKeyID:     "AKIAIOSFODNN7EXAMPLE",
	SecretAccessKey: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
	ARN:             serverARN,
}

// newFake has one user, and one role that trusts it without further conditions.
func newFake() *fakests.Fake {
	f := fakests.New(fakests.Config{})
	f.AddKey(serverKey)
	f.AddRole(fakests.Role{ARN: roleARN, Trust: fakests.Trust{Principals: []string{serverARN}}})
	return f
}

func start(t *testing.T, f *fakests.Fake) *fakests.Server {
	t.Helper()
	server := f.Start()
	t.Cleanup(server.Close)
	return server
}

// client is the real STS client of aws-sdk-go-v2 without retries.
func client(server *fakests.Server, id, secret, token string) *sts.Client {
	return sts.New(sts.Options{
		Region:       "us-east-1",
		BaseEndpoint: aws.String(server.URL),
		HTTPClient:   server.Client(),
		Retryer:      aws.NopRetryer{},
		Credentials:  credentials.NewStaticCredentialsProvider(id, secret, token),
	})
}

func serverClient(server *fakests.Server) *sts.Client {
	return client(server, serverKey.AccessKeyID, serverKey.SecretAccessKey, "")
}

func issuedClient(server *fakests.Server, i fakests.Issued) *sts.Client {
	return client(server, i.AccessKeyID, i.SecretAccessKey, i.SessionToken)
}

func assume(t *testing.T, c *sts.Client, change ...func(*sts.AssumeRoleInput)) (*sts.AssumeRoleOutput, error) {
	t.Helper()
	in := &sts.AssumeRoleInput{RoleArn: aws.String(roleARN), RoleSessionName: aws.String("default@reader")}
	for _, c := range change {
		c(in)
	}
	return c.AssumeRole(t.Context(), in)
}

// wantError checks status, code and message as the SDK read them.
func wantError(t *testing.T, err error, status int, code, message string) {
	t.Helper()
	var api smithy.APIError
	var response *smithyhttp.ResponseError
	if !errors.As(err, &api) || !errors.As(err, &response) {
		t.Fatalf("got %v, want the API error %s", err, code)
	}
	if response.HTTPStatusCode() != status || api.ErrorCode() != code || api.ErrorMessage() != message {
		t.Errorf("got  %d %s %q\nwant %d %s %q", response.HTTPStatusCode(), api.ErrorCode(), api.ErrorMessage(), status, code, message)
	}
}

func TestAssumeRoleIssuesCredentials(t *testing.T) {
	f := newFake()
	server := start(t, f)
	before := time.Now().Truncate(time.Second)
	out, err := assume(t, serverClient(server), func(in *sts.AssumeRoleInput) {
		in.ExternalId = aws.String("not:asked-for")
		in.DurationSeconds = aws.Int32(900)
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ value, pattern string }{
		"AccessKeyId":     {*out.Credentials.AccessKeyId, `^ASIA[A-Z2-7]{16}$`},
		"SecretAccessKey": {*out.Credentials.SecretAccessKey, `^[A-Za-z0-9+/]{40}$`},
		"SessionToken":    {*out.Credentials.SessionToken, `^[A-Za-z0-9+/=]{800,}$`},
		"Arn":             {*out.AssumedRoleUser.Arn, `^arn:aws:sts::123456789012:assumed-role/reader/default@reader$`},
		"AssumedRoleId":   {*out.AssumedRoleUser.AssumedRoleId, `^AROA[A-Z0-9]{17}:default@reader$`},
	} {
		if !regexp.MustCompile(c.pattern).MatchString(c.value) {
			t.Errorf("%s is %q, want %s", name, c.value, c.pattern)
		}
	}
	if life := out.Credentials.Expiration.Sub(before); life < 900*time.Second || life > 930*time.Second {
		t.Errorf("expires %v after the call, want 900s", life)
	}

	issued, ok := f.Issued(*out.Credentials.AccessKeyId)
	if !ok {
		t.Fatal("the credentials are not recorded")
	}
	if issued.RoleARN != roleARN || issued.SessionName != "default@reader" || issued.ExternalID != "not:asked-for" ||
		issued.CallerARN != serverARN || issued.ARN() != *out.AssumedRoleUser.Arn ||
		issued.SecretAccessKey != *out.Credentials.SecretAccessKey || !issued.Expiration.Equal(*out.Credentials.Expiration) {
		t.Errorf("recorded %+v", issued)
	}
	if _, ok := f.Issued("ASIAAAAAAAAAAAAAAAAA"); ok {
		t.Error("credentials that were never issued are known")
	}
}

func TestSecretsAreAllThatMustNotLeak(t *testing.T) {
	f := newFake()
	f.AddWebIdentity("header.claims.signature", fakests.WebIdentity{})
	out, err := assume(t, serverClient(start(t, f)))
	if err != nil {
		t.Fatal(err)
	}
	f.RemoveKey(serverKey.AccessKeyID) // a secret that leaks later is still a leak
	secrets := map[string]bool{}
	for _, s := range f.Secrets() {
		secrets[s] = true
	}
	for _, want := range []string{serverKey.SecretAccessKey, *out.Credentials.SecretAccessKey, *out.Credentials.SessionToken, "header.claims.signature"} {
		if !secrets[want] {
			t.Errorf("%q is missing", want)
		}
	}
	if len(secrets) != 4 {
		t.Errorf("%d secrets, want 4", len(secrets))
	}
}

func TestFindSecret(t *testing.T) {
	f := newFake()
	f.AddWebIdentity("short", fakests.WebIdentity{})
	f.AddWebIdentity("another, that ends as "+serverKey.SecretAccessKey, fakests.WebIdentity{})
	if _, err := assume(t, serverClient(start(t, f))); err != nil {
		t.Fatal(err)
	}
	for _, secret := range f.Secrets() {
		for text, begin := range map[string]int{secret: 0, "before " + secret: 7, secret + " after": 0} {
			// A secret that ends as another one is found by either.
			if at, length := f.FindSecret(text); length == 0 || at < begin || at+length != begin+len(secret) {
				t.Errorf("%q: %d bytes at %d, want %d at %d", text, length, at, len(secret), begin)
			}
		}
		for _, text := range []string{secret[:len(secret)-1], secret[:3] + " " + secret[3:]} {
			if strings.HasSuffix(text, serverKey.SecretAccessKey) {
				continue
			}
			if at, length := f.FindSecret(text); length > 0 {
				t.Errorf("%q is in %q", text[at:at+length], text)
			}
		}
	}
}

func TestExpirationWithFractionalSeconds(t *testing.T) {
	for fractional, c := range map[bool]struct{ text, parsed string }{
		false: {"<Expiration>2000-01-01T01:00:00Z</Expiration>", "2000-01-01T01:00:00Z"},
		true:  {"<Expiration>2000-01-01T01:00:00.250Z</Expiration>", "2000-01-01T01:00:00.25Z"},
	} {
		synctest.Test(t, func(t *testing.T) { // begins at 2000-01-01T00:00:00Z
			time.Sleep(250 * time.Millisecond) //nolint:forbidigo // advances the clock of the bubble
			f := fakests.New(fakests.Config{FractionalSeconds: fractional})
			f.AddKey(serverKey)
			f.AddRole(fakests.Role{ARN: roleARN, Trust: fakests.Trust{Principals: []string{"*"}}})
			server := f.StartPipe()
			defer server.Close()
			if r := post(t, server, assumeForm(), nil); r.status != http.StatusOK || !strings.Contains(r.body, c.text) {
				t.Errorf("want %s in %d %s", c.text, r.status, r.body)
			}
			out, err := assume(t, serverClient(server))
			if err != nil {
				t.Fatal(err)
			}
			issued, _ := f.Issued(*out.Credentials.AccessKeyId)
			if got := out.Credentials.Expiration.Format(time.RFC3339Nano); got != c.parsed || !issued.Expiration.Equal(*out.Credentials.Expiration) {
				t.Errorf("the SDK reads %s, recorded is %v, want %s", got, issued.Expiration, c.parsed)
			}
		})
	}
}

func TestGetCallerIdentity(t *testing.T) {
	f := newFake()
	server := start(t, f)
	session := f.IssueSession(nodeRole, "i-0abc", time.Hour)
	root := fakests.Key{AccessKeyID: "AKIAROOT", SecretAccessKey: "root-secret", ARN: "arn:aws:iam::111122223333:root"}
	f.AddKey(root)
	for name, c := range map[string]struct {
		client               *sts.Client
		arn, account, userID string
	}{
		"user":         {serverClient(server), serverARN, "111122223333", `^AIDA[A-Z0-9]{17}$`},
		"role session": {issuedClient(server, session), "arn:aws:sts::111122223333:assumed-role/node/i-0abc", "111122223333", `^AROA[A-Z0-9]{17}:i-0abc$`},
		"root":         {client(server, root.AccessKeyID, root.SecretAccessKey, ""), root.ARN, "111122223333", `^111122223333$`},
	} {
		out, err := c.client.GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if *out.Arn != c.arn || *out.Account != c.account || !regexp.MustCompile(c.userID).MatchString(*out.UserId) {
			t.Errorf("%s: got %s %s %s", name, *out.Arn, *out.Account, *out.UserId)
		}
	}
}

func TestIssuedCredentialsAreAnIdentity(t *testing.T) {
	f := newFake()
	server := start(t, f)
	f.AddRole(fakests.Role{ARN: nodeRole, Trust: fakests.Trust{Principals: []string{roleARN}}})
	first, err := assume(t, serverClient(server))
	if err != nil {
		t.Fatal(err)
	}
	issued, _ := f.Issued(*first.Credentials.AccessKeyId)
	second, err := assume(t, issuedClient(server, issued), func(in *sts.AssumeRoleInput) { in.RoleArn = aws.String(nodeRole) })
	if err != nil {
		t.Fatal(err)
	}
	if chained, _ := f.Issued(*second.Credentials.AccessKeyId); chained.CallerARN != *first.AssumedRoleUser.Arn {
		t.Errorf("the caller is %s, want %s", chained.CallerARN, *first.AssumedRoleUser.Arn)
	}
}

func TestSetUpMistakesPanic(t *testing.T) {
	f := fakests.New(fakests.Config{Region: "cn-north-1"})
	f.AddRole(fakests.Role{ARN: "arn:aws-cn:iam::123456789012:role/reader"})
	for name, add := range map[string]func(){
		"role of another partition": func() { f.AddRole(fakests.Role{ARN: roleARN}) },
		"no role":                   func() { f.AddRole(fakests.Role{ARN: serverARN}) },
		"duration under an hour": func() {
			f.AddRole(fakests.Role{ARN: "arn:aws-cn:iam::123456789012:role/r", MaxSessionDuration: 900})
		},
		"key without a secret": func() { f.AddKey(fakests.Key{AccessKeyID: "AKIA", ARN: serverARN}) },
		"key of a role":        func() { f.AddKey(fakests.Key{AccessKeyID: "AKIA", SecretAccessKey: "s", ARN: roleARN}) },
		"session of no role":   func() { f.IssueSession(serverARN, "s", time.Hour) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			add()
		}()
	}
}

func TestLoad(t *testing.T) {
	f := fakests.New(fakests.Config{})
	err := f.Load([]byte(`{
		"keys":  [{"accessKeyID": "AKIAIOSFODNN7EXAMPLE", "secretAccessKey": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "arn": "` + serverARN + `"}],
		"roles": [{"arn": "` + roleARN + `", "maxSessionDuration": 7200, "trust": {"principals": ["` + serverARN + `"], "externalID": "e1", "sessionNames": ["default@*"]}}]
	}`))
	if err != nil {
		t.Fatal(err)
	}
	server := start(t, f)
	if _, err := assume(t, serverClient(server)); err == nil {
		t.Error("the external ID was not loaded")
	}
	if _, err := assume(t, serverClient(server), func(in *sts.AssumeRoleInput) {
		in.ExternalId, in.DurationSeconds = aws.String("e1"), aws.Int32(7200)
	}); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{`{`, `{"roles": [{"arn": "x"}]}`, `{"keys": [{"arn": "x"}]}`} {
		if f.Load([]byte(bad)) == nil {
			t.Errorf("%s was accepted", bad)
		}
	}
}
