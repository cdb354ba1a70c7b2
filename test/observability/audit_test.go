package observability

import (
	"bufio"
	"encoding/json"
	"os"
	"testing"
	"time"
)

// auditEvent is what is read here of an audit.k8s.io/v1 Event.
type auditEvent struct {
	Stage      string
	Verb       string
	RequestURI string
	UserAgent  string
	User       struct{ Username string }
	ObjectRef  struct{ Resource, Namespace, Name string }
	// ResponseStatus is zero when a watch begins.
	ResponseStatus           struct{ Code int }
	RequestReceivedTimestamp time.Time
}

// audited returns the requests of everybody but the tests themselves that satisfy the
// condition, one event for each.
func audited(t *testing.T, condition func(auditEvent) bool) []auditEvent {
	t.Helper()
	file, err := os.Open(env.AuditLog())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	var events []auditEvent
	lines := bufio.NewReader(file)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return events // the last line may be half written
		}
		var e auditEvent
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatal(err)
		}
		ends := e.Stage == "ResponseComplete" && e.Verb != "watch" || e.Stage == "ResponseStarted"
		if ends && condition(e) {
			events = append(events, e)
		}
	}
}
