package sts

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/iam4kube/iam4kube/internal/server/role"
)

// endpoint is an HTTP client that answers by itself, without a network. The whole
// protocol is tested against the fake STS of module test/.
type endpoint struct {
	answer func(*http.Request) (status int, body string)
	header http.Header // of each answer, besides its type

	mu    sync.Mutex
	times []time.Time
}

// Do implements the SDK's HTTPClient.
func (e *endpoint) Do(r *http.Request) (*http.Response, error) {
	e.mu.Lock()
	e.times = append(e.times, time.Now())
	e.mu.Unlock()
	status, body := e.answer(r)
	header := http.Header{"Content-Type": {"text/xml"}}
	maps.Copy(header, e.header)
	return &http.Response{
		StatusCode: status, Status: http.StatusText(status), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: header, Body: io.NopCloser(strings.NewReader(body)), Request: r,
	}, nil
}

// failure is an answer of the Query protocol.
func failure(status int, code, message string) func(*http.Request) (int, string) {
	return func(*http.Request) (int, string) {
		return status, fmt.Sprintf("<ErrorResponse><Error><Code>%s</Code><Message>%s</Message></Error><RequestId>1</RequestId></ErrorResponse>", code, message)
	}
}

// success issues credentials until the time of this text.
func success(expiration string) func(*http.Request) (int, string) {
	return func(*http.Request) (int, string) {
		return http.StatusOK, "<AssumeRoleResponse><AssumeRoleResult><Credentials><AccessKeyId>ASIA2222222222222222</AccessKeyId>" +
			"<SecretAccessKey>secret-never-to-be-seen</SecretAccessKey><SessionToken>token-never-to-be-seen</SessionToken><Expiration>" + expiration +
			"</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"
	}
}

// setenv is an AWS configuration that is not that of whoever runs the tests.
func setenv(t *testing.T, more map[string]string) {
	t.Helper()
	none := filepath.Join(t.TempDir(), "none")
	env := map[string]string{
		"AWS_REGION": "eu-west-1", "AWS_ACCESS_KEY_ID": "AKIA2222222222222222", "AWS_SECRET_ACCESS_KEY": "own-never-to-be-seen",
		"AWS_SESSION_TOKEN": "", "AWS_PROFILE": "", "AWS_CONFIG_FILE": none, "AWS_SHARED_CREDENTIALS_FILE": none,
		"AWS_EC2_METADATA_DISABLED": "true", "AWS_CA_BUNDLE": "", "AWS_ENDPOINT_URL_STS": "", "AWS_WEB_IDENTITY_TOKEN_FILE": "",
	}
	for _, variables := range []map[string]string{env, more} {
		for name, value := range variables {
			t.Setenv(name, value)
		}
	}
}

func newClient(t *testing.T, e *endpoint) *Client {
	t.Helper()
	client, err := New(t.Context(), NewLimiter(10, 20), "", prometheus.NewRegistry(), config.WithHTTPClient(e))
	if err != nil {
		t.Fatal(err)
	}
	return client
}

var anyRole = role.Role{ARN: "arn:aws:iam::123456789012:role/app", SessionName: "ns@app", Duration: 2 * time.Hour}
