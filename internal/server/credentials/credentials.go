// Package credentials keeps credentials for every role that is in use. It owns
// when STS is asked and for which role first: prefetch, refresh, back-off, and
// order at the limiter. It does not know pods or requests, how AssumeRole is called,
// or what a document of credentials looks like.
package credentials

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/iam4kube/iam4kube/internal/logging"
	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/internal/server/sts"
	"github.com/iam4kube/iam4kube/internal/server/waiting"
)

// STS is what the Cache needs of STS; *sts.Client is it.
type STS interface {
	// Admit waits for a place at the limiter.
	Admit(ctx context.Context) (context.Context, error)
	// AssumeRole makes one attempt with the context that Admit returned. Its error
	// is an *sts.Error.
	AssumeRole(ctx context.Context, r role.Role) (*sts.Credentials, error)
}

// Cache has the credentials of every wanted role. Its methods may be called from
// any goroutine.
type Cache struct {
	sts STS
	hub *waiting.Hub
	log *zap.Logger
	// denied hears of each role that STS refuses.
	denied func(*role.Role, *sts.Error)
	// work tells the dispatcher that something may have become due.
	work chan struct{}
	// attempts are joined by Run.
	attempts sync.WaitGroup

	// planning is held by whoever looks at all roles or changes one, and by no request.
	// Whoever holds it may read everything; it is locked before mu.
	planning   sync.Mutex
	namespaces map[string]*namespace
	plan       plan
	// turn counts the dispatched attempts, for fairness among namespaces.
	turn uint64
	// passedOver counts, by class, the places that others had since one of it had one,
	// while it had something due.
	passedOver [classes]int
	// unfilled are the roles that Filled still waits for; nil before Fill.
	unfilled map[*role.Role]struct{}
	filled   chan struct{}
	// answered: STS has answered an attempt, for whichever role.
	answered bool
	// refused: STS has refused the server itself, and has decided on no role since.
	refused bool

	// mu guards what Get reads: entries, and issued and failure of each. It is locked for
	// one entry at a time.
	mu      sync.RWMutex
	entries map[*role.Role]*entry

	// asking guards awaited, the roles that somebody waits for since the plan was last looked
	// at. It is held for a moment at a time, by requests too.
	asking  sync.Mutex
	awaited map[*role.Role]struct{}
}

// entry is one wanted role. Its fields are guarded by Cache.planning.
type entry struct {
	role      *role.Role
	namespace *namespace
	issued    *Issued
	// failure is the last attempt's, nil after a success or before any attempt.
	failure  *sts.Error
	failures int
	tried    bool
	inFlight bool
	// used: there are pods that may ask for it, or have been.
	used bool
	// planned has a bit for each class in whose line of the plan it is.
	planned uint8
	// due is when the next attempt may start, triedAt when the last one ended.
	due, triedAt time.Time
}

// New returns a Cache in which roles that somebody waits for are the keys of hub. A
// role is known by its pointer everywhere here: what it says does not change, and
// whoever names it keeps the pointer.
func New(client STS, hub *waiting.Hub, registry prometheus.Registerer, log *zap.Logger) *Cache {
	c := &Cache{
		sts:        client,
		hub:        hub,
		log:        log,
		denied:     func(*role.Role, *sts.Error) {},
		work:       make(chan struct{}, 1),
		entries:    map[*role.Role]*entry{},
		namespaces: map[string]*namespace{},
		filled:     make(chan struct{}),
	}
	c.look(time.Now())
	registry.MustRegister(collector{c})
	return c
}

// OnDenied lets tell hear of each role that STS refuses, from any goroutine. Call it before
// Run.
func (c *Cache) OnDenied(tell func(*role.Role, *sts.Error)) { c.denied = tell }

// Want adds a role: its credentials are fetched and kept fresh until Drop.
func (c *Cache) Want(r *role.Role) {
	c.planning.Lock()
	defer c.planning.Unlock()
	if c.entries[r] != nil {
		return
	}
	ns := c.namespaces[r.Namespace]
	if ns == nil {
		ns = &namespace{}
		c.namespaces[r.Namespace] = ns
	}
	ns.roles++
	e := &entry{role: r, namespace: ns}
	c.publish(func() { c.entries[r] = e })
	c.file(e, time.Now())
	c.signal()
}

// Use says that there are pods which may ask for a role that is wanted: it is tried before
// those of which that is not known.
func (c *Cache) Use(r *role.Role) {
	c.planning.Lock()
	defer c.planning.Unlock()
	if e := c.entries[r]; e != nil && !e.used {
		e.used = true
		c.file(e, time.Now())
	}
}

