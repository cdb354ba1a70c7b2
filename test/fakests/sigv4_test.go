package fakests_test

import (
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/iam4kube/iam4kube/test/fakests"
)

const mismatch = "^The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. "

// TestSignatureIsVerified changes one thing of a request that is otherwise right.
func TestSignatureIsVerified(t *testing.T) {
	server := start(t, newFake())
	editAuth := func(old, changed string) func(*http.Request) {
		return func(r *http.Request) {
			auth := r.Header.Get("Authorization")
			if !strings.Contains(auth, old) {
				t.Fatalf("no %q in %q", old, auth)
			}
			r.Header.Set("Authorization", strings.Replace(auth, old, changed, 1))
		}
	}
	for name, c := range map[string]struct {
		sign    func(*signing)
		change  func(*http.Request)
		status  int
		code    string
		message string
	}{
		"as it should be": {status: 200},
		"unsigned": {
			change: func(r *http.Request) { r.Header.Del("Authorization") },
			status: 403, code: "MissingAuthenticationToken", message: "^Request is missing Authentication Token$",
		},
		"unknown key": {
			sign:   func(s *signing) { s.key.AccessKeyID = "AKIAI44QH8DHBEXAMPLE" },
			status: 403, code: "InvalidClientTokenId", message: `^The security token included in the request is invalid\.$`,
		},
		"wrong secret": {
			sign:   func(s *signing) { s.key.SecretAccessKey += "x" },
			status: 403, code: "SignatureDoesNotMatch", message: mismatch,
		},
		"altered body": {change: func(r *http.Request) {
			body := strings.Replace(assumeForm().Encode(), "default", "another", 1) // as long as before
			r.Body = http.NoBody
			fresh, err := http.NewRequest(http.MethodPost, r.URL.String(), strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			r.Body = fresh.Body
		}, status: 403, code: "SignatureDoesNotMatch", message: mismatch},
		"altered header": {
			change: func(r *http.Request) { r.Header.Set("Content-Type", "application/x-www-form-urlencoded") },
			status: 403, code: "SignatureDoesNotMatch", message: mismatch,
		},
		"altered host": {
			change: func(r *http.Request) { r.Host = "sts.eu-west-1.amazonaws.com" },
			status: 403, code: "SignatureDoesNotMatch", message: mismatch,
		},
		"altered date": {change: func(r *http.Request) {
			r.Header.Set("X-Amz-Date", time.Now().UTC().Add(-time.Minute).Format("20060102T150405Z"))
		}, status: 403, code: "SignatureDoesNotMatch", message: "^(The request signature we calculated|Date in Credential scope)"},
		"altered signature": {change: func(r *http.Request) {
			r.Header.Set("Authorization", regexp.MustCompile(`Signature=.{8}`).ReplaceAllString(r.Header.Get("Authorization"), "Signature=00000000"))
		}, status: 403, code: "SignatureDoesNotMatch", message: mismatch},
		"region": {
			sign:   func(s *signing) { s.region = "eu-west-1" },
			status: 403, code: "SignatureDoesNotMatch", message: "^Credential should be scoped to a valid region, not 'eu-west-1'.$",
		},
		"service": {
			sign:   func(s *signing) { s.service = "iam" },
			status: 403, code: "SignatureDoesNotMatch", message: "^Credential should be scoped to correct service: 'sts'.$",
		},
		"terminator": {
			change: editAuth("/aws4_request", "/aws5_request"),
			status: 403, code: "SignatureDoesNotMatch", message: "^Credential should be scoped with a valid terminator: 'aws4_request', not 'aws5_request'.$",
		},
		"scope's date": {
			change: editAuth("/20", "/19"),
			status: 403, code: "SignatureDoesNotMatch", message: "^Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '19",
		},
		"scope of three": {
			change: editAuth("/sts/aws4_request", "/sts"),
			status: 400, code: "IncompleteSignature", message: "^Credential must have exactly 5 slash-delimited elements",
		},
		"too old": {
			sign:   func(s *signing) { s.time = s.time.Add(-15*time.Minute - 2*time.Second) },
			status: 403, code: "SignatureDoesNotMatch", message: `^Signature expired: \d{8}T\d{6}Z is now earlier than \d{8}T\d{6}Z \(\d{8}T\d{6}Z - 15 min\.\)$`,
		},
		"just young enough": {sign: func(s *signing) { s.time = s.time.Add(-14 * time.Minute) }, status: 200},
		"too new": {
			sign:   func(s *signing) { s.time = s.time.Add(16 * time.Minute) },
			status: 403, code: "SignatureDoesNotMatch", message: `^Signature not yet current: \d{8}T\d{6}Z is still later than \d{8}T\d{6}Z \(\d{8}T\d{6}Z \+ 15 min\.\)$`,
		},
		"date in another form": {
			change: func(r *http.Request) { r.Header.Set("X-Amz-Date", time.Now().Format(time.RFC1123)) },
			status: 400, code: "IncompleteSignature", message: "^Date must be in ISO-8601 'basic format'. Got '",
		},
		"no date": {
			change: func(r *http.Request) { r.Header.Del("X-Amz-Date") },
			status: 400, code: "IncompleteSignature", message: "^Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header. ",
		},
		"no signed headers": {
			change: editAuth("SignedHeaders=", "Signed="),
			status: 400, code: "IncompleteSignature", message: "^Authorization header requires 'SignedHeaders' parameter. Authorization=AWS4",
		},
		"host not signed": {
			change: editAuth("host;", ""),
			status: 403, code: "SignatureDoesNotMatch", message: "^'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.$",
		},
		"date not signed": {
			change: editAuth(";x-amz-date", ""),
			status: 403, code: "SignatureDoesNotMatch", message: "^'x-amz-date' must be a 'SignedHeader' in the AWS Authorization.$",
		},
		"header added on the way": {
			change: func(r *http.Request) { r.Header.Set("X-Amz-Security-Token", "t") },
			status: 403, code: "SignatureDoesNotMatch", message: "^'x-amz-security-token' must be a 'SignedHeader'",
		},
		"algorithm": {
			change: editAuth("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA512"),
			status: 400, code: "IncompleteSignature", message: "^Unsupported AWS 'algorithm': 'AWS4-HMAC-SHA512'.$",
		},
		"basic auth": {
			change: func(r *http.Request) { r.SetBasicAuth("user", "password") },
			status: 400, code: "IncompleteSignature", message: "^Unsupported AWS 'algorithm': 'Basic'.$",
		},
		"missing equal-sign": {change: editAuth("Credential=", "Credential= "), // a space after the sign
			status: 400, code: "IncompleteSignature", message: `^'AKIA.*' not a valid key=value pair \(missing equal-sign\) in Authorization header: 'AWS4`},
		"token with a long-term key": {
			sign:   func(s *signing) { s.key.SessionToken = "token" },
			status: 403, code: "InvalidClientTokenId", message: "^The security token included in the request is invalid",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := properly()
			if c.sign != nil {
				c.sign(&s)
			}
			req := signed(t, server, assumeForm().Encode(), s)
			if c.change != nil {
				c.change(req)
			}
			r := send(t, server, req)
			if r.status != c.status || r.Code != c.code || !regexp.MustCompile(c.message).MatchString(r.Message) {
				t.Errorf("got  %d %s %q\nwant %d %s %q", r.status, r.Code, r.Message, c.status, c.code, c.message)
			}
		})
	}
}

