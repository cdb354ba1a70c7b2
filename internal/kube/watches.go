package kube

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"
)

const (
	// silentAfter is when a watch of which nothing was heard counts as broken.
	//
	// It is also how long the API server must have answered without a failure before
	// that is held against this program: after an outage, a watch that was resumed
	// where it broke off is silent until the next bookmark.
	silentAfter = 2 * time.Minute
	// openExtra is added for a watch that could be opened. The API server sends it a
	// bookmark about every minute, but after its own restart the first one may come
	// only after two, when etcd has told it that nothing has changed.
	openExtra = time.Minute
	// probeAfter is when a silent watch makes Run ask whether the API server answers,
	// openExtra added. So nothing is asked while all is well.
	probeAfter   = 90 * time.Second
	probeEvery   = 10 * time.Second
	probeTimeout = 5 * time.Second
	// beginAnewAfter is when a watch that says nothing is not resumed any more, but begun
	// anew with a list. Resumed where it broke off, it would be silent until the next
	// bookmark, and nobody could know meanwhile whether anything was missed.
	beginAnewAfter = silentAfter
	// answeringFor is how long the API server must have answered without a failure to count
	// as heard: when it goes or comes, not all programs notice in the same moment.
	answeringFor = 30 * time.Second
)

// Watches are the watches of a program. The zero value is not usable.
type Watches struct {
	reach  *Reach
	client rest.Interface

	mu     sync.Mutex
	all    []*activity
	broken bool
}

// activity is when something was last heard on one watch.
type activity struct {
	resource string
	last     atomic.Pointer[time.Time] // nil before the first sync
	// open says that the last attempt to watch succeeded.
	open   atomic.Bool
	synced chan struct{}
	once   sync.Once
}

// outdated says that nothing was heard for so long that what was missed has to be listed.
func (a *activity) outdated() bool {
	last := a.last.Load()
	return last != nil && time.Since(*last) > beginAnewAfter
}

func (a *activity) heard(sync bool) {
	now := time.Now()
	a.last.Store(&now)
	if sync {
		a.once.Do(func() { close(a.synced) })
	}
}

// NewWatches returns an empty set. client is asked whether the API server answers.
func NewWatches(reach *Reach, client rest.Interface, registry prometheus.Registerer) *Watches {
	w := &Watches{reach: reach, client: client}
	registry.MustRegister(w)
	return w
}

func (w *Watches) add(resource string) *activity {
	a := &activity{resource: resource, synced: make(chan struct{})}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, a)
	return a
}

// Sync waits until every watch that was added so far has its first full state.
func (w *Watches) Sync(ctx context.Context) error {
	w.mu.Lock()
	all := w.all
	w.mu.Unlock()
	for _, a := range all {
		select {
		case <-a.synced:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Run asks whether the API server answers while a watch is silent, until ctx ends.
func (w *Watches) Run(ctx context.Context) error {
	ticker := time.NewTicker(probeEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-ticker.C:
			if len(w.silent(now, probeAfter)) > 0 {
				probe, cancel := context.WithTimeout(ctx, probeTimeout)
				// Reach is told the outcome by the client's transport.
				_ = w.client.Get().AbsPath("/version").Do(probe).Error()
				cancel()
			}
		}
	}
}

// silent lists the resources of which nothing was heard for so long, and openExtra if
// their watch is open.
func (w *Watches) silent(now time.Time, long time.Duration) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.silentLocked(now, long)
}

func (w *Watches) silentLocked(now time.Time, long time.Duration) []string {
	var silent []string
	for _, a := range w.all {
		most := long
		if a.open.Load() {
			most += openExtra
		}
		if last := a.last.Load(); last != nil && now.Sub(*last) > most {
			silent = append(silent, a.resource)
		}
	}
	return silent
}

// Broken says which watches have been broken for two minutes, or open and silent for
// three, although the API server answers; nil if none. While it does not answer, the judgement stays what
// it was: in a total outage nobody is served better by taking replicas away.
func (w *Watches) Broken() error {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	silent := w.silentLocked(now, silentAfter)
	if len(silent) == 0 {
		w.broken = false
	} else if w.reach.For(now) >= silentAfter {
		w.broken = true
	}
	if !w.broken {
		return nil
	}
	return fmt.Errorf("the API server answers, but nothing came from the watch of %s for over %v", strings.Join(silent, ", "), silentAfter)
}

// Silent says that nothing was heard of a watch for two minutes, three if it is open,
// whatever the reason.
func (w *Watches) Silent() bool { return len(w.silent(time.Now(), silentAfter)) > 0 }

// Silence is how long ago the watch that has been silent longest was heard, 0 before the
// first lists. In a quiet cluster it is up to two minutes, see openExtra.
func (w *Watches) Silence() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	longest := time.Duration(0)
	for _, a := range w.all {
		if last := a.last.Load(); last != nil {
			longest = max(longest, time.Since(*last))
		}
	}
	return longest
}

// Hearing is nil if this program hears from the API server: every watch is alive, and
// requests have been answered without a failure for half a minute.
func (w *Watches) Hearing() error {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range w.all {
		if a.last.Load() == nil {
			return fmt.Errorf("the first list of %s has not arrived", a.resource)
		}
	}
	if silent := w.silentLocked(now, silentAfter); len(silent) > 0 {
		return fmt.Errorf("nothing came from the watch of %s for over %v", strings.Join(silent, ", "), silentAfter)
	}
	if w.reach.For(now) < answeringFor {
		return fmt.Errorf("the API server has not been answering for %v", answeringFor)
	}
	return nil
}

var (
	syncedDesc = prometheus.NewDesc("iam4kube_informer_synced",
		"1 once the first full list of the resource has arrived.", []string{"resource"}, nil)
	lastHeardDesc = prometheus.NewDesc("iam4kube_watch_last_event_timestamp_seconds",
		"When the last list, event or bookmark of the resource arrived; bookmarks come about once a minute.", []string{"resource"}, nil)
)

// Describe implements prometheus.Collector.
func (w *Watches) Describe(ch chan<- *prometheus.Desc) {
	ch <- syncedDesc
	ch <- lastHeardDesc
}

// Collect implements prometheus.Collector.
func (w *Watches) Collect(ch chan<- prometheus.Metric) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range w.all {
		synced, heard := 0.0, 0.0
		if last := a.last.Load(); last != nil {
			synced, heard = 1, float64(last.UnixNano())/1e9
		}
		ch <- prometheus.MustNewConstMetric(syncedDesc, prometheus.GaugeValue, synced, a.resource)
		ch <- prometheus.MustNewConstMetric(lastHeardDesc, prometheus.GaugeValue, heard, a.resource)
	}
}
