package fakests_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/aws-sdk-go-v2/service/sts/types"

	"github.com/iam4kube/iam4kube/test/fakests"
)

// The SDK's own validation would stop some of these, so the form is sent raw.
func TestParameters(t *testing.T) {
	f := newFake()
	server := start(t, f)
	const one, failed = "1 validation error detected: ", "' failed to satisfy constraint: Member must "
	for name, c := range map[string]struct {
		parameter string
		value     *string // nil: left out
		message   string  // empty: accepted
	}{
		"no role":             {"RoleArn", nil, one + "Value null at 'roleArn" + failed + "not be null"},
		"role too short":      {"RoleArn", aws.String("arn:aws:iam::1:role"), one + "Value 'arn:aws:iam::1:role' at 'roleArn" + failed + "have length greater than or equal to 20"},
		"role too long":       {"RoleArn", aws.String(roleARN + strings.Repeat("x", 2048)), one + "Value '" + roleARN + strings.Repeat("x", 2048) + "' at 'roleArn" + failed + "have length less than or equal to 2048"},
		"role with NUL":       {"RoleArn", aws.String(roleARN + "\x00"), one + "Value '" + roleARN + "\uFFFD' at 'roleArn" + failed + `satisfy regular expression pattern: [\u0009\u000A\u000D\u0020-\u007E\u0085\u00A0-\uD7FF\uE000-\uFFFD\u10000-\u10FFFF]+`},
		"no ARN":              {"RoleArn", aws.String("reader-role-in-blue-team"), "Request ARN is invalid"},
		"user's ARN":          {"RoleArn", aws.String("arn:aws:iam::123456789012:user/reader"), "Request ARN is invalid"},
		"account of 11":       {"RoleArn", aws.String("arn:aws:iam::12345678901:role/reader"), "Request ARN is invalid"},
		"region in the ARN":   {"RoleArn", aws.String("arn:aws:iam:us-east-1:123456789012:role/reader"), "Request ARN is invalid"},
		"name of 65":          {"RoleArn", aws.String("arn:aws:iam::123456789012:role/" + strings.Repeat("x", 65)), "Request ARN is invalid"},
		"no session name":     {"RoleSessionName", nil, one + "Value null at 'roleSessionName" + failed + "not be null"},
		"session name of 1":   {"RoleSessionName", aws.String("s"), one + "Value 's' at 'roleSessionName" + failed + "have length greater than or equal to 2"},
		"session name of 2":   {"RoleSessionName", aws.String("s1"), ""},
		"session name of 64":  {"RoleSessionName", aws.String(strings.Repeat("s", 64)), ""},
		"session name of 65":  {"RoleSessionName", aws.String(strings.Repeat("s", 65)), one + "Value '" + strings.Repeat("s", 65) + "' at 'roleSessionName" + failed + "have length less than or equal to 64"},
		"session name all":    {"RoleSessionName", aws.String("aZ09_+=,.@-"), ""},
		"session name slash":  {"RoleSessionName", aws.String("default/reader"), one + "Value 'default/reader' at 'roleSessionName" + failed + `satisfy regular expression pattern: [\w+=,.@-]*`},
		"session name colon":  {"RoleSessionName", aws.String("default:reader"), one + "Value 'default:reader' at 'roleSessionName" + failed + `satisfy regular expression pattern: [\w+=,.@-]*`},
		"session name umlaut": {"RoleSessionName", aws.String("défault"), one + "Value 'défault' at 'roleSessionName" + failed + `satisfy regular expression pattern: [\w+=,.@-]*`},
		"session name line":   {"RoleSessionName", aws.String("default\n"), one + "Value 'default\n' at 'roleSessionName" + failed + `satisfy regular expression pattern: [\w+=,.@-]*`},
		"external ID empty":   {"ExternalId", aws.String(""), one + "Value '' at 'externalId" + failed + "have length greater than or equal to 2"},
		"external ID of 1":    {"ExternalId", aws.String("e"), one + "Value 'e' at 'externalId" + failed + "have length greater than or equal to 2"},
		"external ID of 1224": {"ExternalId", aws.String(strings.Repeat("e", 1224)), ""},
		"external ID of 1225": {"ExternalId", aws.String(strings.Repeat("e", 1225)), one + "Value '" + strings.Repeat("e", 1225) + "' at 'externalId" + failed + "have length less than or equal to 1224"},
		"external ID all":     {"ExternalId", aws.String("aZ09_+=,.@:/-"), ""},
		"external ID space":   {"ExternalId", aws.String("e f"), one + "Value 'e f' at 'externalId" + failed + `satisfy regular expression pattern: [\w+=,.@:\/-]*`},
		"duration 899":        {"DurationSeconds", aws.String("899"), one + "Value '899' at 'durationSeconds" + failed + "have value greater than or equal to 900"},
		"duration 900":        {"DurationSeconds", aws.String("900"), ""},
		"duration 43201":      {"DurationSeconds", aws.String("43201"), one + "Value '43201' at 'durationSeconds" + failed + "have value less than or equal to 43200"},
		"duration of a word":  {"DurationSeconds", aws.String("1h"), one + "Value '1h' at 'durationSeconds" + failed + "be an integer"},
		"duration empty":      {"DurationSeconds", aws.String(""), one + "Value '' at 'durationSeconds" + failed + "be an integer"},
	} {
		t.Run(name, func(t *testing.T) {
			form := assumeForm()
			form.Del(c.parameter)
			if c.value != nil {
				form.Set(c.parameter, *c.value)
			}
			r := post(t, server, form, nil)
			if c.message == "" {
				if r.status != http.StatusOK {
					t.Errorf("got %d %s", r.status, r.body)
				}
				return
			}
			if r.status != 400 || r.Code != "ValidationError" || r.Message != c.message {
				t.Errorf("got  %d %s %q\nwant 400 ValidationError %q", r.status, r.Code, r.Message, c.message)
			}
		})
	}
}