// Drop forgets a role and its credentials. An attempt under way comes to nothing.
func (c *Cache) Drop(r *role.Role) {
	c.planning.Lock()
	defer c.planning.Unlock()
	e := c.entries[r]
	if e == nil {
		return
	}
	c.publish(func() { delete(c.entries, r) })
	e.namespace.roles--
	c.forget(r.Namespace, time.Now())
	c.markFilled(r)
}

// forget drops a namespace of which there is nothing to remember. It needs planning.
func (c *Cache) forget(name string, now time.Time) {
	if ns := c.namespaces[name]; ns.roles == 0 && ns.firstLately(now) == 0 {
		delete(c.namespaces, name)
	}
}

// publish runs do, which changes what Get reads. It needs planning.
func (c *Cache) publish(do func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	do()
}

// Get returns the credentials of a role if it has any that are still valid, or
// else why the last attempt failed; both are nil while there is nothing to say yet.
func (c *Cache) Get(r *role.Role) (*Issued, *sts.Error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	e := c.entries[r]
	if e == nil {
		return nil, nil
	}
	if e.issued.valid(time.Now()) {
		return e.issued, nil
	}
	return nil, e.failure
}

// Nudge lets the dispatcher know that somebody waits for the role. Call it after a waiter has
// begun to watch it.
func (c *Cache) Nudge(r *role.Role) {
	c.asking.Lock()
	if c.awaited == nil {
		c.awaited = map[*role.Role]struct{}{}
	}
	c.awaited[r] = struct{}{}
	c.asking.Unlock()
	c.signal()
}

// signal lets the dispatcher look again at what is due.
func (c *Cache) signal() {
	select {
	case c.work <- struct{}{}:
	default:
	}
}

// attempt calls STS once for an entry that take has marked.
func (c *Cache) attempt(ctx context.Context, e *entry) {
	result, err := c.sts.AssumeRole(ctx, *e.role)
	if ctx.Err() != nil {
		return // the server stops; whatever came back serves nobody
	}
	c.planning.Lock()
	first := !e.tried
	c.finish(e, result, err)
	failure, failures := e.failure, e.failures
	c.planning.Unlock()
	c.hub.Wake(e.role)
	c.signal()
	c.report(e.role, result, failure, failures)
	if failure != nil && failure.Kind == sts.Denied {
		c.denied(e.role, failure)
	}
	if first && e.role.Duration < shortSession {
		c.log.Warn("a session under 25 minutes leaves clients little time if a refresh is late", append(
			logging.Role(e.role.Namespace, e.role.ServiceAccount, e.role.ARN, e.role.SessionName), zap.Duration(logging.Duration, e.role.Duration))...)
	}
}

// finish needs planning.
func (c *Cache) finish(e *entry, result *sts.Credentials, err error) {
	now := time.Now()
	e.inFlight, e.tried, e.triedAt = false, true, now
	defer func() {
		c.settle(e, now)
		if c.entries[e.role] == e {
			c.file(e, now)
		}
	}()
	if err != nil {
		failure := *asFailure(err)
		c.publish(func() {
			e.failure = &failure
			e.failures++
			e.due = now.Add(e.pause(now))
			failure.Retry = e.due.UTC()
		})
		return
	}
	c.publish(func() { e.failure, e.issued = nil, newIssued(result) })
	e.failures = 0
	// A session is never longer than it was asked for, whatever this machine's clock says.
	e.due = now.Add(untilRefresh(min(result.Expiration.Sub(now), e.role.Duration)))
}

// asFailure unwraps what STS's method promises to return.
func asFailure(err error) *sts.Error {
	if failure, ok := errors.AsType[*sts.Error](err); ok {
		return failure
	}
	return &sts.Error{Kind: sts.Unavailable, Message: err.Error()}
}

// report writes the log line of an attempt.
func (c *Cache) report(r *role.Role, result *sts.Credentials, failure *sts.Error, failures int) {
	fields := logging.Role(r.Namespace, r.ServiceAccount, r.ARN, r.SessionName)
	switch {
	case failure == nil:
		c.log.Info("assumed role", append(fields,
			zap.String(logging.AccessKeyID, result.AccessKeyID), zap.Time(logging.Expiration, result.Expiration))...)
	case failure.Kind == sts.Identity:
		c.log.Error("STS refuses the server's own credentials", append(fields,
			zap.String(logging.Code, failure.Code), zap.NamedError(logging.Cause, failure.Cause))...)
	default:
		c.log.Warn("could not assume role", append(fields, zap.String(logging.Kind, string(failure.Kind)),
			zap.Error(failure), zap.Int(logging.Failures, failures))...)
	}
}
