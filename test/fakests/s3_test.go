package fakests_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	signer "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/iam4kube/iam4kube/test/fakests"
)

// s3Signing is how a request to the fake S3 is signed.
type s3Signing struct {
	credentials     aws.Credentials
	service, region string
	payload         string // X-Amz-Content-Sha256
	time            time.Time
	method, uri     string
}

func issuedCredentials(f *fakests.Fake) (fakests.Issued, aws.Credentials) {
	i := f.IssueSession(roleARN, "shop@orders", time.Hour)
	return i, aws.Credentials{AccessKeyID: i.AccessKeyID, SecretAccessKey: i.SecretAccessKey, SessionToken: i.SessionToken}
}

// askS3 returns status and body of a signed request.
func askS3(t *testing.T, s3 http.Handler, credentials aws.Credentials, sign func(*s3Signing), change func(*http.Request)) (int, string) {
	t.Helper()
	empty := sha256.Sum256(nil)
	s := s3Signing{
		credentials: credentials, service: "s3", region: "eu-west-1", payload: hex.EncodeToString(empty[:]),
		time: time.Now(), method: http.MethodGet, uri: "/some-bucket/?list-type=2&prefix=caller-&delimiter=%2F",
	}
	if sign != nil {
		sign(&s)
	}
	r := httptest.NewRequestWithContext(t.Context(), s.method, s.uri, http.NoBody)
	r.Header.Set("X-Amz-Content-Sha256", s.payload)
	err := signer.NewSigner(func(o *signer.SignerOptions) { o.DisableURIPathEscaping = true }).
		SignHTTP(context.Background(), s.credentials, r, s.payload, s.service, s.region, s.time)
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(r)
	}
	w := httptest.NewRecorder()
	s3.ServeHTTP(w, r)
	body, err := io.ReadAll(w.Result().Body)
	if err != nil {
		t.Fatal(err)
	}
	return w.Code, string(body)
}

func TestS3TellsWhoseCredentialsSigned(t *testing.T) {
	f := newFake()
	s3 := f.S3()
	var answers []fakests.S3Request
	s3.OnAnswer = func(r fakests.S3Request) { answers = append(answers, r) }
	issued, credentials := issuedCredentials(f)
	for uri, want := range map[string]string{
		"/":            "<Name>caller-asia",
		"/some-bucket": "<Key>" + fakests.S3Key(issued.AccessKeyID) + "</Key>",
		"/some-bucket/?prefix=caller.&max-keys=9": "<Key>" + fakests.S3File + "</Key>",
		"/some-bucket/?location":                  "<LocationConstraint",
		"/some-bucket/" + fakests.S3File:          fakests.S3Key(issued.AccessKeyID) + "," + issued.ARN(),
	} {
		status, body := askS3(t, s3, credentials, func(s *s3Signing) { s.uri = uri }, nil)
		if status != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s, want 200 and %s", uri, status, body, want)
		}
	}
	for _, a := range answers {
		if a.AccessKeyID != issued.AccessKeyID || a.ARN != issued.ARN() || a.Status != http.StatusOK {
			t.Errorf("recorded %+v, want %s of %s", a, issued.AccessKeyID, issued.ARN())
		}
	}
	w := httptest.NewRecorder()
	s3.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, fakests.S3Requests, http.NoBody))
	var listed []fakests.S3Request
	if err := json.Unmarshal(w.Body.Bytes(), &listed); err != nil || len(listed) != len(answers) || len(listed) == 0 {
		t.Errorf("%s lists %d of %d requests, %v", fakests.S3Requests, len(listed), len(answers), err)
	}
}

func TestS3Refuses(t *testing.T) {
	for name, c := range map[string]struct {
		sign   func(*s3Signing)
		change func(*http.Request)
		status int
		code   string
	}{
		"wrong secret": {
			sign:   func(s *s3Signing) { s.credentials.SecretAccessKey += "x" },
			status: 403, code: "SignatureDoesNotMatch",
		},
		"another session's token": {
			sign:   func(s *s3Signing) { s.credentials.SessionToken += "x" },
			status: 403, code: "InvalidAccessKeyId",
		},
		"no token": {
			sign:   func(s *s3Signing) { s.credentials.SessionToken = "" },
			status: 403, code: "InvalidAccessKeyId",
		},
		"unknown key": {
			sign:   func(s *s3Signing) { s.credentials.AccessKeyID = "ASIA2222222222222222" },
			status: 403, code: "InvalidAccessKeyId",
		},
		"anonymous":        {change: func(r *http.Request) { r.Header.Del("Authorization") }, status: 403, code: "AccessDenied"},
		"for STS":          {sign: func(s *s3Signing) { s.service = "sts" }, status: 403, code: "SignatureDoesNotMatch"},
		"too old":          {sign: func(s *s3Signing) { s.time = s.time.Add(-time.Hour) }, status: 403, code: "SignatureDoesNotMatch"},
		"another query":    {change: func(r *http.Request) { r.URL.RawQuery = "list-type=1" }, status: 403, code: "SignatureDoesNotMatch"},
		"another path":     {change: func(r *http.Request) { r.URL.Path = "/other-bucket/" }, status: 403, code: "SignatureDoesNotMatch"},
		"another payload":  {sign: func(s *s3Signing) { s.payload = strings.Repeat("0", 64) }, status: 400, code: "XAmzContentSHA256Mismatch"},
		"unknown object":   {sign: func(s *s3Signing) { s.uri = "/some-bucket/a%20b/c" }, status: 404, code: "NoSuchKey"},
		"deleting":         {sign: func(s *s3Signing) { s.method = http.MethodDelete }, status: 501, code: "NotImplemented"},
		"encoded wrongly":  {change: func(r *http.Request) { r.URL.RawQuery = "%zz" }, status: 400, code: "InvalidURI"},
		"unsigned payload": {sign: func(s *s3Signing) { s.payload = "UNSIGNED-PAYLOAD" }, status: 200},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			s3 := f.S3()
			_, credentials := issuedCredentials(f)
			status, body := askS3(t, s3, credentials, c.sign, c.change)
			if status != c.status || c.code != "" && !strings.Contains(body, "<Code>"+c.code+"</Code>") {
				t.Errorf("got %d %s, want %d %s", status, body, c.status, c.code)
			}
			recorded := s3.Requests()[0]
			if recorded.Status != c.status || recorded.Code != c.code || (c.status == 403) != (recorded.AccessKeyID == "") && c.status != 400 {
				t.Errorf("recorded %+v", recorded)
			}
		})
	}
}

// An expired session is refused, and so is one whose key was taken away.
func TestS3RefusesFormerCredentials(t *testing.T) {
	f := newFake()
	i := f.IssueSession(roleARN, "shop@orders", -time.Second)
	old := aws.Credentials{AccessKeyID: i.AccessKeyID, SecretAccessKey: i.SecretAccessKey, SessionToken: i.SessionToken}
	if status, body := askS3(t, f.S3(), old, nil, nil); status != http.StatusForbidden || !strings.Contains(body, "ExpiredToken") {
		t.Errorf("expired: got %d %s", status, body)
	}
	issued, removed := issuedCredentials(f)
	f.RemoveKey(issued.AccessKeyID)
	if status, body := askS3(t, f.S3(), removed, nil, nil); status != http.StatusForbidden {
		t.Errorf("removed: got %d %s", status, body)
	}
}
