package kube

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// synced starts an api with one object and a follower that knows it.
func synced(t *testing.T) (*api, *follower) {
	t.Helper()
	a := newAPI(t)
	a.create("before")
	f := a.follow()
	within(t, 3*time.Second, func() bool { return f.names.has("before") })
	if err := f.watches.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	return a, f
}

// steady fails the test unless Broken gives the same judgement throughout.
func steady(t *testing.T, f *follower, d time.Duration, broken bool) {
	t.Helper()
	for passed := time.Duration(0); passed < d; passed += time.Second {
		if err := f.watches.Broken(); (err != nil) != broken {
			t.Fatalf("after %v of %v: %v", passed, d, err)
		}
		advance(time.Second)
	}
}

// An outage of any length, and the time after its end, change nothing about readiness, also
// where nothing happens in the cluster meanwhile: a watch that is resumed where it broke off
// is silent until the next bookmark.
func TestOutageIsNoReasonToBeBroken(t *testing.T) {
	for name, state := range map[string]network{"refusing": refusing, "black hole": blackHole} {
		for _, long := range []time.Duration{time.Second, 9 * time.Second, time.Minute, 5 * time.Minute, time.Hour} {
			t.Run(fmt.Sprint(name, " for ", long), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a, f := synced(t)
					advance(bookmarkEvery - time.Second)
					a.set(func() { a.network = state })
					steady(t, f, long, false)
					a.set(func() { a.network = reachable })
					steady(t, f, 10*time.Minute, false)
				})
			})
		}
	}
}

// An open watch that gives nothing while the API server answers counts as broken after
// three minutes, and no longer once something comes again.
func TestSilentWatchIsBrokenAfterThreeMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, f := synced(t)
		a.set(func() { a.silent = true })
		steady(t, f, silentAfter+openExtra-time.Second, false)
		advance(3 * time.Second)
		steady(t, f, 20*time.Minute, true) // also when the watch times out and begins anew
		a.set(func() { a.silent = false })
		a.create("after")
		took := within(t, time.Second, func() bool { return f.names.has("after") })
		if err := f.watches.Broken(); err != nil {
			t.Fatalf("%v after an event: %v", took, err)
		}
	})
}

// An API server that answers nothing but 401 answers.
func TestUnauthorizedForTwoMinutesIsBroken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, f := synced(t)
		a.set(func() { a.token = "another" })
		steady(t, f, silentAfter-time.Second, false)
		advance(3 * time.Second)
		steady(t, f, 10*time.Minute, true)
		a.set(func() { a.token = "first" })
		within(t, 2*time.Second, func() bool { return f.watches.Broken() == nil })
	})
}

// While the API server does not answer, what was judged before stays: broken too.
func TestBrokenStaysBrokenInAnOutage(t *testing.T) {
	for name, state := range map[string]network{"refusing": refusing, "black hole": blackHole} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, f := synced(t)
				a.set(func() { a.silent = true })
				advance(silentAfter + openExtra + 3*time.Second)
				steady(t, f, time.Minute, true)
				a.set(func() { a.network = state })
				steady(t, f, 10*time.Minute, true)
				a.set(func() { a.network, a.silent = reachable, false })
				within(t, 2*time.Second+bookmarkEvery, func() bool { return f.watches.Broken() == nil })
			})
		})
	}
}

// A watch that is silent, in a cluster whose API server falls silent too before its time
// is over, is no reason either.
func TestSilenceThatBecomesAnOutageIsNoReasonToBeBroken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, f := synced(t)
		a.set(func() { a.silent = true })
		steady(t, f, silentAfter+openExtra-30*time.Second, false)
		a.set(func() { a.network = blackHole })
		steady(t, f, 30*time.Minute, false)
	})
}

// Nothing is asked while all is well. When a watch is silent for longer than a bookmark can
// be late, the API server is asked every ten seconds whether it answers.
func TestAPIServerIsAskedOnlyAboutSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := synced(t)
		path := "/api/v1/configmaps"
		before := a.asked(path)
		advance(4 * time.Minute) // less than a watch's own time-out
		if probes, watches := a.asked("/version"), a.asked(path)-before; probes != 0 || watches != 0 {
			t.Fatalf("%d probes and %d other requests while all was well", probes, watches)
		}
		a.set(func() { a.silent = true })
		advance(probeAfter + openExtra - 2*time.Second)
		if n := a.asked("/version"); n != 0 {
			t.Fatalf("%d probes within %v of silence", n, probeAfter+openExtra)
		}
		advance(time.Minute)
		if n := a.asked("/version"); n < 5 || n > 7 {
			t.Fatalf("%d probes in a minute, want one every %v", n, probeEvery)
		}
	})
}

// Whoever hears from the API server can say so to one that does not. In the same moment it
// is not yet, or not any more, true of all.
func TestHearing(t *testing.T) {
	want := func(t *testing.T, f *follower, hearing bool) {
		t.Helper()
		if err := f.watches.Hearing(); (err == nil) != hearing {
			t.Errorf("hearing: %v, want %t", err, hearing)
		}
	}
	for name, state := range map[string]network{"refusing": refusing, "black hole": blackHole} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, f := synced(t)
				want(t, f, false)
				advance(answeringFor)
				want(t, f, true)
				advance(10 * time.Minute)
				want(t, f, true)
				a.set(func() { a.network = state })
				advance(15 * time.Second)
				want(t, f, false)
				advance(10 * time.Minute)
				want(t, f, false)
				if !f.watches.Silent() {
					t.Error("not silent")
				}
				a.set(func() { a.network = reachable })
				advance(answeringFor - 2*time.Second)
				want(t, f, false)
				advance(5 * time.Second)
				want(t, f, true)
				if f.watches.Silent() {
					t.Error("silent")
				}
			})
		})
	}
	t.Run("before the first list", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a, f := synced(t)
			f.watches.add("others")
			advance(time.Hour)
			want(t, f, false)
			if silence := f.watches.Silence(); silence > 2*time.Minute {
				t.Errorf("silent for %v", silence)
			}
			a.set(func() { a.network = refusing })
		})
	})
	t.Run("a silent watch", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a, f := synced(t)
			a.set(func() { a.silent = true })
			advance(silentAfter + openExtra + time.Minute)
			want(t, f, false)
		})
	})
}

// One silent watch among others is enough.
func TestOneSilentWatchIsBroken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, f := synced(t)
		other := f.watches.add("others")
		other.heard(true)
		for passed := time.Duration(0); passed <= silentAfter; passed += time.Second {
			if err := f.watches.Broken(); err != nil {
				t.Fatal(err)
			}
			advance(time.Second)
		}
		advance(time.Second)
		err := f.watches.Broken()
		if err == nil || !strings.Contains(err.Error(), "others") || strings.Contains(err.Error(), "configmaps") {
			t.Fatalf("%v, want only others to be silent", err)
		}
		a.create("after")
		synctest.Wait()
		if err := f.watches.Broken(); err == nil {
			t.Fatal("an event of one resource healed the other's watch")
		}
	})
}

// Sync returns when each resource has its first full state, or with its context.
func TestSyncWaitsForEveryResource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWatches(&Reach{}, nil, prometheus.NewRegistry())
		first, second := w.add("first"), w.add("second")
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		first.heard(true)
		second.heard(false)
		if err := w.Sync(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("%v before the second resource had its state", err)
		}
		second.heard(true)
		if err := w.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}
