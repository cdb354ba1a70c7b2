package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/fakests"
)

// patience bounds what should take milliseconds, on a machine that does much else.
const patience = 30 * time.Second

// sightings is what a watch of the test's own has delivered, and when. The API server
// sends the same events to the server under test at the same moment.
type sightings struct {
	mu      sync.Mutex
	all     []sighting
	changed chan struct{}
}

type sighting struct {
	watch.Event
	at time.Time
}

// watchNamespace follows the pods and the ServiceAccounts of a namespace.
func watchNamespace(t testing.TB, namespace string) *sightings {
	t.Helper()
	s := &sightings{changed: make(chan struct{})}
	pods, err := env.Client.CoreV1().Pods(namespace).Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pods.Stop)
	accounts, err := env.Client.CoreV1().ServiceAccounts(namespace).Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(accounts.Stop)
	for _, w := range []watch.Interface{pods, accounts} {
		go func() {
			for e := range w.ResultChan() {
				s.add(sighting{e, time.Now()})
			}
		}()
	}
	return s
}

func (s *sightings) add(one sighting) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, one)
	close(s.changed)
	s.changed = make(chan struct{})
}

// wait returns the first event that matches, once it has come.
func (s *sightings) wait(t testing.TB, matches func(watch.Event) bool) sighting {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		s.mu.Lock()
		changed := s.changed
		i := slices.IndexFunc(s.all, func(one sighting) bool { return matches(one.Event) })
		var found sighting
		if i >= 0 {
			found = s.all[i]
		}
		s.mu.Unlock()
		if i >= 0 {
			return found
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatal("the test's own watch has not seen the event")
		}
	}
}

// runs matches the event by which the pod has its addresses.
func runs(w workload) func(watch.Event) bool {
	return func(e watch.Event) bool {
		p, ok := e.Object.(*corev1.Pod)
		return ok && p.Name == w.Name && p.Status.PodIP != ""
	}
}

// annotated matches the event by which the ServiceAccount has this role.
func annotated(w workload, arn string) func(watch.Event) bool {
	return func(e watch.Event) bool {
		a, ok := e.Object.(*corev1.ServiceAccount)
		return ok && a.Name == w.ServiceAccount && a.Annotations[role.AnnotationARN] == arn
	}
}

