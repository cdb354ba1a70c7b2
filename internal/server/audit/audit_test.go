package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// file is one that can hang, fail and take a part.
type file struct {
	mu    sync.Mutex
	text  strings.Builder
	gate  chan struct{} // each write takes one, unless it is nil
	limit int           // bytes that are taken before writes fail; negative: no limit
}

func (f *file) Write(p []byte) (int, error) {
	if f.gate != nil {
		<-f.gate
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.limit >= 0 && len(p) > f.limit {
		n, _ := f.text.Write(p[:f.limit])
		f.limit = 0
		return n, errors.New("disk full")
	}
	return f.text.Write(p)
}

func (f *file) Close() error { return nil }

func (f *file) records(t *testing.T) []Record {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	return parse(t, f.text.String())
}

// parse reads the lines but those that are torn.
func parse(t *testing.T, text string) (all []Record) {
	t.Helper()
	for line := range strings.Lines(text) {
		var r Record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			continue
		}
		if r.Schema != Schema || r.Time.IsZero() {
			t.Errorf("a record without schema and time: %s", line)
		}
		all = append(all, r)
	}
	return all
}

func newLog(f *file) *Log {
	total := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "iam4kube_audit_records_total", Help: "x"}, []string{"outcome"})
	total.WithLabelValues(outcomeWritten)
	return &Log{path: Stdout, out: f, log: zap.NewNop(), budget: newBudget(), queue: make(chan *Record, queueLength), total: total, reopen: make(chan os.Signal)}
}

// count is a value of iam4kube_audit_records_total.
func (l *Log) count(outcome string) int {
	registry := prometheus.NewRegistry()
	registry.MustRegister(l.total)
	families, _ := registry.Gather() // of one that has no errors
	for _, m := range families[0].GetMetric() {
		if m.GetLabel()[0].GetValue() == outcome {
			return int(m.GetCounter().GetValue())
		}
	}
	return 0
}

// run starts the log and returns what stops it.
func (l *Log) run(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func from(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
}

// One source is told of now and then, with what was left out, and takes nothing from another;
// what it was last left out of is told when it is quiet.
func TestOneSourceIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &file{limit: -1}
		l := newLog(f)
		stop := l.run(t)
		const seconds, perSecond = 60, 50
		for range seconds {
			for range perSecond {
				l.Record(Record{Event: Refused, Kind: "token", SourceIP: from(1)})
			}
			time.Sleep(time.Second) //nolint:forbidigo // the bubble's clock
		}
		l.Record(Record{Event: Refused, Kind: "token", SourceIP: from(2)})
		l.Record(Record{Event: Refused, Kind: "host", SourceIP: from(1)})
		time.Sleep(sourceAtOnce*sourceEvery + quietEvery) //nolint:forbidigo // the bubble's clock
		told := map[string]int{}
		written, leftOut := 0, 0
		for _, r := range f.records(t) {
			told[fmt.Sprint(r.Event, " ", r.Kind, " ", r.SourceIP)]++
			leftOut += r.LeftOut
			if r.Event == Refused {
				written++
			}
		}
		if most := sourceAtOnce + seconds/int(sourceEvery.Seconds()); told["refused token 10.0.0.1"] > most || told["refused token 10.0.0.1"] < sourceAtOnce {
			t.Errorf("%v", told)
		}
		if told["refused token 10.0.0.2"] != 1 || told["refused host 10.0.0.1"] != 1 || told["left-out token 10.0.0.1"] != 1 {
			t.Errorf("%v", told)
		}
		if all := seconds*perSecond + 2; written+leftOut != all || l.count(outcomeLeftOut) != leftOut {
			t.Errorf("%d written, %d left out, %d by the metric, of %d", written, leftOut, l.count(outcomeLeftOut), all)
		}
		stop()
	})
}

// Any number of sources takes a bounded number of lines and of bytes of memory.
func TestManySourcesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &file{limit: -1}
		l := newLog(f)
		stop := l.run(t)
		const all = 5 * mostSources
		for i := range all {
			l.Record(Record{Event: Denied, Kind: "node-address", SourceIP: from(i)})
		}
		if n := len(l.budget.sources); n > mostSources+1 {
			t.Errorf("%d sources", n)
		}
		stop()
		written, leftOut := 0, 0
		for _, r := range f.records(t) {
			leftOut += r.LeftOut
			if r.Event == Denied {
				written++
			}
		}
		if written > allAtOnce || written+leftOut != all {
			t.Errorf("%d written, %d left out, of %d", written, leftOut, all)
		}
	})
}

