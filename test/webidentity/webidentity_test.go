package webidentity

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/fakests"
)

// Pods get the roles that trust their ServiceAccount, and no others, from a server that has no
// AWS credentials and looks for none.
func TestRolesByToken(t *testing.T) {
	i := newIssuer(t)
	publish(t, i)
	namespace := newNamespace(t, "by-token")
	const policy = "arn:aws:iam::aws:policy/ReadOnlyAccess"
	other := func(claim, value string) func(*fakests.Role) {
		return func(r *fakests.Role) {
			r.Trust.StringEquals[strings.TrimPrefix(i.URL, "https://")+":"+claim] = []string{value}
		}
	}
	tagged := mustCreate(t, i, namespace, "tagged", func(r *fakests.Role) {
		r.Trust.TagSession, r.Trust.SetSourceIdentity = true, true
		r.Trust.RequestTags = map[string]string{"kubernetes-namespace": namespace, "kubernetes-cluster": "east-1"}
	}, role.AnnotationDuration, "43200", role.AnnotationPolicyARNs, policy)
	untagged := mustCreate(t, i, namespace, "untagged", nil)
	s := start(t, i, "--session-tags", "--cluster", "east-1", "--source-identity")
	s.WaitReady(t)

	// Everything that a session can have, for twelve hours, which no chain of roles allows.
	got := tagged.session(t, s)
	provider := "arn:aws:iam::" + environment.Account + ":oidc-provider/" + strings.TrimPrefix(i.URL, "https://")
	wantTags := []fakests.Tag{{Key: "kubernetes-cluster", Value: "east-1"}, {Key: "kubernetes-namespace", Value: namespace}, {Key: "kubernetes-service-account", Value: "tagged"}}
	if got.CallerARN != provider+":system:serviceaccount:"+namespace+":tagged" || got.SessionName != namespace+"@tagged" || got.SourceIdentity != got.SessionName ||
		!slices.Equal(got.Tags, wantTags) || len(got.Transitive) != 3 || !slices.Equal(got.PolicyARNs, []string{policy}) || time.Until(got.Expiration) < 11*time.Hour {
		t.Errorf("%+v", got)
	}
	for _, a := range attempts(tagged.arn) {
		if a.Action != "AssumeRoleWithWebIdentity" || a.AccessKeyID != "" || a.Outcome != fakests.OutcomeSuccess {
			t.Errorf("%+v", a)
		}
	}
	mustSay(t, untagged.denial(t, s), "Not authorized to perform sts:AssumeRoleWithWebIdentity", "sts:TagSession", "sts:SetSourceIdentity")

	plain := start(t, i)
	plain.WaitReady(t)
	for name, tc := range map[string]struct {
		change func(*fakests.Role)
		says   []string
	}{
		"wrong-sub": {other("sub", "system:serviceaccount:"+namespace+":another"), []string{"Not authorized", ":sub system:serviceaccount:" + namespace + ":wrong-sub"}},
		"wrong-aud": {other("aud", "sts.example.com"), []string{"Not authorized", ":aud sts.amazonaws.com"}},
	} {
		w := mustCreate(t, i, namespace, name, tc.change)
		mustSay(t, w.denial(t, plain), tc.says...)
	}
	w := mustCreate(t, i, namespace, "plain", nil)
	if got := w.session(t, plain); got.Tags != nil || got.SourceIdentity != "" {
		t.Errorf("%+v", got)
	}

	// What is wrong with one account's provider is a matter of its roles.
	env.STS.AddOIDCProvider(fakests.OIDCProvider{Account: environment.Account, URL: i.URL, ClientIDs: []string{"sts.example.com"}})
	w = mustCreate(t, i, namespace, "wrong-audience", nil)
	mustSay(t, w.denial(t, plain), "Incorrect token audience", "account "+environment.Account)
	env.STS.RemoveOIDCProvider(environment.Account, i.URL)
	w = mustCreate(t, i, namespace, "no-provider", nil)
	mustSay(t, w.denial(t, plain), "No OpenIDConnect provider found", "account "+environment.Account, i.URL)
	if refused := plain.Metric(t, "iam4kube_sts_identity_refused"); refused != 0 {
		t.Errorf("the server's identity counts as refused: %v", refused)
	}
	environment.Eventually(t, time.Minute, func() error { // nothing waits for the check
		if plain.Metric(t, "iam4kube_issuer_check", "outcome", "published") != 1 {
			return errors.New("the URL is not taken for published")
		}
		return nil
	})
}

