package kube

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// After an outage those who put their requests off come back over that time, and not all at
// once, whether they noticed it by connections that were refused, that were silent, or that
// were closed while another API server answers. A watch that ends by itself is no outage.
func TestManyComeBackOverTime(t *testing.T) {
	const spread = 10 * time.Second
	outage := func(state network, long time.Duration) func(*api) {
		return func(a *api) {
			a.set(func() { a.network = state })
			advance(long)
			a.set(func() { a.network = reachable })
		}
	}
	for _, tc := range []struct {
		name    string
		happens func(*api)
		atOnce  float64 // at most this share comes within one second
	}{
		{"refusing", outage(refusing, 5*time.Second), .4},
		{"refusing, short", outage(refusing, time.Millisecond), .4},
		{"refusing, long", outage(refusing, 7*time.Minute), .4},
		// Without a word from the network, three seconds of each try are waiting for one.
		{"black hole", outage(blackHole, time.Minute), .8},
		{"closed", func(a *api) { a.resetAll() }, .4},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAPI(t)
				a.create("before")
				var all []*follower
				for range 30 {
					all = append(all, a.followBy(Spread(a.dial, spread)))
				}
				for _, f := range all {
					within(t, 100*time.Millisecond, func() bool { return f.names.has("before") }) // nothing is put off before
				}
				advance(20 * time.Second)
				tc.happens(a)
				a.create("after")
				back := func() (n int) {
					for _, f := range all {
						if f.names.has("after") {
							n++
						}
					}
					return n
				}
				most, last := 0, back()
				for range 13 {
					advance(time.Second)
					now := back()
					most, last = max(most, now-last), now
				}
				if last != len(all) {
					t.Errorf("%d of %d are back after 13 s", last, len(all))
				}
				if float64(most) > tc.atOnce*float64(len(all)) {
					t.Errorf("%d of %d came in one second", most, len(all))
				}
			})
		})
	}
	t.Run("the watch's own end", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := newAPI(t)
			a.create("before")
			f := a.followBy(Spread(a.dial, spread))
			within(t, time.Second, func() bool { return f.names.has("before") })
			for i := range 30 * 60 { // at least three watches
				name := fmt.Sprint("after-", i)
				a.create(name)
				if within(t, time.Second, func() bool { return f.names.has(name) }); t.Failed() {
					t.Fatal(i)
				}
				advance(time.Second)
			}
		})
	})
}
