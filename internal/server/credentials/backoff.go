package credentials

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"time"

	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/internal/server/sts"
)

const (
	firstBackOff = time.Second
	maxBackOff   = 5 * time.Minute
)

// pause is the time from a failed attempt to the next. Where STS may be back any
// moment, credentials that are still valid do not expire in the middle of a long
// back-off: there are always some attempts left until then.
func (e *entry) pause(now time.Time) time.Duration {
	if e.failure.Kind == sts.Denied {
		return backOffDenied(e.failures, e.role, now)
	}
	full := fullBackOff(e.failures)
	pause := full - rand.N(full/4)
	if e.issued.valid(now) {
		pause = min(pause, max(e.issued.Expiration.Sub(now)/4, firstBackOff))
	}
	return pause
}

// fullBackOff is the time to the next attempt after so many failures in a row: doubled each
// time. Up to a quarter less is waited, so that what failed together does not return
// together.
func fullBackOff(failures int) time.Duration {
	if shift := failures - 1; shift < 10 {
		return min(firstBackOff<<shift, maxBackOff)
	}
	return maxBackOff
}

// backOffDenied lets the replicas try a denied role at the same moments: otherwise, when its
// trust policy is mended, they serve and deny it in turns until the last of them has tried
// again. How much less than the full time is waited is the role's matter instead of chance,
// so that replicas which learnt of it at the same moment keep step. Those which did not find
// each other at the longest pauses: as many as it takes are a quarter shorter, until they end
// at a multiple of the longest pause on the clock, moved by what is the role's matter again.
func backOffDenied(failures int, r *role.Role, now time.Time) time.Duration {
	full := fullBackOff(failures)
	if full < maxBackOff {
		return full - ofRole(r, failures)%(full/4)
	}
	sinceMoment := (time.Duration(now.UnixNano()) - ofRole(r, 0)%maxBackOff) % maxBackOff
	return max(maxBackOff-sinceMoment, maxBackOff*3/4)
}

// ofRole is a duration that differs from role to role and from number to number, and is the
// same in every replica.
func ofRole(r *role.Role, number int) time.Duration {
	hash := fnv.New64a()
	_, _ = fmt.Fprint(hash, r.SessionName, r.ARN, r.ExternalID, number) // a hash never fails
	return time.Duration(hash.Sum64() >> 1)
}