// An annotation that asks for an external ID is a wrong one, and STS is not asked.
func TestExternalIDIsRefused(t *testing.T) {
	i := newIssuer(t)
	publish(t, i)
	namespace := newNamespace(t, "external-id")
	w := mustCreate(t, i, namespace, "app", nil, role.AnnotationExternalID, "7Qx-app")
	s := start(t, i)
	s.WaitReady(t)
	status, body := s.Get(t, w.from, w.path())
	if status != http.StatusNotFound {
		t.Errorf("%d %s", status, body)
	}
	mustSay(t, body, role.AnnotationExternalID, "AssumeRoleWithWebIdentity, which has no external IDs")
	mustHaveEvent(t, namespace, "IAMRoleAnnotationInvalid", "app", "external IDs")
	if n := s.Metric(t, "iam4kube_service_accounts", "role", "invalid"); n != 1 {
		t.Errorf("%v counted as invalid", n)
	}
	if n := len(attempts(w.arn)); n != 0 {
		t.Errorf("STS was asked %d times", n)
	}
}

func mustHaveEvent(t *testing.T, namespace, reason, object string, parts ...string) {
	t.Helper()
	environment.Eventually(t, time.Minute, func() error {
		events, err := env.Client.CoreV1().Events(namespace).List(t.Context(), metav1.ListOptions{FieldSelector: "reason=" + reason + ",involvedObject.name=" + object})
		if err != nil {
			return err
		}
		for _, e := range events.Items {
			if !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(e.Message, part) }) {
				return nil
			}
		}
		return fmt.Errorf("no event %s on %s with %q in %+v", reason, object, parts, events.Items)
	})
}

// Before the documents are there everybody is told: answers, the metric of the server's identity,
// the check, and an event on the server's own pod. When they are, roles work without a restart.
func TestUnpublishedKey(t *testing.T) {
	i := newIssuer(t)
	// The server's pod is on an address of this machine.
	pod := controlplane.Pod{Namespace: environment.Namespace, Name: "server-0", ServiceAccount: environment.ServiceAccount, IPs: []string{"127.0.0.1"}}
	if _, err := env.CreatePod(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = env.DeletePod(t.Context(), pod.Namespace, pod.Name, 0) })
	w := mustCreate(t, i, newNamespace(t, "unpublished"), "app", nil)
	s := start(t, i, "--max-wait", "3s")
	var body string
	environment.Eventually(t, time.Minute, func() error { // on a busy machine, the pod and STS's answer come late
		var status int
		if status, body = s.Get(t, w.from, "/v1/credentials"); status != http.StatusServiceUnavailable || !strings.Contains(body, "Couldn't retrieve verification key") {
			return fmt.Errorf("%d %s", status, body)
		}
		return nil
	})
	mustSay(t, body, i.URL+"/.well-known/openid-configuration", "server issuer")
	mustHaveEvent(t, environment.Namespace, "IAMIssuerUnpublished", pod.Name, i.URL, "HTTP status 404")
	if s.Metric(t, "iam4kube_sts_identity_refused") != 1 || s.Metric(t, "iam4kube_issuer_check", "outcome", "unpublished") != 1 {
		t.Error("the metrics do not say so")
	}
	if status, _ := s.Readyz(t); status == http.StatusOK {
		t.Error("ready, though no role can work")
	}
	publish(t, i)
	environment.Eventually(t, time.Minute, func() error {
		if s.Metric(t, "iam4kube_issuer_check", "outcome", "published") != 1 {
			return errors.New("the check does not see it")
		}
		return nil
	})
	s.WaitReady(t)
	w.session(t, s)
	if s.Metric(t, "iam4kube_sts_identity_refused") != 0 {
		t.Error("the identity still counts as refused")
	}
}

