package listener

import (
	"net/netip"
	"sync"
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

	mu      sync.Mutex
	held    map[netip.Addr]int64
	sum     int64
	refused map[Refusal]uint64
}

// NewShares divides total. One source never holds more than perSource, and never more than
// what is left for all the others: N sources that take all they can get leave a part in
// N+1 for the next.
func NewShares(total, perSource int64) *Shares {
	return &Shares{total: total, perSource: perSource, held: map[netip.Addr]int64{}, refused: map[Refusal]uint64{}}
}

// Take gives n to a source, or says why not. Whoever has taken it gives it back.
func (s *Shares) Take(source netip.Addr, n int64) (Refusal, bool) {
	source = source.Unmap()
	s.mu.Lock()
	defer s.mu.Unlock()
	held := s.held[source] + n
	switch {
	case held > s.perSource:
		s.refused[TooManyOfSource]++
		return TooManyOfSource, false
	case held > s.total-s.sum:
		s.refused[TooMany]++
		return TooMany, false
	}
	s.held[source] = held
	s.sum += n
	return "", true
}

// Give takes n back from a source.
func (s *Shares) Give(source netip.Addr, n int64) {
	source = source.Unmap()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sum -= n
	if s.held[source] -= n; s.held[source] <= 0 {
		delete(s.held, source)
	}
}

// Count returns how much is held, and how often it was refused for that reason.
func (s *Shares) Count(reason Refusal) (held int64, refused uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sum, s.refused[reason]
}

// Crowded is that little is left, an eighth of all or half of what the source may have.
func (s *Shares) Crowded(source netip.Addr) bool {
	source = source.Unmap()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sum > s.total-s.total/8 || s.held[source] > s.perSource/2
}
