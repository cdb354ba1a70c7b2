package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

const (
	// Stdout is the path that means the standard output.
	Stdout = "-"

	// queueLength is how many records wait for the file, of 1 KiB each at most but for
	// Cause. Pods that are served for the first time all come at once.
	queueLength = 8192
	// batchBytes is how much is written at once.
	batchBytes = 64 << 10
	// quietEvery is how often quiet sources are looked for.
	quietEvery = 10 * time.Second
	// closeWithin is what the last records have to reach a file that does not take any.
	closeWithin = 5 * time.Second
	// fileMode: records name pods and keys, which is nobody else's business.
	fileMode = 0o600
)

// Log is an audit log. A nil Log takes records and writes none.
type Log struct {
	path    string
	replica string
	log     *zap.Logger
	budget  *budget
	queue   chan *Record
	reopen  chan os.Signal
	total   *prometheus.CounterVec
	// lost are records since the last that was written.
	lost atomic.Int64

	// The rest is the writer's.
	out io.WriteCloser
	// torn: the last write ended within a line. failing: it failed, and that was logged.
	torn, failing bool
}

// Outcomes of iam4kube_audit_records_total.
const (
	outcomeWritten = "written"
	outcomeLeftOut = "left-out"
	outcomeLost    = "lost"
)

// Check finds what Open would fail at and can be seen without making the file.
func Check(path string) error {
	if path == "" || path == Stdout {
		return nil
	}
	if folder, err := os.Stat(filepath.Dir(path)); err != nil || !folder.IsDir() {
		return errors.New("want - for the standard output, or a file in a folder that exists")
	}
	if file, err := os.Stat(path); err == nil && !file.Mode().IsRegular() {
		return errors.New("want - for the standard output, or a regular file")
	}
	return nil
}

// Open returns a Log that appends to the file, which is made if it is not there, or nil
// without a path. Records wait until Run writes them. From here on SIGHUP makes the Log open
// the file anew.
func Open(path string, registry prometheus.Registerer, log *zap.Logger) (*Log, error) {
	total := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "iam4kube_audit_records_total",
		Help: "Records of the audit log: written, left out because their source had too many, or lost because the file did not take them.",
	}, []string{"outcome"})
	for _, outcome := range []string{outcomeWritten, outcomeLeftOut, outcomeLost} {
		total.WithLabelValues(outcome)
	}
	registry.MustRegister(total)
	if path == "" {
		return nil, nil // which takes records and writes none
	}
	l := &Log{path: path, log: log, budget: newBudget(), queue: make(chan *Record, queueLength), total: total}
	l.replica, _ = os.Hostname() // without it, the file tells whose it is
	out, err := openFile(path)
	if err != nil {
		return nil, fmt.Errorf("--audit-log: %w", err)
	}
	l.out = out
	l.reopen = make(chan os.Signal, 1)
	if path != Stdout {
		signal.Notify(l.reopen, syscall.SIGHUP)
	}
	return l, nil
}

func openFile(path string) (io.WriteCloser, error) {
	if path == Stdout {
		return os.Stdout, nil
	}
	return os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, fileMode)
}

// Record takes a record, and never waits. Of those but HandedOut, which come once for each pod
// and credentials, what a source has too many of is left out.
func (l *Log) Record(r Record) {
	if l == nil {
		return
	}
	r.Time = time.Now()
	from := source{r.SourceIP, r.Kind}
	if r.Event != HandedOut {
		leftOut, ok := l.budget.admit(r.Time, from)
		if !ok {
			l.total.WithLabelValues(outcomeLeftOut).Inc()
			return
		}
		r.LeftOut = leftOut
	}
	select {
	case l.queue <- &r:
	default:
		l.lose(1)
		l.budget.restore(from, r.LeftOut)
	}
}

func (l *Log) lose(n int) {
	l.lost.Add(int64(n))
	l.total.WithLabelValues(outcomeLost).Add(float64(n))
}

// Run writes records until ctx ends, and then those that are left. A file that takes none
// keeps it no longer than closeWithin.
func (l *Log) Run(ctx context.Context) error {
	if l == nil {
		<-ctx.Done()
		return nil
	}
	defer signal.Stop(l.reopen)
	written := make(chan struct{})
	go func() {
		defer close(written)
		l.write(ctx)
	}()
	<-ctx.Done()
	timer := time.NewTimer(closeWithin)
	defer timer.Stop()
	select {
	case <-written:
	case <-timer.C: // a write that hangs cannot be ended, but the process can
		l.log.Error("the audit log takes no records: the last ones are lost")
	}
	return nil
}

func (l *Log) write(ctx context.Context) {
	ticker := time.NewTicker(quietEvery)
	defer ticker.Stop()
	for {
		select {
		case r := <-l.queue:
			l.flush(r)
		case now := <-ticker.C:
			l.tellLeftOut(now, false)
		case <-l.reopen:
			l.openAnew()
		case <-ctx.Done():
			l.flush()
			l.tellLeftOut(time.Now(), true)
			if l.path != Stdout {
				_ = l.out.Close() // nothing is buffered
			}
			return
		}
	}
}

// tellLeftOut writes what quiet sources have not been told of, or all.
func (l *Log) tellLeftOut(now time.Time, all bool) {
	for from, n := range l.budget.quiet(now, all) {
		l.flush(&Record{Time: now, Event: LeftOut, Kind: from.kind, SourceIP: from.addr, LeftOut: n})
	}
}

// openAnew is for whoever has renamed the file. While that fails, the old one is written.
func (l *Log) openAnew() {
	out, err := openFile(l.path)
	if err != nil {
		l.log.Error("could not open the audit log anew: the old file is written", zap.Error(err))
		return
	}
	_ = l.out.Close() // nothing is buffered
	l.out, l.torn = out, false
}

// flush writes these records and those that wait.
func (l *Log) flush(records ...*Record) {
	var batch bytes.Buffer
	for {
		for _, r := range records {
			l.add(&batch, r)
		}
		records = nil
		for batch.Len() < batchBytes {
			select {
			case r := <-l.queue:
				l.add(&batch, r)
				continue
			default:
			}
			break
		}
		if batch.Len() == 0 {
			return
		}
		l.writeLines(batch.Bytes())
		batch.Reset()
	}
}

func (l *Log) add(batch *bytes.Buffer, r *Record) {
	r.Schema, r.Time, r.Replica = Schema, r.Time.UTC(), l.replica
	encoder := json.NewEncoder(batch) // which ends the line
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(r); err != nil {
		panic(err) // texts, numbers and times always marshal
	}
}

// writeLines writes lines after what says how many were lost before them, if any were.
func (l *Log) writeLines(lines []byte) {
	var head bytes.Buffer
	if l.torn {
		head.WriteByte('\n')
	}
	lost := int(l.lost.Swap(0))
	if lost > 0 {
		l.add(&head, &Record{Time: time.Now(), Event: Lost, LeftOut: lost})
	}
	all := append(head.Bytes(), lines...)
	n, err := l.out.Write(all)
	whole := max(0, bytes.Count(all[:n], []byte("\n"))-bytes.Count(all[:min(n, head.Len())], []byte("\n")))
	l.total.WithLabelValues(outcomeWritten).Add(float64(whole))
	if n > 0 {
		l.torn = all[n-1] != '\n'
	}
	if err == nil {
		l.failing = false
		return
	}
	l.lose(bytes.Count(lines, []byte("\n")) - whole)
	if n < head.Len() {
		l.lost.Add(int64(lost)) // nobody has read of them
	}
	if !l.failing {
		l.failing = true
		l.log.Error("could not write the audit log", zap.Error(err))
	}
}
