package webhook

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	admissionapi "k8s.io/api/admission/v1"

	"github.com/iam4kube/iam4kube/internal/webhook"
)

const (
	jsonType = "application/json"
	// secret is in the pod and belongs into no answer and no log.
	secret = "correct-horse"
	object = `{"metadata":{"name":"app"},"spec":{"containers":[{"name":"app","env":[{"name":"PASSWORD","value":"` + secret + `"}]}]}}`
	asked  = `"request":{"uid":"1","resource":{"group":"","version":"v1","resource":"pods"},"operation":"CREATE","namespace":"a","object":` + object + `}`
	review = `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview",` + asked + `}`
)

// client trusts the hook's certificate.
func (h *hook) client(t testing.TB) *http.Client {
	t.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(h.ca.pem) {
		t.Fatal("no certificate of the CA")
	}
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "127.0.0.1"}, Protocols: &http.Protocols{}, ExpectContinueTimeout: within,
	}
	transport.Protocols.SetHTTP1(true)
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: within}
}

func (h *hook) host() string {
	return strings.TrimSuffix(strings.TrimPrefix(h.url, "https://"), webhook.Path)
}

// ask sends a body to the hook. The review is nil if the answer is none.
func ask(request *http.Request, client *http.Client) (status int, text string, answer *admissionapi.AdmissionResponse, err error) {
	response, err := client.Do(request)
	if err != nil {
		return 0, "", nil, err
	}
	defer func() { _ = response.Body.Close() }()
	content, err := io.ReadAll(response.Body)
	var review admissionapi.AdmissionReview
	if json.Unmarshal(content, &review) == nil {
		answer = review.Response
	}
	return response.StatusCode, string(content), answer, err
}

// injected is that the hook answered with a patch.
func injected(request *http.Request, client *http.Client) error {
	status, text, answer, err := ask(request, client)
	if err != nil {
		return err
	}
	if status != http.StatusOK || answer == nil || !answer.Allowed || len(answer.Patch) == 0 {
		return fmt.Errorf("%d %s", status, text)
	}
	return nil
}

// hostileRequest is a POST of the review to the hook but for what it says.
type hostileRequest struct{ name, method, path, contentType, body string }

func hostile(t *testing.T) []hostileRequest {
	t.Helper()
	return []hostileRequest{
		{name: "GET", method: http.MethodGet},
		{name: "PUT", method: http.MethodPut},
		{name: "another path", path: "/"},
		{name: "a path below", path: webhook.Path + "/x"},
		{name: "a path of the other listener", path: "/metrics", method: http.MethodGet},
		{name: "another content type", contentType: "text/plain"},
		{name: "no content type", contentType: " "},
		{name: "nothing", body: "\n"},
		{name: "not JSON", body: secret + " {"},
		{name: "not even text", body: "\xff\x00" + secret},
		{name: "a string", body: `"` + secret + `"`},
		{name: "a list", body: "[" + review + "]"},
		{name: "half a review", body: review[:len(review)-20]},
		{name: "two reviews", body: review + review},
		{name: "deep", body: `{"request":` + strings.Repeat("[", 1<<20)},
		{name: "a YAML bomb", body: "a: &a [" + strings.Repeat("x,", 1000) + "]\nb: &b [" + strings.Repeat("*a,", 1000) + "]\nc: [" + strings.Repeat("*b,", 1000) + "]"},
		{name: "huge", body: review + strings.Repeat(" ", 8<<20)},
		{name: "a huge pod", body: without(t, secret, secret+strings.Repeat("x", 8<<20))},
		{name: "a pod and no review", body: object},
		{name: "an object of another kind", body: `{"apiVersion":"v1","kind":"Secret","stringData":{"a":"` + secret + `"}}`},
		{name: "an answer", body: `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":"1","allowed":true}}`},
		{name: "no request", body: without(t, ","+asked, "")},
		{name: "the request null", body: without(t, asked, `"request":null`)},
		{name: "the request in another case", body: without(t, `"request"`, `"Request"`)},
		{name: "no resource", body: without(t, `"resource":{"group":"","version":"v1","resource":"pods"},`, "")},
		{name: "no operation", body: without(t, `"operation":"CREATE",`, "")},
		{name: "an unknown operation", body: without(t, `"CREATE"`, `"create"`)},
		{name: "no uid", body: without(t, `"uid":"1",`, "")},
		{name: "no object", body: without(t, `,"object":`+object, "")},
		{name: "the object null", body: without(t, object, "null")},
		{name: "the object a string", body: without(t, object, `"`+secret+`"`)},
		{name: "the object a list", body: without(t, object, "["+object+"]")},
		{name: "the object empty", body: without(t, object, "{}")},
		{name: "the containers a string", body: without(t, `[{"name":"app",`, `"`+secret+`","x":[{"name":"app",`)},
	}
}

