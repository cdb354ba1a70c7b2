// Package metadata is the server's HTTP edge: a small, closed-by-default part of
// EC2's instance metadata service (IMDS), and the container credentials protocol. It
// owns paths, headers, statuses and texts, and the waiting of requests for what is
// still missing. Who calls and what the credentials are it asks of others.
package metadata

import (
	"context"
	"crypto/ed25519"
	"net/http"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/iam4kube/iam4kube/internal/logging"
	"github.com/iam4kube/iam4kube/internal/server/audit"
	"github.com/iam4kube/iam4kube/internal/server/credentials"
	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
	"github.com/iam4kube/iam4kube/internal/server/identity"
	"github.com/iam4kube/iam4kube/internal/server/imdstoken"
	"github.com/iam4kube/iam4kube/internal/server/podevents"
	"github.com/iam4kube/iam4kube/internal/server/podtoken"
	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/internal/server/sts"
	"github.com/iam4kube/iam4kube/internal/server/waiting"
)

// Config is what a Server needs. Every field is required, but those that say what
// leaving them empty means.
type Config struct {
	Identity    *identity.Index
	Credentials *credentials.Cache
	Tokens      *imdstoken.Keys
	PodTokens   *podtoken.Verifier
	Events      *podevents.Recorder
	Hub         *waiting.Hub
	// MaxWait is the longest that a request waits for what is missing.
	MaxWait time.Duration
	// IMDSv1 lets requests without a session token in.
	IMDSv1 bool
	// Region and AvailabilityZone stand in for missing labels of nodes; empty: 404.
	Region, AvailabilityZone string
	Registry                 prometheus.Registerer
	Log                      *zap.Logger
	// Audit is where it is recorded who got credentials and who did not; nil: nowhere.
	Audit *audit.Log
}

// Server is the http.Handler of the metadata API. Serve it without a mux, which
// would clean paths and redirect.
type Server struct {
	cfg     Config
	metrics *metrics
	// sampler is for what others can cause in any number.
	sampler  *sampler
	draining atomic.Bool
	proofKey ed25519.PrivateKey
	// get is that of Config.Credentials. A test changes what is known meanwhile.
	get func(*role.Role) (*credentials.Issued, *sts.Error)
}

// New returns a Server.
func New(cfg Config) *Server {
	return &Server{cfg: cfg, metrics: newMetrics(cfg.Registry), sampler: newSampler(), proofKey: newProofKey(), get: cfg.Credentials.Get}
}

// Drain lets every answer from now on end its connection, so that clients move to
// another replica before this one stops listening.
func (s *Server) Drain() { s.draining.Store(true) }

// Header values that never change, so that no request allocates them.
var (
	headerServer = []string{"iam4kube"}
	headerText   = []string{"text/plain"}
	headerJSON   = []string{"application/json"}
	headerClose  = []string{"close"}
	headerRetry  = []string{"1"}
)

// netHTTPBuffer is the longest answer of which net/http tells the length by itself; a longer
// one it would send in chunks, and not every client takes those.
const netHTTPBuffer = 2048

// bodyTimeout bounds how long a client may take to send a body, which nothing here
// reads.
const bodyTimeout = time.Second

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	t := route(r.RequestURI)
	header := w.Header()
	header["Server"] = headerServer
	if r.ContentLength != 0 {
		header["Connection"] = headerClose
		_ = http.NewResponseController(w).SetReadDeadline(start.Add(bodyTimeout)) // a test's recorder has none
	}
	a := s.answer(w, r, t, start)
	if s.draining.Load() {
		header["Connection"] = headerClose
	}
	if a.retry {
		header["Retry-After"] = headerRetry
	}
	if t.endpoint == endpointContainer {
		a = a.asContainerError()
	}
	header["Content-Type"] = headerText
	if a.json {
		header["Content-Type"] = headerJSON
	}
	if len(a.body) > netHTTPBuffer || a.note != nil {
		header["Content-Length"] = []string{strconv.Itoa(len(a.body))}
	}
	w.WriteHeader(int(a.status))
	_, _ = w.Write(a.body) // the client's connection, the client's loss
	s.metrics.request(t.endpoint, int(a.status), time.Since(start))
	if a.note != nil {
		_ = http.NewResponseController(w).Flush() // as above
		a.note()
	}
	if a.refusal != nil {
		s.tellRefused(r, a)
	}
}

