package fakests_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/iam4kube/iam4kube/test/fakests"
)

// signing is how a raw request is signed by the SDK's own signer.
type signing struct {
	key             aws.Credentials
	service, region string
	time            time.Time
}

func properly() signing {
	return signing{
		key:     aws.Credentials{AccessKeyID: serverKey.AccessKeyID, SecretAccessKey: serverKey.SecretAccessKey},
		service: "sts", region: "us-east-1", time: time.Now(),
	}
}

func assumeForm() url.Values {
	return url.Values{
		"Action": {"AssumeRole"}, "Version": {"2011-06-15"},
		"RoleArn": {roleARN}, "RoleSessionName": {"default@reader"},
	}
}

func signed(t *testing.T, server *fakests.Server, body string, s signing) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+"/", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	sum := sha256.Sum256([]byte(body))
	if err := v4.NewSigner().SignHTTP(t.Context(), s.key, req, hex.EncodeToString(sum[:]), s.service, s.region, s.time); err != nil {
		t.Fatal(err)
	}
	return req
}

// reply is a raw answer; for an error also what the document says.
type reply struct {
	status              int
	header              http.Header
	body                string
	Namespace           string `xml:"xmlns,attr"`
	Type, Code, Message string
	RequestID           string
}

func send(t *testing.T, server *fakests.Server, req *http.Request) reply {
	t.Helper()
	resp, err := server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	r := reply{status: resp.StatusCode, header: resp.Header, body: string(body)}
	if r.status != http.StatusOK {
		var doc struct {
			XMLName   xml.Name `xml:"ErrorResponse"`
			Type      string   `xml:"Error>Type"`
			Code      string   `xml:"Error>Code"`
			Message   string   `xml:"Error>Message"`
			RequestID string   `xml:"RequestId"`
		}
		if err := xml.Unmarshal(body, &doc); err != nil {
			t.Fatalf("%v in %s", err, body)
		}
		r.Namespace, r.Type, r.Code, r.Message, r.RequestID = doc.XMLName.Space, doc.Type, doc.Code, doc.Message, doc.RequestID
	}
	return r
}

// post signs the form properly, lets change alter the request and sends it.
func post(t *testing.T, server *fakests.Server, form url.Values, change func(*http.Request)) reply {
	t.Helper()
	req := signed(t, server, form.Encode(), properly())
	if change != nil {
		change(req)
	}
	return send(t, server, req)
}

func TestErrorDocument(t *testing.T) {
	server := start(t, newFake())
	req := signed(t, server, assumeForm().Encode(), properly())
	req.Header.Del("Authorization")
	r := send(t, server, req)
	want := `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
  <Error>
    <Type>Sender</Type>
    <Code>MissingAuthenticationToken</Code>
    <Message>Request is missing Authentication Token</Message>
  </Error>
  <RequestId>` + r.RequestID + `</RequestId>
</ErrorResponse>
`
	if r.body != want {
		t.Errorf("got\n%s\nwant\n%s", r.body, want)
	}
	if r.header.Get("Content-Type") != "text/xml" || r.header.Get("X-Amzn-Requestid") != r.RequestID || len(r.RequestID) != 36 {
		t.Errorf("header %v, request ID %q", r.header, r.RequestID)
	}
}

