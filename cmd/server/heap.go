package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// The garbage collector runs when the heap has grown by roomShare of what lives, or by leastRoom,
// whichever is more. Go's own rule is all of what lives: in a small cluster, of which 8 MiB live,
// that is 15 times a second under load, a tenth of the processor time; in a large one it is memory
// for which nobody has a use but while all pods are listed.
const (
	leastRoom = 24 << 20
	roomShare = 3
)

// paceCollector keeps to that rule from now on, after each collection. If there is a GOGC in the
// environment, that is the rule.
func paceCollector() {
	if os.Getenv("GOGC") != "" {
		return
	}
	// By those GOGC counts: https://go.dev/doc/gc-guide#GOGC
	lives := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}, {Name: "/gc/scan/globals:bytes"}}
	metrics.Read(lives)
	var bytes uint64
	for _, s := range lives {
		bytes += s.Value.Uint64()
	}
	debug.SetGCPercent(percentOf(bytes))
	// It is unreachable at once: the next collection finds it.
	type unreachable struct{ _ *int }
	runtime.AddCleanup(new(unreachable), func(struct{}) { paceCollector() }, struct{}{})
}

// percentOf is GOGC where so many bytes live.
func percentOf(lives uint64) int {
	lives = max(lives, 4<<20) // as Go itself takes it for at least
	return int(100 * max(leastRoom, lives/roomShare) / lives)
}