// without is the review with something else in place of a part.
func without(t *testing.T, part, by string) string {
	t.Helper()
	if strings.Count(review, part) != 1 {
		t.Fatalf("%q is not once in the review", part)
	}
	return strings.Replace(review, part, by, 1)
}

// TestHostileReviewsAreNeverAllowed: what is no review of the API server is refused, and
// the webhook goes on.
func TestHostileReviewsAreNeverAllowed(t *testing.T) {
	h := startProgram(t, []string{"-race"})
	h.waitReady(t)
	client := h.client(t)
	request := func(method, path, contentType, body string) *http.Request {
		r, err := http.NewRequestWithContext(t.Context(), method, strings.TrimSuffix(h.url, webhook.Path)+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", contentType)
		return r
	}
	slow := h.slowHeaders(t)
	for _, tc := range hostile(t) {
		t.Run(tc.name, func(t *testing.T) {
			status, text, answer, err := ask(request(cmp.Or(tc.method, http.MethodPost), cmp.Or(tc.path, webhook.Path), cmp.Or(tc.contentType, jsonType), cmp.Or(tc.body, review)), client)
			if err != nil {
				t.Fatal(err)
			}
			refused := status >= 400 && status < 500
			if status == http.StatusOK && answer != nil && !answer.Allowed && answer.Patch == nil {
				refused = answer.Result != nil && answer.Result.Code >= 400 && answer.Result.Code < 500
			}
			if !refused {
				t.Errorf("%d %.500s", status, text)
			}
			if strings.Contains(text, secret) {
				t.Errorf("what was sent is in the answer: %.500s", text)
			}
		})
	}
	// A version that is not known is no reason to leave a pod out.
	for _, body := range []string{review, without(t, "admission.k8s.io/v1", "admission.k8s.io/v9"), without(t, `"apiVersion":"admission.k8s.io/v1",`, "")} {
		if err := injected(request(http.MethodPost, webhook.Path, jsonType, body), client); err != nil {
			t.Errorf("%s: %v", body, err)
		}
	}
	for range cap(slow) {
		if err := <-slow; err != nil {
			t.Error(err)
		}
	}
	if logs := h.logs.String(); strings.Contains(logs, secret) || strings.Contains(logs, "panic") {
		t.Errorf("logged: %s", logs)
	}
}

// slowHeaders opens connections that say nothing, or half a header, before TLS and in it,
// and tells of each when the hook has ended it.
func (h *hook) slowHeaders(t *testing.T) chan error {
	t.Helper()
	said := []string{"", "POST " + webhook.Path + " HTTP/1.1\r\nHost: a\r\nContent-"}
	ended := make(chan error, 2*len(said))
	for i := range cap(ended) {
		c, err := net.Dial("tcp", h.host())
		if err == nil && i >= len(said) {
			c = tls.Client(c, h.client(t).Transport.(*http.Transport).TLSClientConfig)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		go func() {
			_ = c.SetDeadline(time.Now().Add(within))
			if _, err := io.WriteString(c, said[i%len(said)]); err != nil {
				ended <- err
				return
			}
			// How it ends, by EOF, reset or alert, is the same to those who misbehave.
			if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
				ended <- fmt.Errorf("connection %d was not ended", i)
				return
			}
			ended <- nil
		}()
	}
	return ended
}