// A clock that is three minutes off is named where AWS refuses its tokens, and so is one that is
// far behind; three minutes behind do no harm.
func TestClockIsOff(t *testing.T) {
	i := newIssuer(t)
	publish(t, i)
	namespace := newNamespace(t, "clock")
	s := start(t, i, "--max-wait", "3s")
	s.WaitReady(t)
	t.Cleanup(func() { env.STS.SetClock(0) })
	for aws, says := range map[time.Duration]string{-3 * time.Minute: "ahead of that of STS by 3m0s", 12 * time.Minute: "behind that of STS by 12m0s"} {
		env.STS.SetClock(aws)
		w := mustCreate(t, i, namespace, fmt.Sprintf("app-%d", aws/time.Minute+10), nil)
		status, body := s.Get(t, w.from, "/v1/credentials")
		if status != http.StatusServiceUnavailable {
			t.Errorf("%d %s", status, body)
		}
		// A second more or less is a matter of rounding.
		if rounded := strings.NewReplacer("2m59s", "3m0s", "3m1s", "3m0s", "11m59s", "12m0s", "12m1s", "12m0s").Replace(body); !strings.Contains(rounded, says) {
			t.Errorf("STS's clock %v ahead: %s", aws, body)
		}
	}
	env.STS.SetClock(3 * time.Minute)
	mustCreate(t, i, namespace, "behind", nil).session(t, s)
}