// annotate changes the role of the ServiceAccount; empty removes the annotation.
func (w workload) annotate(t testing.TB, arn string) {
	t.Helper()
	value := "null"
	if arn != "" {
		value = `"` + arn + `"`
	}
	patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:%s}}}`, role.AnnotationARN, value)
	_, err := env.Client.CoreV1().ServiceAccounts(w.Namespace).
		Patch(t.Context(), w.ServiceAccount, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// setFault is for the workload's role, and for this test: servers of later tests ask STS
// for the role, too.
func setFault(t testing.TB, w workload, faults ...fakests.Fault) {
	t.Helper()
	env.STS.SetFault(w.arn, faults...)
	t.Cleanup(func() { env.STS.SetFault(w.arn) })
}

// reply is what came of a request, and when.
type reply struct {
	*http.Response
	body string
	err  error
	sent time.Time
	at   time.Time
}

// ask sends a request and returns at once; the reply comes when it comes.
func ask(ctx context.Context, t testing.TB, s *environment.Server, from netip.Addr, path string) <-chan reply {
	t.Helper()
	client, replies := s.Client(t, from), make(chan reply, 1)
	go func() { replies <- fetch(ctx, s, client, path) }()
	return replies
}

// fetch sends a request and waits for the reply.
func fetch(ctx context.Context, s *environment.Server, client *http.Client, path string) reply {
	sent := time.Now()
	response, body, err := s.Do(ctx, client, http.MethodGet, path, nil)
	return reply{response, body, err, sent, time.Now()}
}

// receive waits for the reply.
func receive(t testing.TB, replies <-chan reply) reply {
	t.Helper()
	select {
	case r := <-replies:
		if r.err != nil {
			t.Fatal(r.err)
		}
		return r
	case <-time.After(patience):
		t.Fatal("no answer")
		return reply{}
	}
}

// checkOwner checks that the reply holds credentials of the workload and nobody else's.
func checkOwner(t *testing.T, r reply, w workload) {
	t.Helper()
	if r.StatusCode != http.StatusOK {
		t.Fatalf("%s: %d %s", w.Name, r.StatusCode, r.body)
	}
	if arn, session := owner(t, r.body); arn != w.arn || session != w.Namespace+"@"+w.ServiceAccount {
		t.Fatalf("%s has credentials of %s for %s, want %s", w.Name, arn, session, w.arn)
	}
}

// waitingNow is how many requests wait for each piece, without those for which nobody
// does.
func waitingNow(t testing.TB, s *environment.Server) map[diagnosis.Piece]int {
	t.Helper()
	now := map[diagnosis.Piece]int{}
	for _, m := range s.Metrics(t)["iam4kube_waiting_requests"].GetMetric() {
		if n := int(m.GetGauge().GetValue()); n != 0 {
			now[diagnosis.Piece(m.GetLabel()[0].GetValue())] = n
		}
	}
	return now
}

// awaitAllWaiting returns once these requests wait, and no others.
func awaitAllWaiting(t testing.TB, s *environment.Server, want map[diagnosis.Piece]int) {
	t.Helper()
	environment.Eventually(t, patience, func() error {
		if now := waitingNow(t, s); !maps.Equal(now, want) {
			return fmt.Errorf("waiting: %v, want %v", now, want)
		}
		return nil
	})
}

// awaitWaiting returns once so many requests wait for the piece, and none for another.
func awaitWaiting(t testing.TB, s *environment.Server, piece diagnosis.Piece, n int) {
	t.Helper()
	want := map[diagnosis.Piece]int{piece: n}
	if n == 0 {
		clear(want)
	}
	awaitAllWaiting(t, s, want)
}

const (
	// promptly is how soon after an event the requests that waited for it are answered.
	promptly = 20 * time.Millisecond
	// lateBy is how long the requests have waited before the missing object appears.
	lateBy = 500 * time.Millisecond
)

// race is one piece that appears after the request.
type race struct {
	piece  diagnosis.Piece
	before func(w workload)
	appear func(w workload)
	// event returns when what appeared was told.
	event func(w workload, seen *sightings) time.Time
}

func (r race) run(t *testing.T, name string) {
	t.Helper()
	s := env.Start(t, env.Config(t))
	s.WaitReady(t)
	// The machine may be busy elsewhere for a whole round, hardly for three. A server that
	// polled, or was woken by something else, would be late in most tries of each.
	var medians map[string]time.Duration
	for round := range 3 {
		medians = r.measure(t, s, newNamespace(t, fmt.Sprintf("%s-%d", name, round)))
		t.Logf("median of the time from the event to the answer: %v", medians)
		if medians["role"] < promptly && medians["credentials"] < promptly {
			return
		}
	}
	t.Errorf("answered %v after the event, want less than %v", medians, promptly)
}

// measure sends requests of pods for their role and for its credentials, lets what they
// miss appear for one pod after the other, and returns the median delays of the answers.
func (r race) measure(t *testing.T, s *environment.Server, namespace string) map[string]time.Duration {
	t.Helper()
	const tries = 7
	seen := watchNamespace(t, namespace)
	var pods []workload
	var roles, credentials []<-chan reply
	for i := range tries {
		w := newWorkload(namespace, fmt.Sprintf("app-%d", i))
		r.before(w)
		pods = append(pods, w)
	}
	for _, w := range pods {
		credentials = append(credentials, ask(t.Context(), t, s, w.from, w.path()))
		if r.piece != diagnosis.Credentials { // the role is told without them
			roles = append(roles, ask(t.Context(), t, s, w.from, rolesPath))
		}
	}
	awaitWaiting(t, s, r.piece, len(roles)+len(credentials))
	<-time.After(lateBy)

	delays := map[string][]time.Duration{}
	for i, w := range pods {
		r.appear(w)
		at := r.event(w, seen)
		if len(roles) > 0 {
			got := receive(t, roles[i])
			if got.StatusCode != http.StatusOK || rolesPath+got.body != w.path() {
				t.Fatalf("%s: %d %s", w.Name, got.StatusCode, got.body)
			}
			delays["role"] = append(delays["role"], got.at.Sub(at))
		}
		got := receive(t, credentials[i])
		checkOwner(t, got, w)
		delays["credentials"] = append(delays["credentials"], got.at.Sub(at))
	}
	awaitWaiting(t, s, r.piece, 0)
	medians := map[string]time.Duration{}
	for what, all := range delays {
		slices.Sort(all)
		medians[what] = all[len(all)/2]
	}
	return medians
}

// Race 1: the request comes before the server has seen the pod's address.
func TestRequestBeforeItsPod(t *testing.T) {
	race{
		piece:  diagnosis.Pod,
		before: func(w workload) { w.createAccount(t, w.annotations()) },
		appear: func(w workload) { w.createPod(t) },
		event: func(w workload, seen *sightings) time.Time {
			return seen.wait(t, runs(w)).at
		},
	}.run(t, "before-pod")
}

// Race 2: the request comes before the pod's ServiceAccount. The credentials take a call
// of STS after that.
func TestRequestBeforeItsServiceAccount(t *testing.T) {
	race{
		piece:  diagnosis.ServiceAccount,
		before: func(w workload) { w.createPod(t) },
		appear: func(w workload) { w.createAccount(t, w.annotations()) },
		event: func(w workload, seen *sightings) time.Time {
			return seen.wait(t, annotated(w, w.arn)).at
		},
	}.run(t, "before-account")
}

// Race 3: the request comes while STS is being asked.
func TestRequestBeforeItsCredentials(t *testing.T) {
	held := map[string]chan struct{}{}
	var let time.Time
	race{
		piece: diagnosis.Credentials,
		before: func(w workload) {
			w.createPod(t)
			held[w.arn] = make(chan struct{})
			setFault(t, w, fakests.Fault{Until: held[w.arn]})
			w.createAccount(t, w.annotations())
		},
		appear: func(w workload) {
			let = time.Now()
			close(held[w.arn])
		},
		event: func(workload, *sightings) time.Time { return let }, // of STS
	}.run(t, "before-credentials")
}

// Race 4: the request comes before the annotation on the ServiceAccount of a new pod.
func TestRequestBeforeItsAnnotation(t *testing.T) {
	race{
		piece: diagnosis.RoleAnnotation,
		before: func(w workload) {
			w.createPod(t)
			w.createAccount(t, nil)
		},
		appear: func(w workload) { w.annotate(t, w.arn) },
		event: func(w workload, seen *sightings) time.Time {
			return seen.wait(t, annotated(w, w.arn)).at
		},
	}.run(t, "before-annotation")
}

// piecewise are the pieces of one pod's credentials, each of which may come late. A pod
// comes before its address, and a ServiceAccount before its annotation before its
// credentials; nothing else is given.
var piecewise = [2][]string{{"pod", "address"}, {"account", "annotation", "credentials"}}

// All pieces come after the requests, in every order. Before each, the requests wait for
// the first piece that they miss, and for no other.
func TestAllPiecesLateInEveryOrder(t *testing.T) {
	cfg := env.Config(t)
	cfg.MaxWait = time.Minute
	s := env.Start(t, cfg)
	s.WaitReady(t)
	namespace := newNamespace(t, "every-order")
	orders := mergings(piecewise[0], piecewise[1])
	if len(orders) != 10 {
		t.Fatalf("%d orders", len(orders))
	}
	var pods []workload
	var replies []<-chan reply
	for i := range orders {
		w := newWorkload(namespace, fmt.Sprintf("app-%d", i))
		w.IPs = nil
		// Until the credentials come STS fails for a passing reason; the server tries again
		// within a second or two.
		setFault(t, w, fakests.Fault{Effect: fakests.ServiceUnavailable})
		pods = append(pods, w)
		replies = append(replies, ask(t.Context(), t, s, w.from, w.path()))
	}
	for step := range orders[0] {
		want := map[diagnosis.Piece]int{}
		for _, order := range orders {
			if piece := missing(order[:step]); piece != "" {
				want[piece]++
			}
		}
		awaitAllWaiting(t, s, want)
		for i, w := range pods {
			w.appear(t, orders[i][step])
		}
	}
	for i, w := range pods {
		t.Log(strings.Join(orders[i], ", "))
		checkOwner(t, receive(t, replies[i]), w)
	}
}

// mergings are all the ways to merge two lists without changing the order in either.
func mergings(a, b []string) (all [][]string) {
	if len(a) == 0 || len(b) == 0 {
		return [][]string{slices.Concat(a, b)}
	}
	for _, rest := range mergings(a[1:], b) {
		all = append(all, append([]string{a[0]}, rest...))
	}
	for _, rest := range mergings(a, b[1:]) {
		all = append(all, append([]string{b[0]}, rest...))
	}
	return all
}

// missing is the first piece that a request lacks after these have appeared, empty if
// it lacks none.
func missing(have []string) diagnosis.Piece {
	switch {
	case !slices.Contains(have, "address"):
		return diagnosis.Pod
	case !slices.Contains(have, "account"):
		return diagnosis.ServiceAccount
	case !slices.Contains(have, "annotation"):
		return diagnosis.RoleAnnotation
	case !slices.Contains(have, "credentials"):
		return diagnosis.Credentials
	}
	return ""
}

// appear lets one of the pieces appear.
func (w workload) appear(t *testing.T, piece string) {
	t.Helper()
	switch piece {
	case "pod":
		w.createPod(t)
	case "address":
		w.run(t)
	case "account":
		w.createAccount(t, nil)
	case "annotation":
		w.annotate(t, w.arn)
	case "credentials":
		env.STS.SetFault(w.arn)
	}
}

// Nothing appears: after --max-wait comes an answer that is whole, names the piece and
// the source address, and leaves the connection usable.
func TestNothingAppears(t *testing.T) {
	namespace := newNamespace(t, "nothing")
	cfg := env.Config(t)
	cfg.MaxWait = 300 * time.Millisecond
	s := env.Start(t, cfg)
	for _, c := range []struct {
		piece   diagnosis.Piece
		status  int
		says    string
		prepare func(w workload)
	}{
		{diagnosis.Pod, 503, "masqueraded", func(workload) {}},
		{diagnosis.SinglePod, 503, "more than one live pod", func(w workload) {
			w.createAccount(t, w.annotations())
			w.createPod(t)
			w.Name += "-too"
			w.createPod(t)
		}},
		{diagnosis.ServiceAccount, 503, "does not exist", func(w workload) { w.createPod(t) }},
		{diagnosis.RoleAnnotation, 404, role.AnnotationARN, func(w workload) { w.createAccount(t, nil); w.createPod(t) }},
		{diagnosis.Credentials, 503, "STS has not answered yet", func(w workload) {
			setFault(t, w, fakests.Fault{Effect: fakests.Hang})
			w.create(t)
		}},
	} {
		t.Run(string(c.piece), func(t *testing.T) {
			w := newWorkload(namespace, string(c.piece))
			c.prepare(w)
			client := s.Client(t, w.from)
			environment.Eventually(t, patience, func() error { // what was created may not be seen yet
				r := fetch(t.Context(), s, client, w.path())
				switch {
				case r.err != nil:
					return r.err
				case !strings.Contains(r.body, "missing "+string(c.piece)):
					return errors.New(r.body)
				}
				if r.StatusCode != c.status || r.ContentLength != int64(len(r.body)) || r.Header.Get("Content-Type") != "text/plain" {
					t.Errorf("status %d, length %d of %d, %v", r.StatusCode, r.ContentLength, len(r.body), r.Header)
				}
				if !strings.Contains(r.body, "source address "+w.from.String()) || !strings.Contains(r.body, c.says) {
					t.Errorf("the answer should name %s and say %q: %s", w.from, c.says, r.body)
				}
				if took := r.at.Sub(r.sent); took < cfg.MaxWait {
					t.Errorf("answered after %v, should have waited %v", took, cfg.MaxWait)
				}
				if r.Close {
					t.Error("the connection was closed")
				}
				return nil
			})
		})
	}
}

// Clients that go away leave nothing of their wait: neither in the gauge nor, after the
// server has stopped, a goroutine.
func TestClientsGoAway(t *testing.T) {
	namespace := newNamespace(t, "gone")
	none, noAccount := newWorkload(namespace, "none"), newWorkload(namespace, "no-account")
	noAnnotation, noCredentials := newWorkload(namespace, "no-annotation"), newWorkload(namespace, "no-credentials")
	noAccount.createPod(t)
	noAnnotation.createAccount(t, nil)
	noAnnotation.createPod(t)
	setFault(t, noCredentials, fakests.Fault{Effect: fakests.Hang})
	noCredentials.create(t)

	cfg := env.Config(t)
	cfg.MaxWait = time.Hour // nothing but its client's end ends a wait here
	cfg.Drain = 0
	before := goleak.IgnoreCurrent()
	s := env.Start(t, cfg)
	const each = 5
	ctx, leave := context.WithCancel(t.Context())
	var replies []<-chan reply
	all := map[diagnosis.Piece]int{}
	for piece, w := range map[diagnosis.Piece]workload{
		diagnosis.Pod: none, diagnosis.ServiceAccount: noAccount, diagnosis.RoleAnnotation: noAnnotation, diagnosis.Credentials: noCredentials,
	} {
		for range each {
			replies = append(replies, ask(ctx, t, s, w.from, w.path()))
		}
		all[piece] = each
	}
	awaitAllWaiting(t, s, all)
	leave()
	for _, r := range replies {
		if got := <-r; !errors.Is(got.err, context.Canceled) {
			t.Errorf("%v", got.err)
		}
	}
	awaitAllWaiting(t, s, nil)
	environment.Eventually(t, patience, func() error {
		if n := s.Metric(t, "iam4kube_http_requests_total", "endpoint", "credentials", "code", "499"); n != 4*each {
			return fmt.Errorf("%v requests are counted as left by their clients, want %d", n, 4*each)
		}
		return nil
	})
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	http.DefaultClient.CloseIdleConnections()
	// Idle connections to the fake STS and the API server may stay for a while, the former
	// with both of their ends in this process. What waits in a handler is none of these.
	goleak.VerifyNone(t, before,
		goleak.IgnoreAnyFunction("net/http.(*connReader).Read"),
		goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"),
		goleak.IgnoreTopFunction("net/http.(*persistConn).writeLoop"),
		goleak.IgnoreAnyFunction("golang.org/x/net/http2.(*ClientConn).readLoop"))
}

// Requests that come again join the call of STS that the first ones waited for.
func TestRetriesJoinTheCallUnderWay(t *testing.T) {
	const requests = 20
	w := newWorkload(newNamespace(t, "retries"), "app")
	s := env.Start(t, env.Config(t))
	s.WaitReady(t)
	setFault(t, w, fakests.Fault{Delay: 4 * time.Second}) // longer than the requests take to come and go
	w.create(t)
	ctx, leave := context.WithCancel(t.Context())
	var gone []<-chan reply
	for range requests {
		gone = append(gone, ask(ctx, t, s, w.from, w.path()))
	}
	awaitWaiting(t, s, diagnosis.Credentials, requests)
	leave()
	for _, r := range gone {
		<-r
	}
	awaitWaiting(t, s, diagnosis.Credentials, 0)
	var retries []<-chan reply
	for range requests {
		retries = append(retries, ask(t.Context(), t, s, w.from, w.path()))
	}
	for _, r := range retries {
		checkOwner(t, receive(t, r), w)
	}
	if n := attempts(w.arn); n != 1 {
		t.Errorf("%d calls of STS for %d requests", n, 2*requests)
	}
}

// attempts is how often STS was asked for the role.
func attempts(arn string) (n int) {
	for _, a := range env.STS.Attempts() {
		if a.RoleARN == arn {
			n++
		}
	}
	return n
}
