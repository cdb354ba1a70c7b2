package metadata

import (
	"cmp"
	"hash/maphash"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/iam4kube/iam4kube/internal/logging"
	"github.com/iam4kube/iam4kube/internal/server/identity"
)

// refusal is why a request was refused that nobody sends whose client is in order, for the
// log: a pod that tries what it may not do leaves its name there.
type refusal struct {
	kind refusalKind
	// value is what the client sent, empty where that says nothing or is a secret.
	value string
}

type refusalKind string

const (
	refusedProxy     refusalKind = "proxy"
	refusedHost      refusalKind = "host"
	refusedToken     refusalKind = "token"
	refusedPodToken  refusalKind = "bad-token"
	refusedOtherRole refusalKind = "other-role"
	refusedTooMany   refusalKind = "too-many"
)

// tellRefused writes a line about a refused request.
func (s *Server) tellRefused(r *http.Request, a answer) {
	from, _ := source(r) // without one there is no refusal
	claim := identity.Claim{Address: from}
	s.auditRefused(claim, a)
	suppressed, ok := s.sampler.admit(string(a.refusal.kind), claim.Address)
	if !ok {
		return
	}
	fields := []zap.Field{
		zap.Stringer(logging.SourceIP, claim.Address), zap.Int(logging.Status, int(a.status)), zap.String(logging.Kind, string(a.refusal.kind)),
		zap.ByteString(logging.Cause, a.body), zap.Int(logging.Suppressed, suppressed),
	}
	if a.refusal.value != "" {
		fields = append(fields, zap.String(logging.Value, quoted(a.refusal.value)))
	}
	s.cfg.Log.Warn("refused a request", append(fields, ofPod(s.cfg.Identity.Lookup(claim).Pod)...)...)
}

// tell reports a failed request in the log and on the pod.
func (s *Server) tell(a *answer) {
	c, d := a.failure.caller, a.failure.diagnosis
	s.auditDenied(c, d, int(a.status))
	pods := c.Claimants
	if c.Pod != nil {
		pods = []*identity.Pod{c.Pod}
	}
	for _, pod := range pods {
		s.cfg.Events.Record(pod, d)
	}
	suppressed, ok := s.sampler.admit(cmp.Or(string(d.Missing), string(d.Refusal)), c.Claim.Address)
	if !ok {
		return
	}
	what := zap.String(logging.Missing, string(d.Missing))
	if d.Refusal != "" {
		what = zap.String(logging.Refusal, string(d.Refusal))
	}
	fields := []zap.Field{
		zap.Stringer(logging.SourceIP, c.Claim.Address), zap.Int(logging.Status, int(a.status)), what,
		zap.String(logging.Reason, string(d.Reason)), zap.String(logging.Cause, d.Text), zap.Int(logging.Suppressed, suppressed),
	}
	s.cfg.Log.Warn("could not serve a request", append(fields, ofPod(c.Pod)...)...)
}

// ofPod names a pod, unless it is nil.
func ofPod(pod *identity.Pod) []zap.Field {
	if pod == nil {
		return nil
	}
	return []zap.Field{zap.String(logging.Namespace, pod.Namespace), zap.String(logging.Pod, pod.Name)}
}

// quoted is what a client sent in a form that no log viewer is misled by.
func quoted(value string) string {
	const most = 64
	if len(value) <= most {
		return strconv.QuoteToASCII(value)
	}
	return strconv.QuoteToASCII(value[:most]) + "..."
}

const (
	// kindPerSecond and kindAtOnce bound the lines of one kind, allPerSecond and allAtOnce
	// those of all kinds.
	kindPerSecond, kindAtOnce = 5, 10
	allPerSecond, allAtOnce   = 10, 20
	// sourceEvery is how often there is a line about one source, of one kind: a source that
	// never rests leaves room for the others.
	sourceEvery = 10 * time.Second
	// sourceSlots is how many sources are told apart. Those that share a slot, by chance,
	// share a line.
	sourceSlots = 1024
)

// sampler says which of the lines that others can cause in any number are written. Its
// memory does not grow.
type sampler struct {
	seed maphash.Seed

	mu    sync.Mutex
	kinds map[string]*sampledKind
	all   *rate.Limiter
	// quiet is when a source may be written of again.
	quiet [sourceSlots]time.Time
}

type sampledKind struct {
	limiter    *rate.Limiter
	suppressed int
}

func newSampler() *sampler {
	return &sampler{seed: maphash.MakeSeed(), kinds: map[string]*sampledKind{}, all: rate.NewLimiter(allPerSecond, allAtOnce)}
}

// admit reports whether to write a line of this kind about a source, and how many of the
// kind were suppressed since the last that was written. There must be few kinds.
func (s *sampler) admit(kind string, source netip.Addr) (suppressed int, ok bool) {
	now := time.Now()
	slot := maphash.Comparable(s.seed, struct {
		kind   string
		source netip.Addr
	}{kind, source}) % sourceSlots
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.kinds[kind]
	if k == nil {
		k = &sampledKind{limiter: rate.NewLimiter(kindPerSecond, kindAtOnce)}
		s.kinds[kind] = k
	}
	if now.Before(s.quiet[slot]) || !k.limiter.AllowN(now, 1) || !s.all.AllowN(now, 1) {
		k.suppressed++
		return 0, false
	}
	s.quiet[slot] = now.Add(sourceEvery)
	suppressed, k.suppressed = k.suppressed, 0
	return suppressed, true
}
