package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestAgain(t *testing.T) {
	passing := errors.New("timed out")
	for name, test := range map[string]struct {
		results []error // of the attempts, the last of all further ones
		made    int
		want    error
	}{
		"it works":              {[]error{nil}, 1, nil},
		"it works in the end":   {[]error{passing, passing, nil}, 3, nil},
		"it never works":        {[]error{passing}, attempts, passing},
		"our failure":           {[]error{errOurs}, 1, errOurs},
		"our failure, later on": {[]error{passing, errOurs}, 2, errOurs},
		"the user ends it":      {[]error{passing, context.Canceled}, 2, context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				made, told := 0, 0
				err := again(ctx, func() error {
					result := test.results[min(made, len(test.results)-1)]
					made++
					if errors.Is(result, context.Canceled) {
						stop()
					}
					return result
				}, func(next int, err error) {
					told++
					if next != made+1 || !errors.Is(err, passing) {
						t.Errorf("told of attempt %d after %d, %v", next, made, err)
					}
				})
				if made != test.made || told != made-1 || !errors.Is(err, test.want) {
					t.Errorf("%d attempts, told %d times, %v", made, told, err)
				}
			})
		})
	}
}

func TestAgainEndsInThePause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithTimeout(t.Context(), pause/2)
		defer stop()
		start := time.Now()
		err := again(ctx, func() error { return errors.New("timed out") }, func(int, error) {})
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != pause/2 {
			t.Errorf("%v after %s", err, time.Since(start))
		}
	})
}

func TestWatchKeepsWhatExplainsAFailure(t *testing.T) {
	w := &watch{}
	w.tick(at(1), at(1).Add(tooLate-1))
	w.tick(at(2), at(2).Add(tooLate))
	worst, delays := w.seen()
	if worst != tooLate || len(delays) != 1 || delays[0] != lateBy(tooLate, 2) {
		t.Errorf("got %s, %v", worst, delays)
	}
	w.reset()
	w.tick(at(3), at(3).Add(time.Millisecond))
	if worst, delays = w.seen(); worst != time.Millisecond || len(delays) != 1 {
		t.Errorf("after reset: %s, %v", worst, delays)
	}
}

// The bubble's end finds a goroutine that is left.
func TestWatchStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := startWatch()
		<-time.After(time.Second)
		w.stop()
		w.stop()
		if worst, delays := w.seen(); worst != 0 || len(delays) != 0 {
			t.Errorf("late by a clock that waits: %s, %v", worst, delays)
		}
	})
}

func TestProcessorsAreToldOf(t *testing.T) {
	before := processors{
		at: at(0), loadavg: "1.00 2.00 3.00 4/500 1234\n",
		stat:     "cpu  1000 0 500 2000 100 0 0 50 7 7\ncpu0 1 2 3\n",
		pressure: "some avg10=1.00 avg60=2.00 avg300=3.00 total=1000000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
	}
	after := processors{
		at: at(10), loadavg: "12.34 2.00 3.00 4/500 1234\n",
		stat:     "cpu  2200 0 900 2150 150 0 0 250 900 7\ncpu0 1 2 3\n",
		pressure: "some avg10=1.00 avg60=2.00 avg300=3.00 total=7400000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
	}
	got := before.until(after)
	for _, want := range []string{"load average 12.34 on ", " processors, 10% idle, 10% stolen by its host, something waited for a processor 64% of the time"} {
		if !strings.Contains(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	before.pressure, after.pressure = "", ""
	if got := before.until(after); strings.Contains(got, "waited") {
		t.Errorf("without pressure: %q", got)
	}
	if got := (processors{}).until(processors{}); got != "" {
		t.Errorf("without any: %q", got)
	}
}
