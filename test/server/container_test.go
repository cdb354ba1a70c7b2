package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/iam4kube/iam4kube/internal/server/identity"
	"github.com/iam4kube/iam4kube/internal/server/podtoken"
	"github.com/iam4kube/iam4kube/test/environment"
)

const containerPath = "/v1/credentials"

// token is one that the kubelet would have got for the pod.
func (w workload) token(t *testing.T, change ...func(*authenticationv1.TokenRequestSpec)) string {
	t.Helper()
	pod, err := env.Client.CoreV1().Pods(w.Namespace).Get(t.Context(), w.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	hour := int64(3600)
	spec := authenticationv1.TokenRequestSpec{
		Audiences: []string{podtoken.Audience}, ExpirationSeconds: &hour,
		BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID},
	}
	for _, c := range change {
		c(&spec)
	}
	request, err := env.Client.CoreV1().ServiceAccounts(w.Namespace).CreateToken(t.Context(), w.ServiceAccount, &authenticationv1.TokenRequest{Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return request.Status.Token
}

// containerCredentials asks with that token, and returns the role of the answer if it is 200,
// else the code in the JSON.
func containerCredentials(t *testing.T, s *environment.Server, from netip.Addr, lines ...string) (status int, arn, code string) {
	t.Helper()
	header := http.Header{}
	for _, line := range lines {
		name, value, _ := strings.Cut(line, ": ")
		header[name] = append(header[name], value)
	}
	response, body, err := s.Do(t.Context(), s.Client(t, from), http.MethodGet, containerPath, header)
	if err != nil {
		t.Fatal(err)
	}
	a := answered{Response: response, body: body}
	if a.Header.Get("Content-Type") != "application/json" || a.ContentLength != int64(len(a.body)) || a.Header.Get("Server") != "iam4kube" {
		t.Errorf("%d %v: %s", a.StatusCode, a.Header, a.body)
	}
	if a.StatusCode != http.StatusOK {
		var failure struct{ Code, Message string }
		if err := json.Unmarshal([]byte(a.body), &failure); err != nil || failure.Code == "" || !strings.HasPrefix(failure.Message, "iam4kube: ") {
			t.Errorf("%d %s", a.StatusCode, a.body)
		}
		if env.Leak(a.body) != "" || strings.Contains(a.body, "eyJ") {
			t.Errorf("a secret is in %s", a.body)
		}
		return a.StatusCode, "", failure.Code
	}
	var d struct {
		AccessKeyId, SecretAccessKey, Token, Expiration, AccountId string
		RoleARN                                                    string `json:"RoleArn"`
	}
	if err := json.Unmarshal([]byte(a.body), &d); err != nil {
		t.Fatalf("%v: %s", err, a.body)
	}
	issued, known := env.STS.Issued(d.AccessKeyId)
	if !known || issued.SecretAccessKey != d.SecretAccessKey || issued.SessionToken != d.Token || issued.RoleARN != d.RoleARN || d.AccountId != strings.Split(d.RoleARN, ":")[4] {
		t.Fatalf("not what STS has issued: %s", a.body)
	}
	if expires, err := time.Parse("2006-01-02T15:04:05Z", d.Expiration); err != nil || time.Until(expires) < 20*time.Minute {
		t.Errorf("expires %s", d.Expiration)
	}
	return a.StatusCode, d.RoleARN, ""
}

// A pod is known by its token, wherever it asks from, but from another pod's address.
func TestContainerCredentials(t *testing.T) {
	t.Parallel()
	namespace := newNamespace(t, "container")
	one, two, forwarder := newWorkload(namespace, "one").create(t), newWorkload(namespace, "two").create(t), newWorkload(namespace, "forwarder").create(t)
	onHost := newWorkload(namespace, "on-host")
	onHost.HostNetwork, onHost.HostIPs = true, onHost.IPs
	onHost.create(t)
	sameNode := newWorkload(namespace, "same-node")
	sameNode.HostNetwork, sameNode.IPs, sameNode.HostIPs = true, onHost.IPs, onHost.IPs
	sameNode.create(t)
	nowhere := env.Address()
	s, _ := env.StartProcess(t, "--max-wait", "2s", "--token-forwarder", namespace+"/forwarder")
	s.WaitReady(t)
	bearer := func(token string) string { return "Authorization: " + token }
	good := one.token(t)
	for _, tc := range []struct {
		name   string
		from   netip.Addr
		lines  []string
		status int
		arn    string
		code   string
	}{
		{"its address and no token", one.from, nil, 200, one.arn, ""},
		{"its address", one.from, []string{bearer(good)}, 200, one.arn, ""},
		{"its address again", one.from, []string{bearer(good)}, 200, one.arn, ""},
		{"an address of nobody", nowhere, []string{bearer(good)}, 200, one.arn, ""},
		{"another pod's address", two.from, []string{bearer(good)}, 403, "", "other-pod"},
		{"a forwarder's address", forwarder.from, []string{bearer(good)}, 200, one.arn, ""},
		{"hostNetwork", onHost.from, []string{bearer(onHost.token(t))}, 200, onHost.arn, ""},
		{"another pod with hostNetwork there", onHost.from, []string{bearer(sameNode.token(t))}, 200, sameNode.arn, ""},
		{"hostNetwork and no token", onHost.from, nil, 403, "", "node-address"},
		{"an address of nobody and no token", nowhere, nil, 503, "", "pod"},
		{"an empty token", one.from, []string{"Authorization: "}, 401, "", "bad-token"},
		{"two tokens", one.from, []string{bearer(good), bearer(good)}, 401, "", "bad-token"},
		{"a token twice", one.from, []string{bearer(good + good)}, 401, "", "bad-token"},
		{"for another audience", one.from, []string{bearer(one.token(t, func(s *authenticationv1.TokenRequestSpec) { s.Audiences = []string{"sts.amazonaws.com"} }))}, 401, "", "bad-token"},
		{"for the API server", one.from, []string{bearer(one.token(t, func(s *authenticationv1.TokenRequestSpec) { s.Audiences = nil }))}, 401, "", "bad-token"},
		{"bound to no pod", one.from, []string{bearer(one.token(t, func(s *authenticationv1.TokenRequestSpec) { s.BoundObjectRef = nil }))}, 401, "", "bad-token"},
		{"garbage", one.from, []string{bearer("garbage")}, 401, "", "bad-token"},
		{"a changed signature", one.from, []string{bearer(good[:len(good)-4] + "AAAA")}, 401, "", "bad-token"},
		{"through a proxy", one.from, []string{bearer(good), "X-Forwarded-For: 10.0.0.1"}, 403, "", "proxy"},
	} {
		status, arn, code := containerCredentials(t, s, tc.from, tc.lines...)
		if status != tc.status || arn != tc.arn || code != tc.code {
			t.Errorf("%s: %d %s %q, want %d %s %q", tc.name, status, arn, code, tc.status, tc.arn, tc.code)
		}
	}
	if a := send(t, s, one.from, http.MethodPost, containerPath, bearer(good)); a.StatusCode != http.StatusMethodNotAllowed || !strings.Contains(a.body, `"code":"method-not-allowed"`) {
		t.Errorf("POST: %d %s", a.StatusCode, a.body)
	}
	if logs := s.Logs.String(); strings.Contains(logs, good[len(good)-40:]) || strings.Contains(logs, "eyJ") {
		t.Error("a token is in the log")
	}
	if verified := s.Metric(t, "iam4kube_pod_tokens_total", "outcome", "remembered"); verified == 0 {
		t.Error("no token was remembered")
	}
}

// Whatever of a pod comes last, its token or what the token names, the request is answered
// when it is there, and dead pods' tokens are of no use.
func TestContainerCredentialsWait(t *testing.T) {
	t.Parallel()
	namespace := newNamespace(t, "container-wait")
	s := env.Start(t, env.Config(t))
	s.WaitReady(t)
	w := newWorkload(namespace, "late")
	w.createAccount(t, nil)
	w.createPod(t)
	type result struct {
		status int
		arn    string
	}
	answers := make(chan result, 1)
	token := w.token(t)
	go func() {
		status, arn, _ := containerCredentials(t, s, w.from, "Authorization: "+token)
		answers <- result{status, arn}
	}()
	environment.Eventually(t, time.Minute, func() error {
		if s.Metric(t, "iam4kube_waiting_requests", "missing", "role-annotation") == 0 {
			return fmt.Errorf("nobody waits")
		}
		return nil
	})
	patch := fmt.Sprintf(`{"metadata":{"annotations":{"iam.amazonaws.com/roleArn":%q}}}`, w.arn)
	if _, err := env.Client.CoreV1().ServiceAccounts(namespace).Patch(t.Context(), w.ServiceAccount, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := <-answers; got != (result{200, w.arn}) {
		t.Errorf("%+v", got)
	}

	// Another pod of the same name: its own token counts, the old one's does not.
	if err := env.DeletePod(t.Context(), namespace, w.Name, 0); err != nil {
		t.Fatal(err)
	}
	environment.Eventually(t, time.Minute, func() error { // creation times are in seconds
		if err := env.DeletePod(t.Context(), namespace, w.Name, 0); err == nil {
			return fmt.Errorf("still there")
		}
		w.createPod(t)
		status, _, code := containerCredentials(t, s, w.from, "Authorization: "+token)
		if status != http.StatusForbidden || code != "pod-gone" {
			_ = env.DeletePod(t.Context(), namespace, w.Name, 0)
			return fmt.Errorf("%d %s", status, code)
		}
		return nil
	})
	if status, arn, code := containerCredentials(t, s, w.from, "Authorization: "+w.token(t)); status != http.StatusOK || arn != w.arn {
		t.Errorf("the new pod: %d %s %s", status, arn, code)
	}
}

// In a namespace that insists on tokens an address is worth nothing, on any path.
func TestNamespaceThatInsistsOnTokens(t *testing.T) {
	t.Parallel()
	namespace := newNamespace(t, "container-strict")
	w := newWorkload(namespace, "app").create(t)
	s := env.Start(t, env.Config(t))
	s.WaitReady(t)
	if status, body := s.Get(t, w.from, w.path()); status != http.StatusOK {
		t.Fatalf("%d %s", status, body)
	}
	label := func(value string) {
		patch := fmt.Sprintf(`{"metadata":{"labels":{%q:%s}}}`, identity.LabelIdentity, value)
		if _, err := env.Client.CoreV1().Namespaces().Patch(t.Context(), namespace, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	label(`"token"`)
	environment.Eventually(t, time.Minute, func() error {
		if status, body := s.Get(t, w.from, w.path()); status != http.StatusForbidden || !strings.Contains(body, "/v1/credentials") {
			return fmt.Errorf("%d %s", status, body)
		}
		return nil
	})
	for _, path := range []string{rolesPath, readyPath} {
		if status, body := s.Get(t, w.from, path); status != http.StatusForbidden || env.Leak(body) != "" {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	if status, body := s.Get(t, w.from, docPath); status != http.StatusOK || strings.Contains(body, "accountId") {
		t.Errorf("the document: %d %s", status, body)
	}
	if status, _, code := containerCredentials(t, s, w.from); status != http.StatusForbidden || code != "token-required" {
		t.Errorf("without a token: %d %s", status, code)
	}
	if status, arn, code := containerCredentials(t, s, w.from, "Authorization: "+w.token(t)); status != http.StatusOK || arn != w.arn {
		t.Errorf("with its token: %d %s", status, code)
	}
	environment.Eventually(t, time.Minute, func() error {
		events, err := env.Client.CoreV1().Events(namespace).List(t.Context(), metav1.ListOptions{FieldSelector: "reason=IAMPodTokenMissing"})
		if err != nil {
			return err
		}
		if len(events.Items) == 0 || events.Items[0].Type != corev1.EventTypeWarning {
			return errors.New("no event")
		}
		return nil
	})
	label("null")
	environment.Eventually(t, time.Minute, func() error {
		if status, body := s.Get(t, w.from, w.path()); status != http.StatusOK {
			return fmt.Errorf("%d %s", status, body)
		}
		return nil
	})
}