// answer decides in the order: is the request for us at all, is its token good, is there
// such an endpoint, what is there for this caller. Clients learn from an unserved path
// whether their token is good.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, t target, now time.Time) answer {
	from, ok := source(r)
	if t.endpoint == endpointReady && ok {
		w.Header()["X-Iam4kube-Source-Ip"] = []string{from.String()}
		s.prove(w.Header(), r.Header)
	}
	claim, proxy := identity.Claim{Address: from}, fromProxy(r)
	switch {
	case !ok:
		return text(http.StatusForbidden, "iam4kube: the source of the request has no IP address")
	case proxy != "":
		return refuse(http.StatusForbidden, "iam4kube: requests with "+proxy+" are refused, they come through a proxy: exclude the metadata address from it (NO_PROXY)", refusedProxy, "")
	case !hostIsAddress(r.Host):
		return refuse(http.StatusForbidden, "iam4kube: the Host header must be an IP address, as in http://169.254.169.254", refusedHost, r.Host)
	case t.endpoint == endpointToken && r.Method == http.MethodPut:
		return s.newToken(w, r, from) // also for those who send an old one
	case !s.tokenAccepted(r, t.endpoint, from, now):
		return refuse(http.StatusUnauthorized, "iam4kube: the session token is missing, invalid or expired, or another pod's; get one with PUT "+pathToken, refusedToken, "")
	case t.endpoint == endpointNone:
		return notFound()
	case r.Method != t.endpoint.method():
		w.Header()["Allow"] = []string{t.endpoint.method()}
		return text(http.StatusMethodNotAllowed, "iam4kube: method not allowed")
	}
	var authorization []string
	if t.endpoint == endpointContainer {
		authorization = r.Header["Authorization"]
	}
	t.protocol = protocol(r)
	// What the client sent is not kept while its request waits: a map of many short lines
	// takes 20 times their size.
	r.Header, r.URL, r.RequestURI = nil, nil, ""
	switch t.endpoint {
	case endpointReady:
		return s.ready(r.Context(), w.Header(), claim, t.query)
	case endpointContainer:
		return s.containerCredentials(r.Context(), claim, authorization)
	}
	return s.await(r.Context(), s.cfg.MaxWait, func() view { return s.look(claim, t) }).asEC2()
}

func (s *Server) look(claim identity.Claim, t target) view {
	switch t.endpoint {
	case endpointRole:
		return s.roleView(claim)
	case endpointCredentials:
		return s.credentialsView(claim, t)
	case endpointInfo:
		return s.infoView(claim)
	case endpointZone:
		return s.zoneView(claim)
	case endpointRegion:
		return s.regionView(claim)
	case endpointDocument:
		return s.documentView(claim)
	case endpointToken, endpointContainer, endpointReady, endpointNone:
	}
	return done(notFound())
}

// ready answers GET /iam4kube/ready?wait=DURATION. Without wait it looks once. The pod that
// the caller is taken for is named in the header, so that he can see whether he is that one.
func (s *Server) ready(ctx context.Context, header http.Header, claim identity.Claim, query string) answer {
	values, err := url.ParseQuery(query)
	if err != nil {
		return text(http.StatusBadRequest, "iam4kube: the query cannot be read")
	}
	var wait time.Duration
	if values.Has("wait") {
		if wait, err = time.ParseDuration(values.Get("wait")); err != nil || wait < 0 {
			return text(http.StatusBadRequest, "iam4kube: wait must be a duration such as 5s")
		}
	}
	a := s.await(ctx, min(wait, s.cfg.MaxWait), func() view { return s.readyView(claim) })
	if pod := s.cfg.Identity.Lookup(claim).Pod; pod != nil {
		header["X-Iam4kube-Pod"] = []string{pod.Namespace + "/" + pod.Name}
	}
	return a
}

