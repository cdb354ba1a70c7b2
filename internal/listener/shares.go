package listener

import (
	"net/netip"
	"sync"
	"sync/atomic"
)

// Refusal is why somebody gets no share: a label of metrics, and what a log line says.
type Refusal string

// Refusals.
const (
	// TooManyOfSource: the source holds as much as one may.
	TooManyOfSource Refusal = "source"
	// TooMany: what is left is not more than what the source holds already, or nothing is.
	TooMany Refusal = "total"
)

// Shares divides something of which there is a fixed amount among those who ask for it
// from different source addresses, so that no source can take it all from the others.
type Shares struct {
	total, perSource int64

	// sum and what each source holds are changed with mu, and read without it by those who
	// hold something.
	sum atomic.Int64

	mu      sync.Mutex
	held    map[netip.Addr]*atomic.Int64
	refused map[Refusal]uint64
}

// NewShares divides total. One source never holds more than perSource, and never more than
// what is left for all the others: N sources that take all they can get leave a part in
// N+1 for the next.
func NewShares(total, perSource int64) *Shares {
	return &Shares{total: total, perSource: perSource, held: map[netip.Addr]*atomic.Int64{}, refused: map[Refusal]uint64{}}
}

// Take gives n, which may be 0, to a source, or says why not. Whoever has taken it gives it back.
func (s *Shares) Take(source netip.Addr, n int64) (Refusal, bool) {
	_, refusal := s.take(source, n)
	return refusal, refusal == ""
}

// take is Take, with what the source holds for crowded.
func (s *Shares) take(source netip.Addr, n int64) (*atomic.Int64, Refusal) {
	source = source.Unmap()
	s.mu.Lock()
	defer s.mu.Unlock()
	held := s.held[source]
	if held == nil {
		held = &atomic.Int64{}
	}
	switch next := held.Load() + n; {
	case next > s.perSource:
		s.refused[TooManyOfSource]++
		return nil, TooManyOfSource
	case next > s.total-s.sum.Load():
		s.refused[TooMany]++
		return nil, TooMany
	}
	s.held[source] = held
	held.Add(n)
	s.sum.Add(n)
	return held, ""
}

// Give takes n back from a source.
func (s *Shares) Give(source netip.Addr, n int64) {
	source = source.Unmap()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sum.Add(-n)
	// One that holds nothing is not in it, even if it has not given that back.
	if held := s.held[source]; held != nil && held.Add(-n) <= 0 {
		delete(s.held, source)
	}
}

// Count returns how much is held, and how often it was refused for that reason.
func (s *Shares) Count(reason Refusal) (held int64, refused uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sum.Load(), s.refused[reason]
}

// crowded tells without a lock whether little is left, an eighth of all or half of what the
// source may have, which holds this.
func (s *Shares) crowded(held *atomic.Int64) bool {
	return s.sum.Load() > s.total-s.total/8 || held.Load() > s.perSource/2
}