// A Secret that is deleted by mistake is made anew with what is in use, and a replica that starts
// without one makes the first.
func TestSecretIsCreated(t *testing.T) {
	i := newIssuer(t)
	secrets := env.Client.CoreV1().Secrets(environment.Namespace)
	publish(t, i)
	before, err := secrets.Get(t.Context(), "iam4kube-issuer-key", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	first := start(t, i)
	if _, err := first.Logs.Wait(t.Context(), "tokens for STS are signed with another key"); err != nil {
		t.Fatal(err)
	}
	if err := secrets.Delete(t.Context(), before.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	environment.Eventually(t, time.Minute, func() error {
		after, err := secrets.Get(t.Context(), before.Name, metav1.GetOptions{})
		if err == nil && !maps.EqualFunc(before.Data, after.Data, bytes.Equal) {
			t.Fatal("another key than the one in use")
		}
		return err
	})
	if err := first.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := secrets.Delete(t.Context(), before.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	second := start(t, i)
	line, err := second.Logs.Wait(t.Context(), "tokens for STS are signed with another key")
	if err != nil {
		t.Fatal(err)
	}
	documents, _, err := issue(t, i.URL)
	if err != nil || !strings.Contains(documents, fmt.Sprint(line["key_id"])) {
		t.Errorf("%v: %s", err, documents)
	}
}

// Tokens are verified by a second implementation of JOSE, with the keys that it finds at the
// issuer's URL; and one that it makes, with the claims of AWS's own example, is understood by the
// fake STS as AWS documents it.
func TestSecondImplementation(t *testing.T) {
	i := newIssuer(t)
	publish(t, i)
	namespace := newNamespace(t, "second")
	w := mustCreate(t, i, namespace, "app", func(r *fakests.Role) { r.Trust.TagSession, r.Trust.SetSourceIdentity = true, true })
	s := start(t, i, "--session-tags", "--session-tag", "team=a b", "--source-identity")
	w.session(t, s)
	var token string
	for _, secret := range env.STS.Secrets() {
		if parts := strings.Split(secret, "."); len(parts) == 3 {
			if claims, err := base64.RawURLEncoding.DecodeString(parts[1]); err == nil && strings.Contains(string(claims), ":"+namespace+":") {
				token = secret
			}
		}
	}
	const verify = `
import json, jwt, sys, time, urllib.request
issuer, token = sys.argv[1:]
discovery = json.load(urllib.request.urlopen(issuer + "/.well-known/openid-configuration"))
assert discovery["issuer"] == issuer, discovery
keys = jwt.PyJWKSet.from_dict(json.load(urllib.request.urlopen(discovery["jwks_uri"]))).keys
header = jwt.get_unverified_header(token)
assert header["alg"] == "RS256" and header["typ"] == "JWT", header
[key] = [k.key for k in keys if k.key_id == header["kid"]]
claims = jwt.decode(token, key, algorithms=["RS256"], audience="sts.amazonaws.com", issuer=issuer,
    options={"require": ["exp", "iat", "nbf", "iss", "sub", "aud", "jti"]})
assert claims["exp"] - claims["iat"] == 300 and claims["nbf"] == claims["iat"] and 0 <= time.time() - claims["iat"] < 300, claims
print(json.dumps(claims))
`
	var claims struct {
		Subject string `json:"sub"`
		Tags    struct {
			Principal  map[string][]string `json:"principal_tags"`
			Transitive []string            `json:"transitive_tag_keys"`
		} `json:"https://aws.amazon.com/tags"`
		SourceIdentity string `json:"https://aws.amazon.com/source_identity"`
	}
	if err := json.Unmarshal([]byte(debian(t, verify, []string{"SSL_CERT_FILE=" + i.CAFile}, i.URL, token)), &claims); err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{"kubernetes-namespace": {namespace}, "kubernetes-service-account": {"app"}, "team": {"a b"}}
	if claims.Subject != "system:serviceaccount:"+namespace+":app" || claims.SourceIdentity != namespace+"@app" ||
		!maps.EqualFunc(claims.Tags.Principal, want, slices.Equal) || len(claims.Tags.Transitive) != len(want) {
		t.Errorf("%+v", claims)
	}
	if strings.Contains(s.Logs.String(), token) {
		t.Error("the token is in the log")
	}
}

// The fake STS understands AWS's own example of claims, signed by another implementation of JOSE,
// as AWS's documentation says: tags, those that are transitive, and the source identity.
func TestDocumentedClaims(t *testing.T) {
	i := env.NewIssuer(t)
	env.STS.AddOIDCProvider(fakests.OIDCProvider{Account: environment.Account, URL: i.URL, ClientIDs: []string{"ac_oic_client"}})
	const sign = `
import base64, json, jwt, os, sys, time
from cryptography.hazmat.primitives.asymmetric import rsa
issuer, folder = sys.argv[1:]
key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key()))
public.pop("key_ops", None)
os.makedirs(folder + "/.well-known")
json.dump({"issuer": issuer, "jwks_uri": issuer + "/keys.json", "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
    "id_token_signing_alg_values_supported": ["RS256"], "claims_supported": ["sub"]}, open(folder + "/.well-known/openid-configuration", "w"))
json.dump({"keys": [dict(public, kid="example", alg="RS256", use="sig")]}, open(folder + "/keys.json", "w"))
# https://docs.aws.amazon.com/IAM/latest/UserGuide/id_session-tags.html, with times of now
claims = {"sub": "johndoe", "aud": "ac_oic_client", "jti": "ZYUCeRMQVtqHypVPWAN3VB", "iss": issuer, "iat": int(time.time()) - 1, "exp": int(time.time()) + 60,
    "auth_time": int(time.time()) - 3,
    "https://aws.amazon.com/tags": {
        "principal_tags": {"Project": ["Automation"], "CostCenter": ["987654"], "Department": ["Engineering"]},
        "transitive_tag_keys": ["Project", "CostCenter"]},
    "https://aws.amazon.com/source_identity": "DiegoRamirez"}
print(jwt.encode(claims, key, algorithm="RS256", headers={"kid": "example"}), end="")
`
	folder := filepath.Join(t.TempDir(), "documents")
	token := debian(t, sign, nil, i.URL, folder)
	i.Publish(t, folder)
	arn := env.NewRole(func(r *fakests.Role) {
		provider := strings.TrimPrefix(i.URL, "https://")
		r.Trust = fakests.Trust{
			Federated: "arn:aws:iam::" + environment.Account + ":oidc-provider/" + provider, TagSession: true, SetSourceIdentity: true,
			StringEquals: map[string][]string{provider + ":sub": {"johndoe"}, provider + ":aud": {"ac_oic_client"}, "aws:RequestTag/Department": {"Engineering"}},
		}
	})
	var endpoint string
	for _, pair := range env.AWSEnviron() {
		if address, found := strings.CutPrefix(pair, "AWS_ENDPOINT_URL_STS="); found {
			endpoint = address
		}
	}
	response, err := http.PostForm(endpoint+"/", url.Values{
		"Action": {"AssumeRoleWithWebIdentity"}, "Version": {"2011-06-15"}, "RoleArn": {arn}, "RoleSessionName": {"johndoe"}, "WebIdentityToken": {token},
	})
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	_ = response.Body.Close()
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%d %v %s", response.StatusCode, err, body)
	}
	done := attempts(arn)
	got, _ := env.STS.Issued(done[0].IssuedAccessKeyID)
	want := []fakests.Tag{{Key: "CostCenter", Value: "987654"}, {Key: "Department", Value: "Engineering"}, {Key: "Project", Value: "Automation"}}
	if !slices.Equal(got.Tags, want) || !slices.Equal(got.Transitive, []string{"Project", "CostCenter"}) || got.SourceIdentity != "DiegoRamirez" || got.KeyID != "example" {
		t.Errorf("%+v", got)
	}
}
