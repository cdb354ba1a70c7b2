package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
)

// errOurs is a failure of iam4kube: everything else may be the machine's, and is tried again.
var errOurs = errors.New("iam4kube failed")

// second and failure are what `client load` prints.
type second struct {
	Start    time.Time
	Late     int64
	Counts   map[string]struct{ Done int }
	Failures []failure
}

type failure struct {
	At           time.Time
	Milliseconds int64
	Kind, Error  string
}

func (f failure) end() time.Time { return f.At.Add(time.Duration(f.Milliseconds) * time.Millisecond) }

// readSeconds reads the log of a load pod up to a line that is still being written.
func readSeconds(log string) (all []second) {
	for decoder := json.NewDecoder(strings.NewReader(log)); ; {
		var s second
		if decoder.Decode(&s) != nil {
			break
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b second) int { return a.Start.Compare(b.Start) })
	return all
}

// told is whether all that was begun until end has ended: there is a second for each since the
// first.
func told(all []second, end time.Time) bool {
	before := 0
	for _, s := range all {
		if s.Start.Before(end) {
			before++
		}
	}
	return before > 0 && end.Sub(all[0].Start) <= time.Duration(before)*time.Second
}

// tally is what came of what the load of one or more pods began in a stretch of time.
type tally struct {
	requests, sdks int
	failures       []failure
	worst          time.Duration
	delays         []delay
}

// count adds the seconds of a pod that are at least in part between the two moments.
func (t *tally) count(pod string, all []second, from, to time.Time) {
	for _, s := range all {
		if !s.Start.Add(time.Second).After(from) || !s.Start.Before(to) {
			continue
		}
		t.requests += s.Counts["new"].Done + s.Counts["kept"].Done
		t.sdks += s.Counts["sdk"].Done
		for _, f := range s.Failures {
			f.Kind = pod + ", " + f.Kind
			t.failures = append(t.failures, f)
		}
		late := time.Duration(s.Late) * time.Millisecond
		t.late(late, delay{s.Start, s.Start.Add(time.Second + late), late})
	}
}

func (t *tally) late(worst time.Duration, delays ...delay) {
	t.worst = max(t.worst, worst)
	t.delays = append(t.delays, delays...)
}

func (t *tally) add(other tally) {
	t.requests += other.requests
	t.sdks += other.sdks
	t.failures = append(t.failures, other.failures...)
	t.late(other.worst, other.delays...)
}

// drain is for how long a replica that goes still answers. What has to lead around it may be
// late by so much before anybody notices.
const drain = 10 * time.Second

// judge tells the failures that a delay of the machine explains, because it was meanwhile or at
// most a drain before, from ours, and says how late the machine was.
func judge(failures []failure, delays []delay) (ours, machines []failure, late time.Duration) {
	for _, f := range failures {
		worst := time.Duration(0)
		for _, d := range delays {
			if d.from.Before(f.end()) && d.to.After(f.At.Add(-drain)) {
				worst = max(worst, d.late)
			}
		}
		if worst < tooLate {
			ours = append(ours, f)
			continue
		}
		machines, late = append(machines, f), max(late, worst)
	}
	return ours, machines, late
}

// verdict is nil if nothing failed, and says whose the failures of so many attempts are otherwise.
func verdict(failures []failure, attempts string, delays []delay) error {
	ours, machines, late := judge(failures, delays)
	var text []string
	if len(ours) > 0 {
		text = append(text, fmt.Sprintf("%d of %s failed while this machine was not late:%s", len(ours), attempts, grouped(ours)))
	}
	if len(machines) > 0 {
		text = append(text, fmt.Sprintf("%d of %s failed while this machine was up to %d ms late: that says nothing about iam4kube:%s",
			len(machines), attempts, late.Milliseconds(), grouped(machines)))
	}
	switch {
	case len(ours) > 0:
		return fmt.Errorf("%w: %s", errOurs, strings.Join(text, "\n"))
	case len(machines) > 0:
		return errors.New(text[0])
	}
	return nil
}

// readIdentity reads the log of a program, each line with its time, until it says who it is. What
// it says before are failures, of several lines each where it ends with a stack trace.
func readIdentity(program string, log io.Reader) (arn string, failures []failure) {
	for scanner := bufio.NewScanner(log); scanner.Scan(); {
		stamp, line, _ := strings.Cut(scanner.Text(), " ")
		if strings.HasPrefix(line, "arn:") {
			return line, failures
		}
		at, err := time.Parse(time.RFC3339Nano, stamp)
		if err != nil || strings.TrimSpace(line) == "" || strings.HasPrefix(line, " ") || strings.HasPrefix(line, "Traceback ") {
			continue
		}
		failures = append(failures, failure{At: at, Kind: program, Error: line})
	}
	return "", failures
}

// passing is what differs between errors of one cause.
var passing = regexp.MustCompile(`(Get|Put) "[^"]*": |(read|write|dial) tcp \S+ |\bhttp://\S+: `)

// grouped has a line for each kind of failure and cause.
func grouped(failures []failure) string {
	type cause struct{ kind, error string }
	groups := map[cause][]failure{}
	for _, f := range failures {
		c := cause{f.Kind, passing.ReplaceAllString(f.Error, "")}
		groups[c] = append(groups[c], f)
	}
	order := slices.SortedFunc(maps.Keys(groups), func(a, b cause) int {
		return slices.Compare([]string{a.kind, a.error}, []string{b.kind, b.error})
	})
	var text bytes.Buffer
	for _, c := range order {
		of := groups[c]
		first := slices.MinFunc(of, func(a, b failure) int { return a.At.Compare(b.At) })
		last := slices.MaxFunc(of, func(a, b failure) int { return a.At.Compare(b.At) })
		quickest := slices.MinFunc(of, func(a, b failure) int { return int(a.Milliseconds - b.Milliseconds) })
		slowest := slices.MaxFunc(of, func(a, b failure) int { return int(a.Milliseconds - b.Milliseconds) })
		fmt.Fprintf(&text, "\n  %d × %s, begun %s to %s, after %d to %d ms: %s", len(of), c.kind, clock(first.At), clock(last.At),
			quickest.Milliseconds, slowest.Milliseconds, c.error)
	}
	return text.String()
}

func clock(at time.Time) string { return at.Local().Format("15:04:05.000") }