// A file that hangs keeps nobody waiting. What does not fit is counted, and told as soon as
// the file takes lines again.
func TestNobodyWaitsForTheFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &file{limit: -1, gate: make(chan struct{})}
		l := newLog(f)
		stop := l.run(t)
		start := time.Now()
		const all = 3 * queueLength
		for i := range all {
			l.Record(Record{Event: HandedOut, Pod: fmt.Sprint(i)})
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("it took %v", took)
		}
		synctest.Wait()
		close(f.gate)
		synctest.Wait()
		l.Record(Record{Event: HandedOut, Pod: "last"})
		stop()
		written, lost := 0, 0
		for _, r := range f.records(t) {
			if r.Event == Lost {
				lost += r.LeftOut
			} else {
				written++
			}
		}
		if written+lost != all+1 || lost == 0 || lost != l.count(outcomeLost) || written != l.count(outcomeWritten) {
			t.Errorf("%d written, %d lost, of %d; by the metric %d and %d", written, lost, all+1, l.count(outcomeWritten), l.count(outcomeLost))
		}
	})
}

// A file that never takes a line keeps the program from its end for a moment only.
func TestHangingFileDoesNotKeepTheProgram(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &file{limit: -1, gate: make(chan struct{})}
		l := newLog(f)
		stop := l.run(t)
		l.Record(Record{Event: HandedOut})
		synctest.Wait()
		start := time.Now()
		stop()
		if took := time.Since(start); took != closeWithin {
			t.Errorf("it took %v", took)
		}
		close(f.gate) // so that the bubble can end
	})
}

// A disk that is full in the middle of a line costs that line and those behind it, which the
// next ones tell; no line is the end of another.
func TestFullDisk(t *testing.T) {
	f := &file{limit: 300}
	l := newLog(f)
	for _, pod := range []string{"a", "b", "c", "d"} {
		l.queue <- &Record{Time: time.Now(), Event: HandedOut, Pod: pod}
	}
	l.flush() // one write
	f.limit = -1
	l.flush(&Record{Time: time.Now(), Event: HandedOut, Pod: "e"})
	var told []string
	for _, r := range f.records(t) {
		told = append(told, fmt.Sprint(r.Event, r.Pod, r.LeftOut))
	}
	if got := strings.Join(told, " "); got != "handed-outa0 handed-outb0 lost2 handed-oute0" {
		t.Errorf("%s\n%s", got, f.text.String())
	}
	if l.count(outcomeWritten) != 3 || l.count(outcomeLost) != 2 {
		t.Errorf("%d written, %d lost", l.count(outcomeWritten), l.count(outcomeLost))
	}
}

// SIGHUP, after the file was renamed: lines go to a new one, and none is lost. A path that
// cannot be opened any more leaves the old file in use.
func TestRotation(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "audit.log")
	l, err := Open(path, prometheus.NewRegistry(), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	stop := l.run(t)
	hangUp := func(until func() bool) {
		t.Helper()
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(10 * time.Second); !until(); {
			if time.Now().After(deadline) {
				t.Fatal("nothing happened")
			}
		}
	}
	exists := func(path string) bool { _, err := os.Stat(path); return err == nil }
	l.Record(Record{Event: HandedOut, Pod: "before"})
	for l.count(outcomeWritten) != 1 {
	}
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	hangUp(func() bool { return exists(path) })
	l.Record(Record{Event: HandedOut, Pod: "after"})
	stop()
	for name, pod := range map[string]string{path + ".1": "before", path: "after"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if all := parse(t, string(text)); len(all) != 1 || all[0].Pod != pod {
			t.Errorf("%s: %s", name, text)
		}
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != fileMode {
			t.Errorf("%v %v", info.Mode(), err)
		}
	}
}

func TestWrongPaths(t *testing.T) {
	folder := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(folder, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		folder + "/none/audit.log": "folder that exists", folder: "regular file", folder + "/fifo": "regular file",
		folder + "/new": "", Stdout: "", "": "",
	} {
		if err := Check(path); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
	_, err := Open(folder+"/none/audit.log", prometheus.NewRegistry(), zap.NewNop())
	if err == nil || !strings.HasPrefix(err.Error(), "--audit-log: open "+folder) {
		t.Errorf("%v", err)
	}
	l, err := Open("", prometheus.NewRegistry(), zap.NewNop())
	if l != nil || err != nil {
		t.Errorf("%v %v", l, err)
	}
	l.Record(Record{})
}
