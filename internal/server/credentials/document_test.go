package credentials

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/iam4kube/iam4kube/internal/server/sts"
)

// The document has exactly EC2's fields, and an expiration that every SDK can read.
func TestDocument(t *testing.T) {
	at := time.Date(2026, 11, 23, 9, 8, 7, 654321, time.FixedZone("", 3600))
	document := newIssued(&sts.Credentials{
		AccessKeyID: "ASIA2222222222222222", SecretAccessKey: `a/+"b`, SessionToken: "token==", Issued: at, Expiration: at.Add(time.Hour),
	}).Document()
	var fields map[string]string
	if err := json.Unmarshal(document, &fields); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"Code": "Success", "LastUpdated": "2026-11-23T08:08:07Z", "Type": "AWS-HMAC", "AccessKeyId": "ASIA2222222222222222",
		"SecretAccessKey": `a/+"b`, "Token": "token==", "Expiration": "2026-11-23T09:08:07Z",
	}
	if fmt.Sprint(fields) != fmt.Sprint(want) {
		t.Errorf("%s", document)
	}
}

// No way to print, log or encode credentials shows a secret, by accident or not.
func TestIssuedShowsNoSecret(t *testing.T) {
	issued := newIssued(issuedFor(time.Hour))
	for _, value := range []any{issued, *issued, []*Issued{issued}, []Issued{*issued}, map[string]any{"a": *issued}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%c", "%U", "%o", "%b", "%e", "%z"} {
			refuseSecret(t, fmt.Sprintf(verb, value), "%T as %s", value, verb)
		}
		encoded, err := json.Marshal(value)
		if err != nil {
			t.Error(err)
		}
		refuseSecret(t, string(encoded), "%T as JSON", value)
		var log bytes.Buffer
		for _, encoder := range []zapcore.Encoder{zapcore.NewJSONEncoder(zapcore.EncoderConfig{}), zapcore.NewConsoleEncoder(zapcore.EncoderConfig{})} {
			logger := zap.New(zapcore.NewCore(encoder, zapcore.AddSync(&log), zapcore.DebugLevel))
			logger.Info("any", zap.Any("value", value))
			logger.Sugar().Info(value)
		}
		refuseSecret(t, log.String(), "%T in a log", value)
	}
	if text := issued.String(); !strings.Contains(text, issued.AccessKeyID) {
		t.Errorf("says only %q", text)
	}
}

// refuseSecret fails if the text holds a secret, in clear text, as hexadecimal, or as the
// decimal numbers of its bytes.
func refuseSecret(t *testing.T, text, format string, arguments ...any) {
	t.Helper()
	const part = "never-to-be-seen"
	decimal := strings.Trim(fmt.Sprintf("%d", []byte(part)), "[]")
	for _, form := range []string{part, fmt.Sprintf("%x", part), fmt.Sprintf("%X", part), decimal} {
		if strings.Contains(text, form) {
			t.Errorf(format+" shows a secret: %s", append(arguments, text)...)
		}
	}
}
