package fakests

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"
)

// Outcomes of an [Attempt] that are not the code of an error.
const (
	OutcomePending    = ""            // not answered yet
	OutcomeSuccess    = "Success"     // 200
	OutcomeReset      = "Reset"       // no answer: the fault of that name, or IssueThenReset
	OutcomeClientGone = "ClientGone"  // the client left while it was made to wait
	OutcomeUnreadable = "NotReadable" // the request's body never came
)

// Attempt is one HTTP request that reached the service, a client's retries included.
type Attempt struct {
	Time        time.Time // arrival, before the body was read
	Action      string
	AccessKeyID string // who signed it, known only once the signature is found right
	RoleARN     string
	SessionName string
	ExternalID  *string // nil: not given
	Duration    string  // DurationSeconds as sent, empty: not given

	Outcome string // OutcomeSuccess, …, or the error's code
	Status  int    // of HTTP; 0 without an answer
	Fault   Effect // what was done to it on demand

	// IssuedAccessKeyID names the credentials that came of it, see [Fake.Issued].
	// Set also where the client was not told of them.
	IssuedAccessKeyID string
}

// begin records the arrival of a request.
func (f *Fake) begin(a Attempt) *Attempt {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.attempts = append(f.attempts, &a)
	f.notify()
	return &a
}

// update records what became known of a request. Attempts are read by others,
// so nothing of them is changed outside of here.
func (f *Fake) update(a *Attempt, change func(*Attempt)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(a)
	f.notify()
}

// notify wakes those who wait. The caller holds mu.
func (f *Fake) notify() {
	if f.changed != nil {
		close(f.changed)
		f.changed = nil
	}
}

// Attempts returns all attempts so far, in the order of their arrival.
func (f *Fake) Attempts() []Attempt {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.snapshot()
}

func (f *Fake) snapshot() []Attempt {
	attempts := make([]Attempt, len(f.attempts))
	for i, a := range f.attempts {
		attempts[i] = *a
	}
	slices.SortStableFunc(attempts, byTime)
	return attempts
}

func byTime(a, b Attempt) int { return a.Time.Compare(b.Time) }

// WaitAttempts waits until n attempts have arrived, answered or not.
func (f *Fake) WaitAttempts(ctx context.Context, n int) ([]Attempt, error) {
	return f.wait(ctx, func() bool { return len(f.attempts) >= n })
}

// WaitFor waits until the attempts, their outcomes included, satisfy the condition.
// It looks at all attempts at each change.
func (f *Fake) WaitFor(ctx context.Context, condition func([]Attempt) bool) ([]Attempt, error) {
	return f.wait(ctx, func() bool { return condition(f.snapshot()) })
}

// wait calls ready under mu at every change.
func (f *Fake) wait(ctx context.Context, ready func() bool) ([]Attempt, error) {
	for {
		f.mu.Lock()
		if ready() {
			attempts := f.snapshot()
			f.mu.Unlock()
			return attempts, nil
		}
		if f.changed == nil {
			f.changed = make(chan struct{})
		}
		changed := f.changed
		f.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			attempts := f.Attempts()
			return attempts, fmt.Errorf("fakests: after %d attempts: %w", len(attempts), context.Cause(ctx))
		}
	}
}

// RateExceeded tells by how many attempts the worst window holds more than a
// token bucket would have let through: over all i ≤ j,
//
//	(j - i + 1) - (burst + rate·(tj - ti))
//
// Zero or less: the rate (attempts per second) and the burst were kept in every
// window. Attempts are seen when they arrive: on a real network a client that
// keeps its rate can show a fraction of an attempt too much.
func RateExceeded(attempts []Attempt, rate float64, burst int) (excess float64) {
	ordered := slices.SortedStableFunc(slices.Values(attempts), byTime)
	excess = math.Inf(-1)
	// With level(k) = k - rate·tk a window's excess is level(j) - level(i) + 1 - burst,
	// so the worst window that ends at j begins at the lowest level before it.
	lowest := math.Inf(1)
	for k, a := range ordered {
		level := float64(k) - rate*a.Time.Sub(ordered[0].Time).Seconds()
		lowest = min(lowest, level)
		excess = max(excess, level-lowest+1-float64(burst))
	}
	return excess
}
