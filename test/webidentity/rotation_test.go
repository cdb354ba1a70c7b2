package webidentity

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/fakests"
)

const (
	warm     = 20  // pods that have credentials when the rotation begins
	rate     = 200 // requests a second, to two replicas
	newEvery = 100 * time.Millisecond
)

// The key is rotated while 200 requests a second run, of which ten come from pods that have just
// appeared and need a token signed: none fails, and no token is refused, although STS knows a new
// key only some time after it is published.
func TestRotationUnderLoad(t *testing.T) {
	i := newIssuer(t)
	publish(t, i)
	mustIssue(t, i.URL, "rotate", "--emergency") // leaves nothing of an earlier one
	publish(t, i)
	namespace := newNamespace(t, "rotation")
	var all []workload
	for n := range warm {
		all = append(all, mustCreate(t, i, namespace, fmt.Sprintf("warm-%d", n), nil))
	}
	replicas := []*environment.Server{start(t, i), start(t, i)}
	for _, s := range replicas {
		s.WaitReady(t)
	}

	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	load := &load{replicas: replicas, pods: all}
	for n := range warm {
		running.Go(func() { load.ask(ctx, t, all[n], n) })
	}
	running.Go(func() { load.appear(ctx, t, i, namespace) })

	steps := func(want string, arguments ...string) {
		t.Helper()
		_, said, err := issueTrusting(t, i.CAFile, i.URL, append([]string{"rotate"}, arguments...)...)
		if (err != nil) != strings.HasPrefix(want, "!") || !strings.Contains(said, strings.TrimPrefix(want, "!")) {
			t.Fatalf("rotate %q: %v: %s", arguments, err, said)
		}
	}
	load.wait(t, 1)
	after := "--after=" + (2 * keysFor).String()
	steps("Step 1 of 3", after)
	steps("!does not serve both keys", after)
	publish(t, i)
	load.wait(t, 1)
	steps("Step 2 of 3", after)
	steps("!run this again then", after)
	environment.Eventually(t, time.Minute, func() error {
		_, said, err := issueTrusting(t, i.CAFile, i.URL, "rotate", after)
		if err == nil {
			mustSay(t, said, "Step 3 of 3")
		}
		return err
	})
	for _, s := range replicas {
		environment.Eventually(t, time.Minute, func() error {
			if n := len(s.Logs.Lines("tokens for STS are signed with another key")); n != 2 {
				return fmt.Errorf("a replica has signed with %d keys", n)
			}
			return nil
		})
	}
	load.wait(t, 2)
	steps("!tokens of the key before may still be on their way", after)
	stop()
	running.Wait()

	t.Logf("%d requests, %d of them of new pods: %d failed", load.asked.Load(), load.appeared.Load(), load.failed.Load())
	if load.failed.Load() != 0 || load.asked.Load() < rate*4 || load.appeared.Load() < 20 {
		t.Error("some failed, or there was too little to do")
	}
	load.mu.Lock()
	defer load.mu.Unlock()
	signed := map[string]int{}
	var arns []string
	for _, w := range load.pods {
		arns = append(arns, w.arn)
	}
	done := attempts(arns...)
	for _, a := range done {
		if issued, known := env.STS.Issued(a.IssuedAccessKeyID); known {
			signed[issued.KeyID]++
		}
	}
	t.Logf("sessions by the key that signed: %v", signed)
	refused := slices.ContainsFunc(done, func(a fakests.Attempt) bool {
		return a.Outcome != fakests.OutcomeSuccess && a.Outcome != fakests.OutcomeClientGone
	})
	if len(signed) != 2 || refused {
		t.Errorf("%d keys have signed; outcomes at STS: %s", len(signed), outcomes(done))
	}
}

// load is the requests, and what became of them.
type load struct {
	replicas []*environment.Server

	asked, appeared, failed atomic.Int64

	mu   sync.Mutex
	pods []workload
}

// ask asks for the pod's credentials, its share of the rate.
func (l *load) ask(ctx context.Context, t *testing.T, w workload, n int) {
	t.Helper()
	s := l.replicas[n%len(l.replicas)]
	client := s.Client(t, w.from)
	ticker := time.NewTicker(time.Second * warm / rate)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			l.request(ctx, t, s, client, w)
		case <-ctx.Done():
			return
		}
	}
}

