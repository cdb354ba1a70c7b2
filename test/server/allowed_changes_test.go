package server

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/fakests"
)

// A list that changes while STS is being asked decides over what STS answers, and whoever waits
// for that is told at once.
func TestListChangesWhileSTSIsAsked(t *testing.T) {
	t.Parallel()
	namespace := newNamespace(t, "allowed-asked")
	w := newWorkload(namespace, "app")
	answer := make(chan struct{})
	release := sync.OnceFunc(func() { close(answer) })
	defer release()
	setFault(t, w, fakests.Fault{Until: answer})
	s := env.Start(t, env.Config(t))
	s.WaitReady(t)
	w.create(t)
	var waiting []<-chan reply
	for _, path := range []string{w.path(), containerPath} {
		waiting = append(waiting, ask(t.Context(), t, s, w.from, path))
	}
	awaitWaiting(t, s, diagnosis.Credentials, len(waiting))
	if attempts(w.arn) == 0 {
		t.Fatal("nobody has asked STS")
	}
	annotate(t, namespace, role.AnnotationAllowed, `""`)
	for _, r := range waiting {
		if r := receive(t, r); r.StatusCode == http.StatusOK || !strings.Contains(r.body, "not-allowed") {
			t.Errorf("%d %s", r.StatusCode, r.body)
		}
	}
	release()
	// Whatever STS still grants is nobody's.
	if _, err := env.STS.WaitFor(t.Context(), func(all []fakests.Attempt) bool {
		return !slices.ContainsFunc(all, func(a fakests.Attempt) bool { return a.RoleARN == w.arn && a.Outcome == fakests.OutcomePending })
	}); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{w.path(), containerPath} {
		if status, body := s.Get(t, w.from, path); status == http.StatusOK || !strings.Contains(body, "not-allowed") {
			t.Errorf("after STS has answered: %d %s", status, body)
		}
	}
	annotate(t, namespace, role.AnnotationAllowed, "null")
	environment.Eventually(t, patience, func() error {
		if status, body := s.Get(t, w.from, w.path()); status != http.StatusOK {
			return fmt.Errorf("allowed again: %d %s", status, body)
		}
		return nil
	})
}

// Under load a change of the list is in force within a second, and once it has refused one
// request of the namespace, none that comes after it gets credentials.
func TestListsChangeUnderLoad(t *testing.T) {
	t.Parallel()
	const pods, every, rounds, each = 8, 20 * time.Millisecond, 3, 25
	namespace := newNamespace(t, "allowed-load")
	l := &listLoad{}
	for i := range pods {
		l.pods = append(l.pods, newWorkload(namespace, fmt.Sprint("app-", i)).create(t))
	}
	s := env.Start(t, env.Config(t))
	s.WaitReady(t)
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for _, w := range l.pods {
		running.Go(func() { l.ask(ctx, s, s.Client(t, w.from), w, every) })
	}
	l.wait(t, true, each)
	var changes []listChange
	for range rounds {
		for _, change := range []struct {
			allowed bool
			list    string
		}{{false, `"arn:aws:iam::123456789012:role/another"`}, {true, "null"}} {
			from := time.Now()
			annotate(t, namespace, role.AnnotationAllowed, change.list)
			changes = append(changes, listChange{from, time.Now(), change.allowed})
			l.wait(t, change.allowed, each)
		}
	}
	stop()
	running.Wait()
	l.judge(t, changes)
}

// listLoad is requests of the pods of one namespace, and what came of them.
type listLoad struct {
	pods []workload

	mu      sync.Mutex
	replies []listReply
}

type listReply struct {
	pod      string
	sent, at time.Time
	served   bool
	other    string // what is neither credentials nor the refusal
}

// listChange is a change of the list: the API server was told between the two times.
type listChange struct {
	from, to time.Time
	allowed  bool
}

func (l *listLoad) ask(ctx context.Context, s *environment.Server, client *http.Client, w workload, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for i := 0; ; i++ {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		r := fetch(context.WithoutCancel(ctx), s, client, []string{w.path(), containerPath}[i%2])
		one := listReply{pod: w.Name, sent: r.sent, at: r.at}
		switch {
		case r.err != nil:
			one.other = r.err.Error()
		case r.StatusCode == http.StatusOK && strings.Contains(r.body, `"AccessKeyId"`):
			one.served = true
		case !strings.Contains(r.body, "not-allowed"):
			one.other = fmt.Sprint(r.StatusCode, " ", r.body)
		}
		l.mu.Lock()
		l.replies = append(l.replies, one)
		l.mu.Unlock()
	}
}

// wait waits until each pod has had so many replies of this kind from now on.
func (l *listLoad) wait(t *testing.T, served bool, each int) {
	t.Helper()
	since := time.Now()
	environment.Eventually(t, patience, func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		had := map[string]int{}
		for _, r := range l.replies {
			if r.sent.After(since) && r.served == served {
				had[r.pod]++
			}
		}
		for _, w := range l.pods {
			if had[w.Name] < each {
				return fmt.Errorf("served %t: %v", served, had)
			}
		}
		return nil
	})
}

func (l *listLoad) judge(t *testing.T, changes []listChange) {
	t.Helper()
	var late time.Duration
	for i, c := range changes {
		end := time.Now()
		if i+1 < len(changes) {
			end = changes[i+1].from
		}
		during := slices.DeleteFunc(slices.Clone(l.replies), func(r listReply) bool { return r.sent.Before(c.to) || r.at.After(end) })
		first := end // when somebody was told of the change
		for _, r := range during {
			if r.served == c.allowed && r.at.Before(first) {
				first = r.at
			}
		}
		for _, r := range during {
			switch {
			case r.other != "":
				t.Errorf("%s: %s", r.pod, r.other)
			case r.served == c.allowed:
			case r.sent.Sub(c.to) >= time.Second || !c.allowed && r.sent.After(first):
				t.Errorf("%s: allowed %t, but served %t %v after the change and %v after the first answer that knew it", r.pod, c.allowed, r.served, r.sent.Sub(c.to), r.sent.Sub(first))
			default:
				late = max(late, r.sent.Sub(c.to))
			}
		}
	}
	t.Logf("%d requests, %d changes; the last request that was answered as before came %v after a change", len(l.replies), len(changes), late)
}
