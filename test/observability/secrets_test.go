package observability

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	corev1 "k8s.io/api/core/v1"

	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
)

// TestServersOwnTokenIsNotRepeated: the server's own identity is a session whose secret key
// is wrong. STS then repeats the whole signed request in its message, session token
// included, and nobody may see that: not in the log, an answer, an event or a metric.
func TestServersOwnTokenIsNotRepeated(t *testing.T) {
	own := env.STS.IssueSession("arn:aws:iam::999988887777:role/server", "server", time.Hour)
	t.Setenv("AWS_ACCESS_KEY_ID", own.AccessKeyID)
	t.Setenv("AWS_SECRET_ACCESS_KEY", "wrong")
	t.Setenv("AWS_SESSION_TOKEN", own.SessionToken)
	cfg := env.Config(t)
	cfg.MaxWait = time.Second
	s := env.Start(t, cfg)
	s.WaitReady(t)
	w := newWorkload(newNamespace(t, "secrets-identity"), "app", env.NewRole()).create(t)
	line, err := s.Logs.Wait(t.Context(), "STS refuses the server's own credentials")
	if err != nil {
		t.Fatal(err)
	}
	if line["code"] != "SignatureDoesNotMatch" || line["level"] != "error" {
		t.Errorf("log line: %v", line)
	}
	if v := s.Metric(t, "iam4kube_sts_identity_refused"); v != 1 {
		t.Errorf("iam4kube_sts_identity_refused is %v", v)
	}
	body := w.get(t, s, http.StatusServiceUnavailable)
	event := w.waitEvent(t, func(e corev1.Event) bool { return e.Reason == string(diagnosis.CredentialsUnavailable) })
	const why = "SignatureDoesNotMatch: STS refuses the server's own AWS credentials"
	if !strings.Contains(body, why) || !strings.Contains(event.Message, why) {
		t.Errorf("answer: %s, event: %s", body, event.Message)
	}
	eventText, err := json.Marshal(event)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"log": s.Logs.String(), "answer": body, "event": string(eventText), "metrics": fetch(t, s.Aux, "/metrics"),
	} {
		if leak := env.Leak(text); leak != "" || strings.Contains(text, "Canonical") || strings.Contains(text, "x-amz-") {
			t.Errorf("%s: %s %s", name, leak, text)
		}
	}
	// The control: this is what STS said, and the search finds it.
	if message := messageOfSTS(t); env.Leak(message) == "" || !strings.Contains(message, "x-amz-security-token:") {
		t.Errorf("STS has not repeated the token: %s", message)
	}
}

// messageOfSTS is the error that the SDK makes of STS's answer to this identity.
func messageOfSTS(t *testing.T) string {
	t.Helper()
	cfg, err := config.LoadDefaultConfig(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = sts.NewFromConfig(cfg).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
	if err == nil {
		t.Fatal("STS accepts a wrong signature")
	}
	return err.Error()
}
