package logging

import (
	"bytes"
	"encoding/json"
	"errors"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"k8s.io/klog/v2"
)

func newLogger(t *testing.T, level, encoding string) (*zap.Logger, *bytes.Buffer) {
	t.Helper()
	var text bytes.Buffer
	log, err := New(&text, level, encoding)
	if err != nil {
		t.Fatal(err)
	}
	return log, &text
}

func lines(t *testing.T, text *bytes.Buffer) []map[string]any {
	t.Helper()
	var all []map[string]any
	for line := range strings.Lines(text.String()) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		all = append(all, fields)
	}
	return all
}

// TestJSON: whatever is in a value, a line is one object, and it has no key that nobody
// asked for.
func TestJSON(t *testing.T) {
	log, text := newLogger(t, "debug", "json")
	log.Error("message", append(Role("ns", "account", "arn", "ns@account"), zap.String(Cause, "two\nlines \"and\" \x00 \xff"), zap.Error(errors.New("error")),
		zap.Duration(Retry, time.Second), zap.Time(Expiration, time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)))...)
	all := lines(t, text)
	if len(all) != 1 {
		t.Fatal(text)
	}
	at, _ := all[0]["time"].(string)
	if _, err := time.Parse(time.RFC3339Nano, at); err != nil {
		t.Error(err)
	}
	delete(all[0], "time")
	got, err := json.Marshal(all[0])
	if err != nil {
		t.Fatal(err)
	}
	want := `{"cause":"two\nlines \"and\" \u0000 ` + "\ufffd" + `","error":"error","expiration":"2030-01-02T03:04:05Z","level":"error","msg":"message",` +
		`"namespace":"ns","retry_in":1,"role_arn":"arn","service_account":"account","session_name":"ns@account"}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestConsole(t *testing.T) {
	log, text := newLogger(t, "info", "console")
	log.Info("message", zap.String(Pod, "p"))
	if !regexp.MustCompile(`^\S+\tinfo\tmessage\t\{"pod": "p"\}\n$`).MatchString(text.String()) {
		t.Errorf("%q", text)
	}
}

func TestLevels(t *testing.T) {
	for i, level := range Levels {
		log, text := newLogger(t, level, "json")
		log.Debug("m")
		log.Info("m")
		log.Warn("m")
		log.Error("m")
		if n := len(lines(t, text)); n != len(Levels)-i {
			t.Errorf("level %s: %d lines", level, n)
		}
	}
	if _, err := New(&bytes.Buffer{}, "loud", "json"); err == nil {
		t.Error("an unknown level is accepted")
	}
}

// TestSampled: ten lines of each message in a second, whatever else is in them, and ten more
// in the next.
func TestSampled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, text := newLogger(t, "info", "json")
		sampled := Sampled(log)
		for second := 1; second <= 3; second++ {
			for i := range 1000 {
				sampled.Warn("often", zap.Int(Status, i))
			}
			sampled.Warn("seldom")
			if n := len(lines(t, text)); n != 11*second {
				t.Errorf("%d lines after %d s", n, second)
			}
			time.Sleep(time.Second) //nolint:forbidigo // the bubble's clock
		}
		log.Info("another logger is not sampled")
	})
}

func TestForHTTP(t *testing.T) {
	log, text := newLogger(t, "info", "json")
	ForHTTP(log).Printf("http: panic serving %s:\ngoroutine 1", "127.0.0.1")
	if all := lines(t, text); len(all) != 1 || all[0]["msg"] != "HTTP server" || all[0][Cause] != "http: panic serving 127.0.0.1:\ngoroutine 1" {
		t.Errorf("%s", text)
	}
}

// TestKlog: the lines of client-go are lines like all others, say whose they are, and cannot
// flood.
func TestKlog(t *testing.T) {
	log, text := newLogger(t, "info", "json")
	TakeOverKlog(log)
	defer klog.ClearLogger()
	klog.InfoS("structured", "key", "value")
	klog.ErrorS(errors.New("refused"), "failed")
	klog.Warningf("formatted %d", 1)
	klog.V(4).InfoS("detail")
	all := lines(t, text)
	if len(all) != 3 {
		t.Fatalf("%s", text)
	}
	for i, message := range []string{"structured", "failed", "formatted 1"} {
		if all[i]["msg"] != message || all[i][Library] != ClientGo {
			t.Errorf("%v", all[i])
		}
	}
	if all[0]["key"] != "value" || all[1]["level"] != "error" || all[1]["error"] != "refused" {
		t.Errorf("%s", text)
	}
	for range 1000 {
		klog.ErrorS(nil, "failed")
	}
	if n := len(lines(t, text)); n > 3+2*10 { // the second may change meanwhile
		t.Errorf("%d lines", n)
	}
}
