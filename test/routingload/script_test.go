package routingload

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/test/node"
)

// The endpoints that a script changes.
const (
	endpointCount = 9
	sliceCount    = 3
	inSlice       = endpointCount / sliceCount
)

// change is what the API server was told.
type change struct {
	sent, answered time.Time
	// fresh are the ready endpoints of all slices since then, live all that they list.
	fresh, live []netip.Addr
}

// script changes the endpoints of a Service at random. Each change also puts an address
// that nobody has into its slice, as not ready, which says in the kernel's rules which of
// the changes they come from.
type script struct {
	service *node.Service
	states  [endpointCount]int // 0 ready, 1 draining, 2 not listed
	markers [sliceCount]netip.Addr
	done    []change
}

// newScript makes a Service and gives every slice its first endpoints: all of them.
func newScript(t *testing.T) *script {
	t.Helper()
	s := &script{service: cluster.NewService()}
	for slice := range sliceCount {
		s.apply(t, slice)
	}
	return s
}

func marker(number int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 250, byte(number >> 8), byte(number)})
}

// numberOf is that of the latest change whose marker is among the addresses.
func numberOf(addresses []netip.Addr) (number int) {
	for _, a := range addresses {
		if b := a.As4(); b[1] == 250 {
			number = max(number, int(b[2])<<8|int(b[3]))
		}
	}
	return number
}

// next makes one change to one slice.
func (s *script) next(t *testing.T) {
	t.Helper()
	slice, before := rand.N(sliceCount), s.states
	for s.states == before || !slices.Contains(s.states[:], 0) {
		s.states = before
		for i := range inSlice {
			s.states[slice*inSlice+i] = rand.N(3)
		}
	}
	s.apply(t, slice)
}

// some makes less than so many changes, each of which takes a few milliseconds, and so
// returns at a moment that is a random one for ip2service.
func (s *script) some(t *testing.T, most int) {
	t.Helper()
	for range rand.N(most) {
		s.next(t)
	}
	<-time.After(rand.N(3 * time.Millisecond))
}

// settle makes one more change and waits until the kernel has it.
func (s *script) settle(t *testing.T, k *kernel) {
	t.Helper()
	s.next(t)
	last := len(s.done) - 1
	k.wait(t, 0, func(x transaction) bool { return numberOf(x.live) == last })
}

// wantOurs waits until our tables are what they have to be for the last change.
func (s *script) wantOurs(t *testing.T) {
	t.Helper()
	last := s.done[len(s.done)-1]
	eventuallyOurs(t, wanted(last.fresh, slices.Concat(last.live, s.markers[:])))
}

func (s *script) apply(t *testing.T, slice int) {
	t.Helper()
	var c change
	s.markers[slice] = marker(len(s.done))
	list := []node.State{{Address: s.markers[slice].String(), Ready: new(false)}}
	for i, state := range s.states {
		address := addressOf(byte('a' + i))
		if state < 2 {
			c.live = append(c.live, address)
		}
		if state == 0 {
			c.fresh = append(c.fresh, address)
		}
		switch {
		case i/inSlice != slice:
		case state == 0:
			list = append(list, node.Ready(address.String()))
		case state == 1:
			list = append(list, node.Draining(address.String()))
		}
	}
	c.sent = time.Now()
	s.service.Set(t, fmt.Sprint(slice), list...)
	c.answered = time.Now()
	s.done = append(s.done, c)
}

// state is what was in force between two moments at least, but not longer than from
// earliest to latest.
type state struct {
	number           int
	earliest, latest time.Time
	seen             time.Time
	fresh, live      []netip.Addr
	// lost says that before latest there may have been others, which nobody was told of.
	lost bool
}

// check compares what happened to the requests with the rules that were in force, and
// returns what pods that got no connection were told.
func (s *script) check(t *testing.T, k *kernel, l *load) (states []state, refused []error) {
	t.Helper()
	states = timeline(t, s.done, k.after(0))
	t.Logf("%d changes, %d times other rules, %d connections, %d requests on kept ones", len(s.done), len(states), len(l.fresh), len(l.kept))
	for _, e := range slices.Concat(l.fresh, l.kept) {
		if e.refused {
			refused = append(refused, e.err)
		}
	}
	checkFresh(t, l.fresh, states, s.done)
	checkKept(t, l.kept, states)
	return states, refused
}

