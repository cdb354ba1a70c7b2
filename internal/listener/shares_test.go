package listener

import (
	"net/netip"
	"testing"
)

func address(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)})
}

func takeAll(s *Shares, source netip.Addr) (n int64) {
	for {
		if _, ok := s.Take(source, 1); !ok {
			return n
		}
		n++
	}
}

// However many sources take all they can get, the next one gets something, and what is
// given back can be taken again.
func TestSharesLeaveSomethingForTheNext(t *testing.T) {
	s := NewShares(1000, 100)
	var sum int64
	for source := range 100 {
		n := takeAll(s, address(source))
		if sum += n; n == 0 || n > 100 || sum > 1000 {
			t.Fatalf("source %d got %d, all have %d", source, n, sum)
		}
		if source >= 8 {
			break
		}
	}
	if !s.crowded(s.held[address(1)]) {
		t.Error("nothing is left, and it is not crowded")
	}
	held, _ := s.Count(TooMany)
	if held != sum {
		t.Errorf("%d are held, %d were taken", held, sum)
	}
	s.Give(address(0), 100)
	if n := takeAll(s, address(500)); n == 0 {
		t.Error("nothing can be taken of what was given back")
	}
}

func TestSharesSayWhy(t *testing.T) {
	s := NewShares(10, 4)
	for _, tc := range []struct {
		source int
		n      int64
		why    Refusal
	}{
		{1, 4, ""}, {1, 1, TooManyOfSource}, {2, 5, TooManyOfSource}, {2, 4, ""}, {3, 3, TooMany}, {3, 1, ""}, {3, 1, TooMany}, {4, 1, ""}, {5, 1, TooMany},
	} {
		if why, ok := s.Take(address(tc.source), tc.n); why != tc.why || ok != (why == "") {
			t.Errorf("source %d, %d more: %q, %t; want %q", tc.source, tc.n, why, ok, tc.why)
		}
	}
	if held, refused := s.Count(TooMany); held != 10 || refused != 3 {
		t.Errorf("%d held, %d refused", held, refused)
	}
	// The same address in another family's notation.
	s.Give(netip.AddrFrom16(address(1).As16()), 4)
	if _, ok := s.Take(address(6), 2); !ok {
		t.Error("nothing was given back")
	}
}

// Nothing can be taken several times at once, and be given back: requests without a body.
func TestSharesOfNothing(t *testing.T) {
	s := NewShares(10, 4)
	for _, n := range []int64{0, 0, 3} {
		if why, ok := s.Take(address(1), n); !ok {
			t.Fatal(why)
		}
	}
	for _, n := range []int64{3, 0, 0} {
		s.Give(address(1), n)
	}
	if held, _ := s.Count(TooMany); held != 0 || len(s.held) != 0 {
		t.Errorf("%d held by %d", held, len(s.held))
	}
}

// A source is told before it has all that it may, and others are not.
func TestCrowded(t *testing.T) {
	s := NewShares(1000, 100)
	other, _ := s.take(address(2), 1)
	one, _ := s.take(address(1), 50)
	if s.crowded(one) {
		t.Error("half of it is left")
	}
	s.Take(address(1), 1)
	if !s.crowded(one) || s.crowded(other) {
		t.Error("the source has more than half of what it may, and no other has")
	}
	s.Give(address(1), 1)
	if s.crowded(one) {
		t.Error("half of it is left again")
	}
}
