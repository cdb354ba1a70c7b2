// Package podevents tells users on their pods and ServiceAccounts, as Kubernetes Events, how the pods
// fare with their role. It owns how often it is said. What is said is a
// diagnosis, which others make.
package podevents

import (
	"context"
	"fmt"
	"hash/fnv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/iam4kube/iam4kube/internal/kube"
	"github.com/iam4kube/iam4kube/internal/logging"
	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
	"github.com/iam4kube/iam4kube/internal/server/identity"
)

const (
	// perSecond and burst limit the writes of one replica to the API server.
	perSecond, burst = 5, 50
	// queueLength is how many events of each kind wait for their write; more are dropped.
	queueLength = 1000
	// repeatAfter is when a failure that goes on is told again.
	repeatAfter = 10 * time.Minute
	// writeTimeout ends a write to an API server that does not answer.
	writeTimeout = 10 * time.Second
	component    = "iam4kube"
	// maxName is the longest name of an object. maxMessage is the limit of
	// events.k8s.io/v1; core/v1, which is used here, has none of its own.
	maxName, maxMessage = 253, 1024
)

// Recorder writes events. Its methods never block.
type Recorder struct {
	events  func(namespace string) kube.Events
	log     *zap.Logger
	limiter *rate.Limiter
	total   *prometheus.CounterVec
	// more gets a value when an event was recorded since it was last read.
	more chan struct{}

	mu sync.Mutex
	// failures go before successes.
	failures, successes queue
	// told is when each reason was last told of a pod or a ServiceAccount.
	told map[types.UID]map[diagnosis.Reason]telling
}

type telling struct {
	at time.Time
	// about is a hash of Diagnosis.About, which can be long.
	about uint64
}

type event struct {
	// about is the pod or the ServiceAccount.
	about corev1.ObjectReference
	diagnosis.Diagnosis
	at time.Time
}

// New returns a Recorder that writes through events.
func New(events func(namespace string) kube.Events, registry prometheus.Registerer, log *zap.Logger) *Recorder {
	r := &Recorder{
		events:    events,
		log:       log,
		limiter:   rate.NewLimiter(perSecond, burst),
		more:      make(chan struct{}, 1),
		failures:  queue{namespaces: map[string][]event{}},
		successes: queue{namespaces: map[string][]event{}},
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "iam4kube_events_total",
			Help: "Kubernetes events by what became of them: written, dropped because too many waited, or failed.",
		}, []string{"outcome"}),
		told: map[types.UID]map[diagnosis.Reason]telling{},
	}
	for _, outcome := range []string{"written", "dropped", "failed"} {
		r.total.WithLabelValues(outcome)
	}
	registry.MustRegister(r.total)
	return r
}

// Record tells of the pod, unless the same was told lately. Serving is told once
// in the life of a pod for each role, and only of pods that came after this server.
func (r *Recorder) Record(pod *identity.Pod, d diagnosis.Diagnosis) {
	if d.Reason == diagnosis.Serving && !pod.Life.Announced {
		return
	}
	r.record(reference("Pod", pod.Namespace, pod.Name, pod.UID), d)
}

// RecordAccount tells of the ServiceAccount, unless the same was told lately.
func (r *Recorder) RecordAccount(account identity.AccountRef, d diagnosis.Diagnosis) {
	r.record(reference("ServiceAccount", account.Namespace, account.Name, account.UID), d)
}

func reference(kind, namespace, name string, uid types.UID) corev1.ObjectReference {
	return corev1.ObjectReference{APIVersion: "v1", Kind: kind, Namespace: namespace, Name: name, UID: uid}
}

func (r *Recorder) record(about corev1.ObjectReference, d diagnosis.Diagnosis) {
	if d.Reason == "" { // there is nothing that its owner could do
		return
	}
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.isNews(about.UID, d, now) {
		return
	}
	queue := &r.failures
	if d.Reason == diagnosis.Serving {
		queue = &r.successes
	}
	if !queue.push(event{about, d, now}) {
		r.total.WithLabelValues("dropped").Inc()
	}
	select {
	case r.more <- struct{}{}:
	default: // the writer is awake already
	}
}

