package credentials

import (
	"math/rand/v2"
	"time"
)

const (
	// mostLeft is what handed-out credentials have left at least, where their session is
	// long enough: SDKs refresh at up to 15 minutes, and would come again and again for less.
	mostLeft = 20 * time.Minute
	// botocoreExtends is what they have left at least in any case. If an expiry is nearer
	// than 12 to 20 minutes botocore puts it off, and asks again up to 10 minutes later.
	botocoreExtends = 10 * time.Minute
	// shortSession is what is warned of: after less than that nothing but a refresh in time
	// keeps botocore from putting off the expiry.
	shortSession = 25 * time.Minute
	// shortestRest is what a shorter life than STS gives has to leave for a refresh.
	shortestRest = 5 * time.Minute
)

// leastLeft is what handed-out credentials of this life have left at least, if STS answers: 20
// minutes, or a third of a shorter life, but 10 minutes all the same.
func leastLeft(life time.Duration) time.Duration {
	return min(mostLeft, max(life/3, min(botocoreExtends, life-shortestRest)))
}

// untilRefresh is how old credentials of this life get. Half of the life is over at the
// earliest, and 0.6 of it at the latest: with an hour that leaves 24 to 30 minutes. A short
// session has to be refreshed sooner: with 15 minutes, 10.5 to 11.25 are left. The jitter
// keeps roles that were fetched together from being refreshed together.
func untilRefresh(life time.Duration) time.Duration {
	jitter := rand.Float64()
	return min(part(life, 0.5+0.1*jitter), part(life-leastLeft(life), 0.75+0.15*jitter))
}

// expiring reports whether credentials have little more left than what must be left of
// those that are handed out.
func (e *entry) expiring(now time.Time) bool {
	if e.issued == nil {
		return false
	}
	life := e.issued.Expiration.Sub(e.issued.Issued)
	least := leastLeft(life)
	return e.issued.Expiration.Sub(now) < least+min(least/5, (life-least)/10)
}

func part(d time.Duration, of float64) time.Duration { return time.Duration(of * float64(d)) }
