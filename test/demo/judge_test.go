package main

import (
	"errors"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func at(seconds float64) time.Time { return noon.Add(time.Duration(seconds * float64(time.Second))) }

// failing is a request that was begun so many seconds after noon and took a second.
func failing(seconds float64) failure {
	return failure{At: at(seconds), Milliseconds: 1000, Kind: "shop, new", Error: `Get "http://169.254.169.254/latest/": dial tcp 169.254.169.254:80: connect: connection refused`}
}

func lateBy(late time.Duration, from float64) delay {
	return delay{from: at(from), to: at(from).Add(late), late: late}
}

func TestJudge(t *testing.T) {
	const much = 2300 * time.Millisecond
	for name, test := range map[string]struct {
		delays  []delay
		machine bool
	}{
		"on time":                    {nil, false},
		"a little late":              {[]delay{lateBy(tooLate-1, 20)}, false},
		"late meanwhile":             {[]delay{lateBy(tooLate, 20.5)}, true},
		"late from before to after":  {[]delay{lateBy(much, 19)}, true},
		"late when the rules were":   {[]delay{lateBy(much, 11)}, true},
		"late long before":           {[]delay{lateBy(much, 7)}, false},
		"late afterwards":            {[]delay{lateBy(much, 21.1)}, false},
		"late before and afterwards": {[]delay{lateBy(much, 7), lateBy(much, 22)}, false},
	} {
		t.Run(name, func(t *testing.T) {
			ours, machines, late := judge([]failure{failing(20)}, test.delays)
			if (len(machines) == 1) != test.machine || len(ours)+len(machines) != 1 {
				t.Errorf("ours %v, the machine's %v", ours, machines)
			}
			if test.machine && late != test.delays[0].late {
				t.Errorf("%s late, want %s", late, test.delays[0].late)
			}
		})
	}
}

func TestVerdict(t *testing.T) {
	late := []delay{lateBy(2300*time.Millisecond, 20)}
	if err := verdict(nil, "2400 requests", late); err != nil {
		t.Errorf("nothing failed: %v", err)
	}
	err := verdict([]failure{failing(20), failing(21)}, "2400 requests", late)
	const want = "2 of 2400 requests failed while this machine was up to 2300 ms late: that says nothing about iam4kube:\n  2 × shop, new"
	if err == nil || errors.Is(err, errOurs) || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("the machine was late: %v\nwant %s", err, want)
	}
	err = verdict([]failure{failing(20), failing(60)}, "2400 requests", late)
	if !errors.Is(err, errOurs) || !strings.Contains(err.Error(), "1 of 2400 requests failed while this machine was not late:") ||
		!strings.Contains(err.Error(), "that says nothing") {
		t.Errorf("one of each: %v", err)
	}
}

