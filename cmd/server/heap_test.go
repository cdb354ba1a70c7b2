package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"
)

func TestGOGCOfTheEnvironmentStays(t *testing.T) {
	before := debug.SetGCPercent(70)
	defer debug.SetGCPercent(before)
	t.Setenv("GOGC", "70")
	paceCollector()
	runtime.GC()
	wantPercent(t, 70, 70)
}

func TestCollectorFollowsWhatLives(t *testing.T) {
	before := debug.SetGCPercent(100)
	defer debug.SetGCPercent(before)
	t.Setenv("GOGC", "") // as if there were none
	paceCollector()
	wantPercent(t, 150, 600)
	large := make([]byte, 5*leastRoom)
	wantPercent(t, 30, 100/roomShare)
	runtime.KeepAlive(large)
	wantPercent(t, 150, 600)
}

// wantPercent waits until GOGC is within these after a collection.
func wantPercent(t *testing.T, least, most uint64) {
	t.Helper()
	now := []metrics.Sample{{Name: "/gc/gogc:percent"}}
	for start := time.Now(); ; runtime.GC() {
		metrics.Read(now)
		is := now[0].Value.Uint64()
		if least <= is && is <= most {
			return
		}
		if time.Since(start) > 10*time.Second {
			t.Fatalf("GOGC is %d, want %d to %d", is, least, most)
		}
	}
}

func TestPercentOf(t *testing.T) {
	for lives, want := range map[uint64]int{0: 600, 8 << 20: 300, 24 << 20: 100, 72 << 20: 33, 720 << 20: 33} {
		if got := percentOf(lives); got != want {
			t.Errorf("of %d MiB: %d, want %d", lives>>20, got, want)
		}
	}
}