// WaitBytes is what a waiting request takes of the memory at most, with its connection,
// whatever its client sends in a header of up to 4 KiB.
const WaitBytes = 32 << 10

// patience is how long a client that went away has to have waited for what it
// missed to be told. AWS SDKs give an attempt one second and would otherwise fail
// without a trace; whoever leaves sooner had another reason.
const patience = 900 * time.Millisecond

// await looks until there is an answer, the time is over or the client is gone.
// Between two looks it sleeps until something changed that the last one depended
// on.
func (s *Server) await(ctx context.Context, most time.Duration, look func() view) answer {
	v := look()
	if v.answer == nil {
		v.answer = s.wait(ctx, time.Now().Add(most), v, look)
	}
	if v.answer.failure != nil {
		s.tell(v.answer)
	}
	return *v.answer
}

func (s *Server) wait(ctx context.Context, deadline time.Time, v view, look func() view) *answer {
	first, start := v.missing, time.Now()
	if !v.end(deadline).After(start) {
		a := v.giveUp()
		return &a
	}
	end := func(outcome string, a answer) *answer {
		s.metrics.waited(first, outcome, time.Since(start))
		return &a
	}
	waiter, err := s.cfg.Hub.Join(v.who, v.namespace)
	if err != nil {
		return end(outcomeRefused, tooMany(err))
	}
	defer waiter.Leave()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if err := waiter.Stay(v.namespace); err != nil {
			return end(outcomeRefused, tooMany(err))
		}
		// The first look may be older than the watch: a change in between would wake
		// nobody.
		isNew := waiter.Watch(v.keys...)
		if isNew {
			if v.missing == diagnosis.Credentials {
				s.cfg.Credentials.Nudge(v.role)
			}
		} else {
			left := time.Until(v.end(deadline))
			if left <= 0 {
				return end(outcomeTimeout, v.giveUp())
			}
			timer.Reset(left)
			s.metrics.waiting(v.missing, +1)
			select {
			case <-waiter.C:
			case <-timer.C:
			case <-ctx.Done():
			}
			s.metrics.waiting(v.missing, -1)
			if ctx.Err() != nil {
				a := answer{status: statusClientClosed}
				if time.Since(start) >= patience {
					a.failure = v.giveUp().failure
				}
				return end(outcomeGone, a)
			}
		}
		if v = look(); v.answer != nil {
			return end(outcomeAnswered, *v.answer)
		}
	}
}

// end is when to give up.
func (v view) end(deadline time.Time) time.Time {
	if !v.until.IsZero() && v.until.Before(deadline) {
		return v.until
	}
	return deadline
}

// served returns what notes who got which credentials, nil if that was noted before: one log
// line for each pod and generation, by which CloudTrail can be traced back to the pod, and one
// event for each pod and role. Its client does not wait for either. The audit log has its
// record before.
func (s *Server) served(c identity.Caller, issued *credentials.Issued, protocol string) (note func()) {
	last := c.Pod.Life.Served.Load()
	if last != nil && *last == issued.AccessKeyID {
		return nil
	}
	id := issued.AccessKeyID // its own, because the pod may outlive the credentials
	if !c.Pod.Life.Served.CompareAndSwap(last, &id) {
		return nil // another request of the same pod notes it
	}
	return s.firstServed(c, issued, protocol)
}

func (s *Server) firstServed(c identity.Caller, issued *credentials.Issued, protocol string) (note func()) {
	s.auditServed(c, issued, protocol)
	return func() {
		s.cfg.Log.Info("handed out credentials", append(logging.Role(c.Pod.Namespace, c.Pod.ServiceAccount, c.Role.ARN, c.Role.SessionName),
			zap.String(logging.Pod, c.Pod.Name), zap.String(logging.UID, string(c.Pod.UID)),
			zap.String(logging.AccessKeyID, issued.AccessKeyID), zap.Time(logging.Expiration, issued.Expiration), zap.String(logging.Proof, c.Proof()))...)
		s.cfg.Events.Record(c.Pod, c.Subject().Served()) // which is news once for each role
	}
}