func TestFailuresBeforeTheAddressWasTold(t *testing.T) {
	of := func(pod string, seconds float64) failure {
		return failure{At: at(seconds), Kind: pod, Error: "timeout awaiting response headers"}
	}
	a := &addresses{told: map[string]time.Time{}}
	a.tell("office/go", at(20))
	a.tell("office/go", at(60)) // it is told again with each change of the pod's status
	for name, test := range map[string]struct {
		failures []failure
		none     bool
		ours     bool
	}{
		"none":            {none: true},
		"before":          {failures: []failure{of("office/go", 19)}},
		"just afterwards": {failures: []failure{of("office/go", 20.2)}},
		"afterwards":      {failures: []failure{of("office/go", 20.3)}, ours: true},
		"both":            {failures: []failure{of("office/go", 19), of("office/go", 30)}, ours: true},
		"of another pod":  {failures: []failure{of("shop/go", 19)}, ours: true},
	} {
		err := a.judge(test.failures, "the first attempts", nil)
		if (err == nil) != test.none || errors.Is(err, errOurs) != test.ours {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && !test.ours && !strings.Contains(err.Error(), "that says nothing") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestGrouped(t *testing.T) {
	other := failing(3)
	other.Kind, other.Error, other.Milliseconds = "office, sdk", "no EC2 IMDS role found", 20000
	later := failing(2.5)
	later.Milliseconds, later.Error = 1500, strings.Replace(later.Error, "/latest/", "/latest/api/token", 1)
	got := grouped([]failure{later, failing(1), other})
	want := "\n  1 × office, sdk, begun " + clock(at(3)) + " to " + clock(at(3)) + ", after 20000 to 20000 ms: no EC2 IMDS role found" +
		"\n  2 × shop, new, begun " + clock(at(1)) + " to " + clock(at(2.5)) + ", after 1000 to 1500 ms: connect: connection refused"
	if got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

// log is what `client load` prints, the seconds in another order than they began, and the last
// line unfinished.
const log = `{"Start":"2026-01-01T12:00:01Z","Late":1200,"Counts":{"kept":{"Done":50},"new":{"Done":50},"sdk":{"Done":5}},"Failures":[{"At":"2026-01-01T12:00:01.5Z","Milliseconds":40,"Kind":"new","Error":"refused"}]}
{"Start":"2026-01-01T12:00:00Z","Late":3,"Counts":{"kept":{"Done":50},"new":{"Done":50},"sdk":{"Done":5}}}
{"Start":"2026-01-01T12:00:02Z","Late":4,"Counts":{"kept":{"Done":50},"new":{"Done":50},"sdk":{"Done":5}}}
{"Start":"2026-01-01T12:00:03Z","La`

func TestCountWhatWasBegunMeanwhile(t *testing.T) {
	all := readSeconds(log)
	if len(all) != 3 || !all[0].Start.Equal(at(0)) {
		t.Fatalf("got %v", all)
	}
	var sum tally
	sum.count("shop", all, at(1.2), at(2))
	if sum.requests != 100 || sum.sdks != 5 || sum.worst != 1200*time.Millisecond {
		t.Errorf("one second: %+v", sum)
	}
	if len(sum.failures) != 1 || sum.failures[0].Kind != "shop, new" {
		t.Errorf("failures: %v", sum.failures)
	}
	// What was late lasted until it had caught up.
	if len(sum.delays) != 1 || sum.delays[0] != (delay{at(1), at(3.2), 1200 * time.Millisecond}) {
		t.Errorf("delays: %v", sum.delays)
	}
	var both tally
	both.count("office", all, at(0), at(3))
	both.add(sum)
	if both.requests != 400 || both.sdks != 20 || len(both.failures) != 2 || len(both.delays) != 4 {
		t.Errorf("the sum: %+v", both)
	}
}

func TestToldOnceASecondHasEnded(t *testing.T) {
	all := readSeconds(log)
	for end, want := range map[float64]bool{2.9: true, 3: true, 3.1: false} {
		if got := told(all, at(end)); got != want {
			t.Errorf("until %v: %t", end, got)
		}
	}
	// The second one is still waiting for an answer.
	if told([]second{all[0], all[2]}, at(2.5)) {
		t.Error("told without the second one")
	}
	if told(nil, at(0)) {
		t.Error("told nothing")
	}
}

func TestReadIdentity(t *testing.T) {
	const before = `2026-01-01T12:00:01.5Z Traceback (most recent call last):
2026-01-01T12:00:01.5Z   File "<string>", line 5, in <module>
2026-01-01T12:00:01.6Z botocore.exceptions.NoCredentialsError: Unable to locate credentials
2026-01-01T12:00:01.6Z 
`
	arn, failures := readIdentity("shop/boto3", strings.NewReader(before))
	if arn != "" || len(failures) != 1 || !failures[0].At.Equal(at(1.6)) || !strings.HasPrefix(failures[0].Error, "botocore.") {
		t.Errorf("got %q, %v", arn, failures)
	}
	const role = "arn:aws:sts::111122223333:assumed-role/orders/shop@orders"
	arn, failures = readIdentity("shop/boto3", strings.NewReader(before+"2026-01-01T12:00:03Z "+role+"\n2026-01-01T12:00:04Z failed\n"))
	if arn != role || len(failures) != 1 {
		t.Errorf("got %q, %v", arn, failures)
	}
}