// Gone implements identity.Observer.
func (r *Recorder) Gone(pod *identity.Pod) { r.forget(pod.UID) }

// AccountGone implements identity.Observer.
func (r *Recorder) AccountGone(account identity.AccountRef) { r.forget(account.UID) }

func (r *Recorder) forget(uid types.UID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.told, uid)
}

// isNews needs mu.
func (r *Recorder) isNews(uid types.UID, d diagnosis.Diagnosis, now time.Time) bool {
	reasons, about := r.told[uid], hashOf(d.About)
	if last, told := reasons[d.Reason]; told && last.about == about && (d.Reason == diagnosis.Serving || now.Sub(last.at) < repeatAfter) {
		return false
	}
	if reasons == nil {
		reasons = map[diagnosis.Reason]telling{}
		r.told[uid] = reasons
	}
	reasons[d.Reason] = telling{now, about}
	return true
}

func hashOf(parts ...any) uint64 {
	hash := fnv.New64a()
	_, _ = fmt.Fprint(hash, parts...) // a hash never fails
	return hash.Sum64()
}

// Run writes what was recorded until ctx ends.
func (r *Recorder) Run(ctx context.Context) error {
	for r.limiter.Wait(ctx) == nil {
		e, ok := r.next(ctx)
		if !ok {
			break
		}
		r.write(ctx, e)
	}
	return nil
}

func (r *Recorder) next(ctx context.Context) (event, bool) {
	for {
		if e, ok := r.pop(); ok {
			return e, true
		}
		select {
		case <-r.more:
		case <-ctx.Done():
			return event{}, false
		}
	}
}

func (r *Recorder) pop() (event, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e, ok := r.failures.pop(); ok {
		return e, true
	}
	return r.successes.pop()
}

// write creates the event, or counts up the one that this or another replica has
// written: all give it the same name.
func (r *Recorder) write(ctx context.Context, e event) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	events := r.events(e.about.Namespace)
	object := e.object()
	_, err := events.Create(ctx, object, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) && e.Reason != diagnosis.Serving {
		err = r.countUp(ctx, events, object)
	}
	if err != nil && !apierrors.IsAlreadyExists(err) {
		r.total.WithLabelValues("failed").Inc()
		kind := logging.Pod
		if e.about.Kind == "ServiceAccount" {
			kind = logging.ServiceAccount
		}
		r.log.Warn("could not write an event", zap.String(logging.Namespace, e.about.Namespace),
			zap.String(kind, e.about.Name), zap.String(logging.Reason, string(e.Reason)), zap.Error(err))
		return
	}
	r.total.WithLabelValues("written").Inc()
}

func (r *Recorder) countUp(ctx context.Context, events kube.Events, object *corev1.Event) error {
	old, err := events.Get(ctx, object.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	old.Count++
	old.LastTimestamp = object.LastTimestamp
	old.Message = object.Message
	_, err = events.Update(ctx, old, metav1.UpdateOptions{})
	return err
}

func (e event) object() *corev1.Event {
	kind, at := corev1.EventTypeWarning, metav1.NewTime(e.at)
	if e.Reason == diagnosis.Serving {
		kind = corev1.EventTypeNormal
	}
	same := []any{e.about.UID, e.Reason}
	if e.Reason == diagnosis.Serving {
		same = append(same, e.About) // another role's stays as it is
	}
	suffix := fmt.Sprintf(".%016x", hashOf(same...))
	return &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: e.about.Namespace, Name: strings.TrimRight(cut(e.about.Name, maxName-len(suffix)), ".-") + suffix},
		InvolvedObject: e.about,
		Reason:         string(e.Reason),
		Message:        cut(e.Text, maxMessage),
		Type:           kind,
		Count:          1,
		FirstTimestamp: at,
		LastTimestamp:  at,
		Source:         corev1.EventSource{Component: component},
	}
}

// cut shortens s to at most that many bytes of whole characters.
func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "")
}