func TestAllViolationsAtOnce(t *testing.T) {
	form := assumeForm()
	form.Del("RoleArn")
	form.Set("RoleSessionName", "/")
	form.Set("DurationSeconds", "1")
	r := post(t, start(t, newFake()), form, nil)
	if !strings.HasPrefix(r.Message, "4 validation errors detected: Value null at 'roleArn'") || strings.Count(r.Message, "; Value ") != 3 {
		t.Errorf("got %q", r.Message)
	}
}

func TestTrust(t *testing.T) {
	f := fakests.New(fakests.Config{})
	f.AddKey(serverKey)
	server := start(t, f)
	session := f.IssueSession("arn:aws:iam::111122223333:role/path/node", "i-0abc", time.Hour)
	anybody := []string{"*"}
	asUser, asSession := serverClient(server), issuedClient(server, session)
	for name, c := range map[string]struct {
		trust      fakests.Trust
		client     *sts.Client
		externalID *string
		session    string
		denied     bool
	}{
		"nobody":                      {trust: fakests.Trust{}, denied: true},
		"user":                        {trust: fakests.Trust{Principals: []string{"arn:aws:iam::1:user/x", serverARN}}},
		"other user":                  {trust: fakests.Trust{Principals: []string{serverARN + "2"}}, denied: true},
		"everybody":                   {trust: fakests.Trust{Principals: anybody}},
		"account":                     {trust: fakests.Trust{Principals: []string{"arn:aws:iam::111122223333:root"}}},
		"account by its number":       {trust: fakests.Trust{Principals: []string{"111122223333"}}},
		"other account":               {trust: fakests.Trust{Principals: []string{"arn:aws:iam::123456789012:root"}}, denied: true},
		"role of a session":           {trust: fakests.Trust{Principals: []string{"arn:aws:iam::111122223333:role/path/node"}}, client: asSession},
		"role without its path":       {trust: fakests.Trust{Principals: []string{"arn:aws:iam::111122223333:role/node"}}, client: asSession, denied: true},
		"session":                     {trust: fakests.Trust{Principals: []string{"arn:aws:sts::111122223333:assumed-role/node/i-0abc"}}, client: asSession},
		"other session":               {trust: fakests.Trust{Principals: []string{"arn:aws:sts::111122223333:assumed-role/node/i-0def"}}, client: asSession, denied: true},
		"account of a session":        {trust: fakests.Trust{Principals: []string{"arn:aws:iam::111122223333:root"}}, client: asSession},
		"external ID":                 {trust: fakests.Trust{Principals: anybody, ExternalID: "E1"}, externalID: aws.String("E1")},
		"external ID wrong":           {trust: fakests.Trust{Principals: anybody, ExternalID: "E1"}, externalID: aws.String("e1"), denied: true},
		"external ID absent":          {trust: fakests.Trust{Principals: anybody, ExternalID: "E1"}, denied: true},
		"external ID not asked for":   {trust: fakests.Trust{Principals: anybody}, externalID: aws.String("E1")},
		"external ID, no principal":   {trust: fakests.Trust{ExternalID: "E1"}, externalID: aws.String("E1"), denied: true},
		"session name of namespace":   {trust: fakests.Trust{Principals: anybody, SessionNames: []string{"default@*"}}},
		"session name exact":          {trust: fakests.Trust{Principals: anybody, SessionNames: []string{"default@reader"}}},
		"session name second pattern": {trust: fakests.Trust{Principals: anybody, SessionNames: []string{"kube@*", "default@*"}}},
		"session name one character":  {trust: fakests.Trust{Principals: anybody, SessionNames: []string{"default@reade?"}}},
		"session name stolen":         {trust: fakests.Trust{Principals: anybody, SessionNames: []string{"default@*"}}, session: "evil@default@reader", denied: true},
		"session name case":           {trust: fakests.Trust{Principals: anybody, SessionNames: []string{"Default@*"}}, denied: true},
		"session name dot is a dot":   {trust: fakests.Trust{Principals: anybody, SessionNames: []string{"default.*"}}, denied: true},
		"session name longer":         {trust: fakests.Trust{Principals: anybody, SessionNames: []string{"default@reade"}}, denied: true},
		"web identities only":         {trust: fakests.Trust{WebIdentities: []string{"*"}}, denied: true},
	} {
		t.Run(name, func(t *testing.T) {
			f.AddRole(fakests.Role{ARN: roleARN, Trust: c.trust})
			caller, who := asUser, serverARN
			if c.client != nil {
				caller, who = c.client, session.ARN()
			}
			_, err := assume(t, caller, func(in *sts.AssumeRoleInput) {
				in.ExternalId = c.externalID
				if c.session != "" {
					in.RoleSessionName = aws.String(c.session)
				}
			})
			if !c.denied {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantError(t, err, 403, "AccessDenied", "User: "+who+" is not authorized to perform: sts:AssumeRole on resource: "+roleARN)
		})
	}
}

// A role that does not exist looks exactly like one that does not trust.
func TestUnknownRoleIsDenied(t *testing.T) {
	f := newFake()
	server := start(t, f)
	f.RemoveRole(roleARN)
	_, err := assume(t, serverClient(server))
	wantError(t, err, 403, "AccessDenied", "User: "+serverARN+" is not authorized to perform: sts:AssumeRole on resource: "+roleARN)
}

func TestRootUserAssumesNoRole(t *testing.T) {
	f := newFake()
	f.AddKey(fakests.Key{AccessKeyID: "AKIAROOT", SecretAccessKey: "s", ARN: "arn:aws:iam::111122223333:root"})
	_, err := assume(t, client(start(t, f), "AKIAROOT", "s", ""))
	wantError(t, err, 403, "AccessDenied", "Roles may not be assumed by root accounts.")
}

func TestDuration(t *testing.T) {
	const (
		chaining = "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining."
		tooLong  = "The requested DurationSeconds exceeds the MaxSessionDuration set for this role."
	)
	f := fakests.New(fakests.Config{})
	f.AddKey(serverKey)
	server := start(t, f)
	asUser, asSession := serverClient(server), issuedClient(server, f.IssueSession(nodeRole, "i-0abc", time.Hour))
	for name, c := range map[string]struct {
		client   *sts.Client
		max      int
		duration *int32
		life     time.Duration
		message  string
	}{
		"default":                   {client: asUser, max: 7200, life: time.Hour},
		"role's default":            {client: asUser, max: 0, duration: aws.Int32(3601), message: tooLong},
		"role's maximum":            {client: asUser, max: 7200, duration: aws.Int32(7200), life: 2 * time.Hour},
		"over the role's maximum":   {client: asUser, max: 7200, duration: aws.Int32(7201), message: tooLong},
		"twelve hours":              {client: asUser, max: 43200, duration: aws.Int32(43200), life: 12 * time.Hour},
		"chained, default":          {client: asSession, max: 43200, life: time.Hour},
		"chained, an hour":          {client: asSession, max: 43200, duration: aws.Int32(3600), life: time.Hour},
		"chained, over an hour":     {client: asSession, max: 43200, duration: aws.Int32(3601), message: chaining},
		"chained, over both limits": {client: asSession, max: 3600, duration: aws.Int32(7200), message: chaining},
	} {
		t.Run(name, func(t *testing.T) {
			f.AddRole(fakests.Role{ARN: roleARN, MaxSessionDuration: c.max, Trust: fakests.Trust{Principals: []string{"*"}}})
			before := time.Now().Truncate(time.Second)
			out, err := assume(t, c.client, func(in *sts.AssumeRoleInput) { in.DurationSeconds = c.duration })
			if c.message != "" {
				wantError(t, err, 400, "ValidationError", c.message)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if life := out.Credentials.Expiration.Sub(before); life < c.life || life > c.life+30*time.Second {
				t.Errorf("lives %v, want %v", life, c.life)
			}
		})
	}
}

// Whoever may not assume a role does not learn its maximum either.
func TestDeniedBeforeDuration(t *testing.T) {
	f := newFake()
	f.AddRole(fakests.Role{ARN: roleARN})
	_, err := assume(t, serverClient(start(t, f)), func(in *sts.AssumeRoleInput) { in.DurationSeconds = aws.Int32(43200) })
	wantError(t, err, 403, "AccessDenied", "User: "+serverARN+" is not authorized to perform: sts:AssumeRole on resource: "+roleARN)
}

func TestAssumeRoleWithWebIdentity(t *testing.T) {
	f := newFake()
	server := start(t, f)
	const subject, provider = "system:serviceaccount:iam4kube:iam4kube", "arn:aws:iam::111122223333:oidc-provider/oidc.example"
	f.AddWebIdentity("valid.token.1", fakests.WebIdentity{Provider: provider, Subject: subject, Audience: "sts.amazonaws.com", Expires: time.Now().Add(time.Hour)})
	f.AddWebIdentity("old.token.1", fakests.WebIdentity{Provider: provider, Subject: subject, Expires: time.Now().Add(-time.Second)})
	f.AddRole(fakests.Role{ARN: nodeRole, Trust: fakests.Trust{WebIdentities: []string{"system:serviceaccount:iam4kube:*"}, SessionNames: []string{"irsa-*"}}})
	c := client(server, "", "", "")
	try := func(role, session, token string, duration *int32) (*sts.AssumeRoleWithWebIdentityOutput, error) {
		return c.AssumeRoleWithWebIdentity(t.Context(), &sts.AssumeRoleWithWebIdentityInput{
			RoleArn: aws.String(role), RoleSessionName: aws.String(session), WebIdentityToken: aws.String(token), DurationSeconds: duration,
		})
	}
	out, err := try(nodeRole, "irsa-1", "valid.token.1", nil)
	if err != nil {
		t.Fatal(err)
	}
	if *out.SubjectFromWebIdentityToken != subject || *out.Provider != provider || *out.Audience != "sts.amazonaws.com" {
		t.Errorf("got %s %s %s", *out.SubjectFromWebIdentityToken, *out.Provider, *out.Audience)
	}
	who, err := client(server, *out.Credentials.AccessKeyId, *out.Credentials.SecretAccessKey, *out.Credentials.SessionToken).
		GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
	if err != nil || *who.Arn != "arn:aws:sts::111122223333:assumed-role/node/irsa-1" {
		t.Errorf("the credentials are not those of the session: %v", err)
	}
	const denied = "Not authorized to perform sts:AssumeRoleWithWebIdentity"
	_, err = try(nodeRole, "irsa-1", "forged.token.1", nil)
	wantError(t, err, 400, "InvalidIdentityToken", "The ID Token provided is not a valid JWT. (You may see this error if you sent an Access Token)")
	_, err = try(nodeRole, "irsa-1", "old.token.1", nil)
	var expired *types.ExpiredTokenException
	if !errors.As(err, &expired) || !strings.HasPrefix(expired.ErrorMessage(), "Token expired: current date/time ") {
		t.Errorf("got %v", err)
	}
	_, err = try(roleARN, "irsa-1", "valid.token.1", nil)
	wantError(t, err, 403, "AccessDenied", denied)
	_, err = try(nodeRole, "other-1", "valid.token.1", nil)
	wantError(t, err, 403, "AccessDenied", denied)
	_, err = try(nodeRole, "irsa-1", "valid.token.1", aws.Int32(7200))
	wantError(t, err, 400, "ValidationError", "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.")
}
