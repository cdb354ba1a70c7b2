package kube

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// What happened during an outage, the end of objects above all, is caught up within 2 s of
// its end: one that was refused, one that TCP survives, and one that HTTP/2's pings ended.
func TestOutageIsCaughtUp(t *testing.T) {
	for name, state := range map[string]network{"refusing": refusing, "black hole": blackHole} {
		for _, long := range []time.Duration{time.Second, 9 * time.Second, 12 * time.Second, time.Minute, 5 * time.Minute} {
			t.Run(fmt.Sprint(name, " for ", long), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a, f := synced(t)
					advance(20 * time.Second)
					a.set(func() { a.network = state })
					a.create("missed")
					a.remove("before")
					advance(long)
					if f.names.has("missed") || !f.names.has("before") {
						t.Fatal("an event came through the outage")
					}
					a.set(func() { a.network = reachable })
					took := within(t, 2*time.Second, func() bool { return f.names.has("missed") && !f.names.has("before") })
					t.Logf("caught up after %v", took)
					a.create("after")
					within(t, 0, func() bool { return f.names.has("after") })
				})
			})
		}
	}
}

// Connections that are reset are made again at once, without a list where the API server
// still knows what was missed.
func TestResetIsCaughtUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, f := synced(t)
		for i := range 10 {
			a.resetAll()
			name := fmt.Sprint("after-", i)
			a.create(name)
			within(t, 2*time.Second, func() bool { return f.names.has(name) })
		}
	})
}

// A watch that the API server cannot resume (410) begins anew, with the whole state.
func TestExpiredWatchBeginsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, f := synced(t)
		replaced := f.names.replaced
		a.set(func() { a.network = refusing })
		advance(5 * time.Second)
		a.create("missed")
		a.remove("before")
		a.set(func() { a.compacted = len(a.history) })
		a.set(func() { a.network = reachable })
		within(t, 2*time.Second, func() bool { return f.names.has("missed") && !f.names.has("before") })
		if f.names.replaced == replaced {
			t.Fatal("the state was not replaced")
		}
	})
}

// A watch that said nothing for too long is not resumed where it broke off: it would be
// silent until the next bookmark, and nobody could know whether anything was missed.
func TestWatchIsBegunAnewAfterLongSilence(t *testing.T) {
	for _, long := range []time.Duration{time.Minute, 6 * time.Minute, time.Hour} {
		t.Run(long.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, f := synced(t)
				advance(bookmarkEvery)
				a.set(func() { a.overloaded = true })
				advance(long)
				if silence := f.watches.Silence(); silence < long || silence > long+5*time.Second {
					t.Errorf("silent for %v, want %v", silence, long)
				}
				replaced := f.names.replaced
				a.set(func() { a.overloaded = false })
				advance(2 * time.Second)
				if anew := f.names.replaced > replaced; anew != (long > beginAnewAfter) {
					t.Errorf("begun anew: %t", anew)
				}
				if silence := f.watches.Silence(); (silence < 2*time.Second) != (long > beginAnewAfter) {
					t.Errorf("silent for %v", silence)
				}
			})
		})
	}
}

// API servers that do not stream lists are followed with lists in pages.
func TestFollowsAnAPIServerThatDoesNotStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(t)
		a.set(func() { a.noStream = true })
		a.create("before")
		f := a.follow()
		within(t, 3*time.Second, func() bool { return f.names.has("before") })
		a.create("after")
		within(t, 0, func() bool { return f.names.has("after") })
	})
}
