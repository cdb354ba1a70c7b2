package outage

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/test/environment"
)

// load are pods that ask for their credentials continuously: each through a connection that
// is kept alive, with a new session token (IMDSv2) for each request, and through a new
// connection for each request (IMDSv1).
type load struct {
	cancel  context.CancelFunc
	clients sync.WaitGroup

	mu       sync.Mutex
	requests int
	failures []failure
	// seen is told of each answer, unless it is nil.
	seen func(at time.Time, response *http.Response)
}

type failure struct {
	at  time.Time // when the client learnt of it
	err error
}

// every is the pause between two requests of one client.
const every = 20 * time.Millisecond

// startLoad starts it; it ends with stop, or with the test.
func startLoad(t *testing.T, s *environment.Server, seen func(time.Time, *http.Response), workloads ...workload) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{cancel: cancel, seen: seen}
	for _, w := range workloads {
		keeping, renewing := s.Client(t, w.from), s.Client(t, w.from)
		renewing.Transport.(*http.Transport).DisableKeepAlives = true
		l.clients.Go(func() { l.run(ctx, func() error { return l.v2(ctx, s, keeping, w) }) })
		l.clients.Go(func() { l.run(ctx, func() error { return l.v1(ctx, s, renewing, w, nil) }) })
	}
	t.Cleanup(func() { l.stop() })
	return l
}

// stop ends the load and returns how many requests there were and which failed.
func (l *load) stop() (requests int, failures []failure) {
	l.cancel()
	l.clients.Wait()
	return l.requests, l.failures
}

// mustHaveServed ends the load and fails the test if a request failed.
func (l *load) mustHaveServed(t *testing.T) {
	t.Helper()
	requests, failures := l.stop()
	if requests == 0 {
		t.Error("no requests")
	}
	for i, f := range failures {
		if i == 10 {
			break
		}
		t.Errorf("%s: %v", f.at.Format(time.StampMilli), f.err)
	}
	t.Logf("%d requests, %d failed", requests, len(failures))
}

func (l *load) run(ctx context.Context, request func() error) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		err := request()
		if ctx.Err() != nil {
			return
		}
		l.mu.Lock()
		l.requests++
		if err != nil {
			l.failures = append(l.failures, failure{time.Now(), err})
		}
		l.mu.Unlock()
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

func (l *load) v1(ctx context.Context, s *environment.Server, client *http.Client, w workload, header http.Header) error {
	response, body, err := s.Do(ctx, client, http.MethodGet, w.path(), header)
	if err != nil {
		return err
	}
	if l.seen != nil {
		l.seen(time.Now(), response)
	}
	return w.check(response.StatusCode, body)
}

func (l *load) v2(ctx context.Context, s *environment.Server, client *http.Client, w workload) error {
	response, token, err := s.Do(ctx, client, http.MethodPut, "/latest/api/token", http.Header{"X-Aws-Ec2-Metadata-Token-Ttl-Seconds": {"60"}})
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("token: status %d: %s", response.StatusCode, token)
	}
	return l.v1(ctx, s, client, w, http.Header{"X-Aws-Ec2-Metadata-Token": {token}})
}
