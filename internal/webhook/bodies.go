package webhook

import (
	"fmt"
	"net/http"
	"net/netip"

	"go.uber.org/zap"

	"github.com/iam4kube/iam4kube/internal/listener"
	"github.com/iam4kube/iam4kube/internal/logging"
)

// Reviews that are read or answered at one time, in bytes of their bodies: a review takes
// several times its body in memory, and whoever reaches the port may send one. A pod has
// 1.5 MiB at most, as etcd's default limit allows, and is in its review once.
const (
	maxReview     = 3 << 20
	reviewsAtOnce = 16 << 20
	ofOneSource   = 8 << 20
)

// bodies refuses reviews whose bodies are too large, or too many at one time, before it
// reads of them.
type bodies struct {
	next   http.Handler
	shares *listener.Shares
	log    *zap.Logger
}

func newBodies(next http.Handler, log *zap.Logger) *bodies {
	return &bodies{next, listener.NewShares(reviewsAtOnce, ofOneSource), logging.Sampled(log)}
}

func (b *bodies) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.ContentLength < 0:
		b.refuse(w, r, http.StatusLengthRequired, "the review has no Content-Length")
		return
	case r.ContentLength > maxReview:
		b.refuse(w, r, http.StatusRequestEntityTooLarge, fmt.Sprintf("the review is over %d bytes", maxReview))
		return
	}
	// What an address is not, all of them are together.
	source, _ := netip.ParseAddrPort(r.RemoteAddr)
	if _, ok := b.shares.Take(source.Addr(), r.ContentLength); !ok {
		w.Header().Set("Retry-After", "1")
		b.refuse(w, r, http.StatusTooManyRequests, "too many reviews at one time; try again in a second")
		return
	}
	defer b.shares.Give(source.Addr(), r.ContentLength)
	b.next.ServeHTTP(w, r)
}

func (b *bodies) refuse(w http.ResponseWriter, r *http.Request, status int, why string) {
	b.log.Warn("refused a review", zap.String(logging.SourceIP, r.RemoteAddr), zap.Int(logging.Status, status), zap.String(logging.Cause, why))
	w.Header().Set("Connection", "close") // its body stays unread
	http.Error(w, "iam4kube: "+why, status)
}
