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

// A document is made once, however many ask for it.
func TestDocumentIsMadeOnce(t *testing.T) {
	issued, made := newIssued(issuedFor(time.Hour)), 0
	render := func(c *sts.Credentials) []byte {
		made++
		return []byte(c.AccessKeyID)
	}
	for range 3 {
		if got := string(issued.Document(FormMetadata, render)); got != issued.AccessKeyID {
			t.Errorf("got %q", got)
		}
	}
	if made != 1 {
		t.Errorf("made %d times", made)
	}
	if next := newIssued(issuedFor(time.Hour)); len(next.Document(FormMetadata, render)) == 0 || made != 2 {
		t.Errorf("made %d times for two", made)
	}
}

// No way to print, log or encode credentials shows a secret, by accident or not.
func TestIssuedShowsNoSecret(t *testing.T) {
	issued := newIssued(issuedFor(time.Hour))
	issued.Document(FormContainer, func(c *sts.Credentials) []byte { return []byte(c.SecretAccessKey.Reveal() + c.SessionToken.Reveal()) })
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