func timeline(t *testing.T, done []change, transactions []transaction) (states []state) {
	t.Helper()
	for _, x := range transactions {
		if x.lost && len(states) > 0 {
			states[len(states)-1].lost = true
		}
		if !x.routed || len(x.live) == 0 {
			continue
		}
		number := numberOf(x.live)
		if len(states) > 0 {
			states[len(states)-1].latest = x.at
		}
		states = append(states, state{
			number: number, earliest: done[number].sent, latest: x.at.Add(time.Hour), seen: x.at, fresh: x.fresh, live: x.live,
		})
		if !slices.Equal(x.fresh, done[number].fresh) {
			t.Errorf("after change %d new connections go to %v, want %v", number, x.fresh, done[number].fresh)
		}
		for _, a := range done[number].live {
			if !slices.Contains(x.live, a) {
				t.Errorf("after change %d %v is cut off, want it to be kept", number, a)
			}
		}
	}
	return states
}

// during are the states that may have been in force at a moment of the exchange.
func during(states []state, e exchange) []state {
	first, _ := slices.BinarySearchFunc(states, e.start, func(s state, at time.Time) int { return s.latest.Compare(at) })
	end := first
	for end < len(states) && !states[end].earliest.After(e.end) {
		end++
	}
	return states[first:end]
}

func reportDelays(t *testing.T, done []change, states []state) {
	t.Helper()
	var delays []time.Duration
	next := 0
	for _, s := range states {
		for ; next <= s.number; next++ {
			delays = append(delays, max(0, s.seen.Sub(done[next].answered)))
		}
	}
	delays = delays[sliceCount:]
	t.Logf("from the API server's answer to the rules in the kernel: p50 %v, p99 %v, max %v",
		percentile(delays, .5), percentile(delays, .99), percentile(delays, 1))
	if p99 := percentile(delays, .99); p99 > time.Second {
		t.Errorf("p99 is %v", p99)
	}
}

// checkFresh: they got to endpoints that were ready.
func checkFresh(t *testing.T, exchanges []exchange, states []state, done []change) {
	t.Helper()
	var cut, late int
	for _, e := range exchanges {
		met := during(states, e)
		address := addressOf(e.by)
		switch {
		case e.refused: // see check
		case e.err != nil:
			cut++
			if !slices.ContainsFunc(met, func(s state) bool {
				return slices.ContainsFunc(s.fresh, func(a netip.Addr) bool {
					return slices.ContainsFunc(met, func(s state) bool { return s.lost || !slices.Contains(s.live, a) })
				})
			}) {
				t.Errorf("a new connection was cut while all endpoints stayed: %v", e.err)
			}
		case !slices.ContainsFunc(met, func(s state) bool { return s.lost || slices.Contains(s.fresh, address) }):
			t.Errorf("a new connection got to %c, while the rules had %v", e.by, met)
		}
		if e.err == nil && staleFor(done, address, e) > 50*time.Millisecond {
			late++
		}
	}
	t.Logf("%d new connections were cut because their endpoint was removed; %d got to one that had not been ready for over 50 ms", cut, late)
}

// staleFor is how long before the exchange began the API server had said that the
// endpoint is not ready, 0 if it may have been ready at a moment of it.
func staleFor(done []change, address netip.Addr, e exchange) time.Duration {
	i, _ := slices.BinarySearchFunc(done, e.end, func(c change, at time.Time) int { return c.sent.Compare(at) })
	stale := time.Duration(0)
	for i--; i >= 0; i-- {
		if slices.Contains(done[i].fresh, address) {
			break
		}
		stale = e.start.Sub(done[i].answered)
	}
	return stale
}

func checkKept(t *testing.T, exchanges []exchange, states []state) {
	t.Helper()
	var draining, reset int
	for _, e := range exchanges {
		met := during(states, e)
		live := func(s state) bool { return s.lost || e.by == 0 || slices.Contains(s.live, addressOf(e.by)) }
		gone := func(s state) bool { return s.lost || e.by == 0 || !slices.Contains(s.live, addressOf(e.by)) }
		switch {
		case e.refused: // see check
		case e.err == nil && !slices.ContainsFunc(met, live):
			t.Errorf("%c answered on a connection that was kept after it was removed", e.by)
		case e.err != nil && !slices.ContainsFunc(met, gone):
			t.Errorf("a connection to %c was cut, which was there: %v", e.by, e.err)
		case e.err != nil:
			reset++
		case !slices.ContainsFunc(met, func(s state) bool { return slices.Contains(s.fresh, addressOf(e.by)) }):
			draining++
		}
	}
	t.Logf("%d requests were answered by draining endpoints, %d connections reset", draining, reset)
	if draining == 0 || reset == 0 {
		t.Error("want both")
	}
}
