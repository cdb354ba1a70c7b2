package sts

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go/middleware"
	"golang.org/x/time/rate"
)

// Limiter holds the HTTP requests to STS below a rate and a burst, whoever sends
// them: the cache's attempts, the SDK's own retries, and the calls by which the
// SDK gets the server's own credentials from STS.
type Limiter struct {
	tokens *rate.Limiter
	full   rate.Limit
	burst  int

	mu       sync.Mutex
	slowedAt time.Time
}

const (
	// slowest is the part of the full rate below which throttling does not go.
	slowest = 1.0 / 32
	// recovery is the part of the full rate that each good answer gives back.
	recovery = 1.0 / 20
)

// NewLimiter returns a Limiter of perSecond requests a second and burst at once.
func NewLimiter(perSecond float64, burst int) *Limiter {
	// One token of the burst is kept back: requests that leave here on time may
	// arrive at STS closer together than they left, and must not add up to more
	// than the burst there.
	burst = max(1, burst-1)
	return &Limiter{tokens: rate.NewLimiter(rate.Limit(perSecond), burst), full: rate.Limit(perSecond), burst: burst}
}

type prepaidKey struct{}

// Admit waits for the next free place and returns a context whose first request
// to STS takes it. So the caller chooses what to send after it has waited, not
// before.
func (l *Limiter) Admit(ctx context.Context) (context.Context, error) {
	if err := l.tokens.Wait(ctx); err != nil {
		return nil, err
	}
	prepaid := new(atomic.Bool)
	prepaid.Store(true)
	return context.WithValue(ctx, prepaidKey{}, prepaid), nil
}

// wait is Admit for a request that is about to leave.
func (l *Limiter) wait(ctx context.Context) error {
	if prepaid, ok := ctx.Value(prepaidKey{}).(*atomic.Bool); ok && prepaid.CompareAndSwap(true, false) {
		return nil
	}
	return l.tokens.Wait(ctx)
}

// slowDown halves the rate, at most once a second since the requests of one
// second are throttled together, and takes the burst away.
func (l *Limiter) slowDown() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); now.Sub(l.slowedAt) >= time.Second {
		l.slowedAt = now
		l.tokens.SetLimit(max(l.tokens.Limit()/2, l.full*slowest))
		l.tokens.SetBurst(1)
	}
}

// speedUp gives some of the rate back, and the burst once all of it is back.
func (l *Limiter) speedUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.tokens.Limit() == l.full {
		return
	}
	limit := min(l.tokens.Limit()+l.full*recovery, l.full)
	l.tokens.SetLimit(limit)
	if limit == l.full {
		l.tokens.SetBurst(l.burst)
	}
}

// Rate is the present number of requests a second.
func (l *Limiter) Rate() float64 { return float64(l.tokens.Limit()) }

// addTo puts the Limiter into the stack of an SDK operation, if that is one of STS:
// below the SDK's own retries, so that each of them counts, and above the
// signature, which would grow old during the wait. It also ends a request that is
// not answered, since the SDK gets the server's own credentials without a
// deadline.
func (l *Limiter) addTo(stack *middleware.Stack) error {
	return stack.Finalize.Insert(middleware.FinalizeMiddlewareFunc("iam4kubeLimiter",
		func(ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler) (middleware.FinalizeOutput, middleware.Metadata, error) {
			if awsmiddleware.GetServiceID(ctx) != sts.ServiceID {
				return next.HandleFinalize(ctx, in)
			}
			if err := l.wait(ctx); err != nil {
				return middleware.FinalizeOutput{}, middleware.Metadata{}, err
			}
			ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
			defer cancel()
			out, metadata, err := next.HandleFinalize(ctx, in)
			switch {
			case err == nil:
				l.speedUp()
			case classify(err).Kind == Throttled:
				l.slowDown()
			}
			return out, metadata, err
		}), "Retry", middleware.After)
}