func TestTemporaryKeyNeedsItsToken(t *testing.T) {
	f := newFake()
	server := start(t, f)
	session := f.IssueSession(nodeRole, "i-0abc", time.Hour)
	other := f.IssueSession(nodeRole, "i-0def", time.Hour)
	over := f.IssueSession(nodeRole, "i-0fff", -time.Second)
	whoami := func(id, secret, token string) error {
		_, err := client(server, id, secret, token).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
		return err
	}
	if err := whoami(session.AccessKeyID, session.SecretAccessKey, session.SessionToken); err != nil {
		t.Error(err)
	}
	const invalid = "The security token included in the request is invalid."
	wantError(t, whoami(session.AccessKeyID, session.SecretAccessKey, ""), 403, "InvalidClientTokenId", invalid)
	wantError(t, whoami(session.AccessKeyID, session.SecretAccessKey, other.SessionToken), 403, "InvalidClientTokenId", invalid)
	wantError(t, whoami(over.AccessKeyID, over.SecretAccessKey, over.SessionToken), 403, "ExpiredToken",
		"The security token included in the request is expired")
	if err := whoami(session.AccessKeyID, other.SecretAccessKey, session.SessionToken); err == nil {
		t.Error("a wrong secret was accepted")
	}
	f.RemoveKey(session.AccessKeyID)
	wantError(t, whoami(session.AccessKeyID, session.SecretAccessKey, session.SessionToken), 403, "InvalidClientTokenId", invalid)
}

func TestRegionOfTheEndpoint(t *testing.T) {
	f := fakests.New(fakests.Config{Region: "cn-north-1"})
	f.AddKey(fakests.Key{AccessKeyID: "AKIACN", SecretAccessKey: "secret", ARN: "arn:aws-cn:iam::111122223333:user/iam4kube"})
	f.AddRole(fakests.Role{
		ARN:   "arn:aws-cn:iam::123456789012:role/reader",
		Trust: fakests.Trust{Principals: []string{"arn:aws-cn:iam::111122223333:root"}},
	})
	server := start(t, f)
	chinese := func(o *sts.Options) { o.Region = "cn-north-1" }
	in := &sts.AssumeRoleInput{RoleArn: aws.String("arn:aws-cn:iam::123456789012:role/reader"), RoleSessionName: aws.String("s1")}
	c := client(server, "AKIACN", "secret", "")
	out, err := c.AssumeRole(t.Context(), in, chinese)
	if err != nil {
		t.Fatal(err)
	}
	if want := "arn:aws-cn:sts::123456789012:assumed-role/reader/s1"; *out.AssumedRoleUser.Arn != want {
		t.Errorf("got %s, want %s", *out.AssumedRoleUser.Arn, want)
	}
	_, err = c.AssumeRole(t.Context(), in) // signed for us-east-1
	wantError(t, err, 403, "SignatureDoesNotMatch", "Credential should be scoped to a valid region, not 'us-east-1'.")
	in.RoleArn = aws.String(roleARN)
	_, err = c.AssumeRole(t.Context(), in, chinese)
	wantError(t, err, 403, "AccessDenied",
		"User: arn:aws-cn:iam::111122223333:user/iam4kube is not authorized to perform: sts:AssumeRole on resource: "+roleARN)
}