func (l *load) request(ctx context.Context, t *testing.T, s *environment.Server, client *http.Client, w workload) {
	t.Helper()
	path := w.path()
	if l.asked.Add(1)%2 == 0 {
		path = "/v1/credentials"
	}
	response, body, err := s.Do(context.WithoutCancel(ctx), client, http.MethodGet, path, nil)
	if err != nil || response.StatusCode != http.StatusOK || !strings.Contains(body, "ASIA") {
		l.failed.Add(1)
		t.Errorf("%s of %s: %v %s", path, w.name, err, body)
	}
}

// appear lets new pods appear, each of which asks at once.
func (l *load) appear(ctx context.Context, t *testing.T, i *environment.Issuer, namespace string) {
	t.Helper()
	ticker := time.NewTicker(newEvery)
	defer ticker.Stop()
	for n := 0; ; n++ {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		w, err := create(context.WithoutCancel(ctx), i, namespace, fmt.Sprintf("new-%d", n), nil)
		if err != nil {
			t.Error(err)
			return
		}
		l.mu.Lock()
		l.pods = append(l.pods, w)
		l.mu.Unlock()
		for _, s := range l.replicas {
			l.request(ctx, t, s, s.Client(t, w.from), w)
		}
		l.appeared.Add(1)
	}
}

// wait lets so many seconds of load pass, and some new pods appear.
func (l *load) wait(t *testing.T, seconds int64) {
	t.Helper()
	asked, appeared := l.asked.Load(), l.appeared.Load()
	environment.Eventually(t, time.Minute, func() error {
		if l.asked.Load() < asked+seconds*rate || l.appeared.Load() < appeared+5 {
			return fmt.Errorf("%d requests", l.asked.Load()-asked)
		}
		return nil
	})
}

// In an emergency the key that leaked is worth nothing as soon as the documents are replaced, and
// pods go on with what they have meanwhile.
func TestEmergency(t *testing.T) {
	i := newIssuer(t)
	publish(t, i)
	namespace := newNamespace(t, "emergency")
	w := mustCreate(t, i, namespace, "before", nil)
	s := start(t, i, "--max-wait", "1s")
	s.WaitReady(t)
	w.session(t, s)
	if _, said, err := issue(t, i.URL, "rotate", "--emergency", "--published"); err == nil || !strings.Contains(said, "contradict") {
		t.Errorf("%v %s", err, said)
	}
	mustSay(t, mustIssue(t, i.URL, "rotate", "--emergency"), "A new key signs now", "put both files", "Revoking sessions")
	environment.Eventually(t, time.Minute, func() error {
		if n := len(s.Logs.Lines("tokens for STS are signed with another key")); n != 2 {
			return fmt.Errorf("signed with %d keys", n)
		}
		return nil
	})
	after := mustCreate(t, i, namespace, "after", nil)
	if status, body := s.Get(t, after.from, "/v1/credentials"); status != http.StatusServiceUnavailable {
		t.Errorf("%d %s", status, body)
	}
	w.session(t, s)
	publish(t, i)
	environment.Eventually(t, time.Minute, func() error {
		if status, body := s.Get(t, after.from, "/v1/credentials"); status != http.StatusOK {
			return fmt.Errorf("%d %s", status, body)
		}
		return nil
	})
	documents, _, err := issue(t, i.URL)
	if err != nil || strings.Count(documents, `"kid"`) != 1 {
		t.Errorf("%v: the old key is still published: %s", err, documents)
	}
}

// Where the URL cannot be read from here, whoever rotates vouches for it.
func TestRotationWithoutReach(t *testing.T) {
	allow(t)
	const url = "https://127.255.255.254/nobody"
	mustIssue(t, url)
	mustIssue(t, url, "rotate", "--emergency")
	mustSay(t, mustIssue(t, url, "rotate"), "Step 1 of 3")
	if _, said, err := issue(t, url, "rotate"); err == nil || !strings.Contains(said, "--published") {
		t.Errorf("%v %s", err, said)
	}
	mustSay(t, mustIssue(t, url, "rotate", "--published"), "Step 2 of 3")
	if _, said, err := issue(t, url, "rotate", "--published"); err == nil || !strings.Contains(said, "may sign after") {
		t.Errorf("%v %s", err, said)
	}
	mustSay(t, mustIssue(t, url, "rotate", "--published", "--after=0s"), "Step 3 of 3")
}
