package environment

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
)

// Logs collects JSON log lines. The zero value is empty.
type Logs struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{}
	also    *Logs
}

// Write implements io.Writer.
func (l *Logs) Write(p []byte) (int, error) {
	if l.also != nil {
		_, _ = l.also.Write(p) // a buffer never fails
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
	return l.text.Write(p)
}

// String is everything that was logged.
func (l *Logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Lines are the whole lines so far that have this message; an empty one means all.
func (l *Logs) Lines(message string) []map[string]any {
	var lines []map[string]any
	text := l.String()
	for line := range strings.Lines(text[:strings.LastIndexByte(text, '\n')+1]) {
		var fields map[string]any
		if json.Unmarshal([]byte(line), &fields) == nil && (message == "" || fields["msg"] == message) {
			lines = append(lines, fields)
		}
	}
	return lines
}

// Wait returns the first line with this message as soon as there is one.
func (l *Logs) Wait(ctx context.Context, message string) (map[string]any, error) {
	for {
		l.mu.Lock()
		if l.changed == nil {
			l.changed = make(chan struct{})
		}
		changed := l.changed
		l.mu.Unlock()
		if lines := l.Lines(message); len(lines) > 0 {
			return lines[0], nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("no log line %q: %w; logged: %s", message, ctx.Err(), l.String())
		}
	}
}