func TestProtocol(t *testing.T) {
	server := start(t, newFake())
	form := func(change map[string][]string) string {
		values := assumeForm()
		maps.Copy(values, change)
		for name := range values {
			if values[name] == nil {
				values.Del(name)
			}
		}
		return values.Encode()
	}
	const fault = "http://webservices.amazon.com/AWSFault/2005-15-09"
	for name, c := range map[string]struct {
		body            string
		change          func(*http.Request)
		status          int
		namespace, code string
		message         string
	}{
		"unknown action": {
			body: form(map[string][]string{"Action": {"AssumeRoot"}}), status: 400, namespace: fault,
			code: "InvalidAction", message: "Could not find operation AssumeRoot for version 2011-06-15",
		},
		"no version": {
			body: form(map[string][]string{"Version": nil}), status: 400, namespace: fault,
			code: "InvalidAction", message: "Could not find operation AssumeRole for version NO_VERSION_SPECIFIED",
		},
		"other version": {
			body: form(map[string][]string{"Version": {"2010-05-08"}}), status: 400, namespace: fault,
			code: "InvalidAction", message: "Could not find operation AssumeRole for version 2010-05-08",
		},
		"no action": {body: form(map[string][]string{"Action": nil}), status: 400, code: "MissingAction"},
		"no form": {
			body: form(nil), status: 400, code: "MissingAction",
			change: func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") },
		},
		"query": {
			body: form(nil), status: 400, code: "MissingAction",
			change: func(r *http.Request) { r.URL.RawQuery = "Action=AssumeRole" },
		},
		"path": {
			body: form(nil), status: 400, code: "MissingAction",
			change: func(r *http.Request) { r.URL.Path = "/sts" },
		},
		"method": {
			body: form(nil), status: 405, code: "UnsupportedOperation",
			change: func(r *http.Request) { r.Method = http.MethodPut },
		},
		"broken form":       {body: "Action=AssumeRole&x=%zz", status: 400, code: "MalformedQueryString"},
		"unknown parameter": {body: form(map[string][]string{"RoleARN": {"x"}}), status: 400, code: "InvalidQueryParameter"},
		"session policy":    {body: form(map[string][]string{"Policy": {"{}"}}), status: 400, code: "InvalidQueryParameter"},
		"tag twice":         {body: form(map[string][]string{"Tags.member.1.Key": {"k"}, "Tags.member.1.Value": {""}, "Tags.member.2.Key": {"K"}, "Tags.member.2.Value": {""}}), status: 400, code: "InvalidQueryParameter"},
		"tag of AWS":        {body: form(map[string][]string{"Tags.member.1.Key": {"aws:k"}, "Tags.member.1.Value": {""}}), status: 400, code: "InvalidQueryParameter"},
		"tag's characters":  {body: form(map[string][]string{"Tags.member.1.Key": {"k;"}, "Tags.member.1.Value": {""}}), status: 400, code: "ValidationError"},
		"tag not allowed":   {body: form(map[string][]string{"Tags.member.1.Key": {"k"}, "Tags.member.1.Value": {"v"}}), status: 403, code: "AccessDenied"},
		"source identity":   {body: form(map[string][]string{"SourceIdentity": {"somebody"}}), status: 403, code: "AccessDenied"},
		"no policy":         {body: form(map[string][]string{"PolicyArns.member.1.arn": {"ReadOnlyAccess"}}), status: 400, code: "InvalidQueryParameter"},
		"repeated parameter": {
			body: form(map[string][]string{"ExternalId": {"one", "two"}}), status: 400,
			code: "InvalidQueryParameter",
		},
	} {
		t.Run(name, func(t *testing.T) {
			req := signed(t, server, c.body, properly())
			if c.change != nil {
				c.change(req)
			}
			r := send(t, server, req)
			if r.status != c.status || r.Code != c.code || r.Type != "Sender" {
				t.Errorf("got %d %s", r.status, r.body)
			}
			if c.namespace != "" && r.Namespace != c.namespace || c.message != "" && r.Message != c.message {
				t.Errorf("got %q %q", r.Namespace, r.Message)
			}
		})
	}
}

func TestBodyTooLargeIsRecorded(t *testing.T) {
	f := newFake()
	server := start(t, f)
	req := signed(t, server, strings.Repeat("x", 129<<10), properly())
	if resp, err := server.Client().Do(req); err == nil {
		resp.Body.Close()
	}
	attempts, err := f.WaitFor(t.Context(), func(a []fakests.Attempt) bool {
		return slices.ContainsFunc(a, func(a fakests.Attempt) bool { return a.Outcome == fakests.OutcomeUnreadable })
	})
	if err != nil {
		t.Fatalf("%v: %+v", err, attempts)
	}
}
