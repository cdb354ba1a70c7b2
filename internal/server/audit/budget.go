package audit

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// sourceAtOnce records of one source and kind are written at once, and then one every
	// sourceEvery. allAtOnce and allPerSecond bound those of all sources.
	sourceAtOnce, sourceEvery = 10, 10 * time.Second
	allAtOnce, allPerSecond   = 1000, 100
	// mostSources are told apart. What comes beyond is counted as that of no source.
	mostSources = 8192
)

// source is who causes records of one kind.
type source struct {
	addr netip.Addr
	kind string
}

// spent is what a source has used up.
type spent struct {
	limiter *rate.Limiter
	last    time.Time
	leftOut int
}

// budget bounds the records that others can cause in any number, and its own memory.
type budget struct {
	mu      sync.Mutex
	sources map[source]*spent
	all     *rate.Limiter
}

func newBudget() *budget {
	return &budget{sources: map[source]*spent{}, all: rate.NewLimiter(allPerSecond, allAtOnce)}
}

// admit reports whether to write a record, and how many of the same source and kind were left
// out since the last one.
func (b *budget) admit(now time.Time, from source) (leftOut int, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.sources[from]
	if s == nil {
		if len(b.sources) >= mostSources {
			from.addr = netip.Addr{}
			s = b.sources[from]
		}
		if s == nil {
			s = &spent{limiter: rate.NewLimiter(rate.Every(sourceEvery), sourceAtOnce)}
			b.sources[from] = s
		}
	}
	s.last = now
	if !s.limiter.AllowN(now, 1) || !b.all.AllowN(now, 1) {
		s.leftOut++
		return 0, false
	}
	leftOut, s.leftOut = s.leftOut, 0
	return leftOut, true
}

// restore takes back what a record would have told that could not be written.
func (b *budget) restore(from source, leftOut int) {
	if leftOut == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.sources[from]; s != nil {
		s.leftOut += leftOut
	}
}

// quiet forgets sources that have been quiet for so long that their budget is whole again, or
// all, and returns what was left out of each and not told yet.
func (b *budget) quiet(now time.Time, all bool) (untold map[source]int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	untold = map[source]int{}
	for from, s := range b.sources {
		if !all && now.Sub(s.last) < sourceAtOnce*sourceEvery {
			continue
		}
		if s.leftOut > 0 {
			untold[from] = s.leftOut
		}
		delete(b.sources, from)
	}
	return untold
}
