package server

import (
	"math"
	"testing"

	"github.com/iam4kube/iam4kube/internal/server/metadata"
)

func TestWaitingPlacesFitTheMemory(t *testing.T) {
	for limit, want := range map[int64]int{64 << 20: 512, 460 << 20: 3680, 1 << 40: 32768, math.MaxInt64: 32768} {
		if n := waitingPlaces(limit); n != want || int64(n)*metadata.WaitBytes > limit/4 {
			t.Errorf("%d places in %d MiB, want %d", n, limit>>20, want)
		}
	}
}
