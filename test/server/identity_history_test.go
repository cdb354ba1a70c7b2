package server

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
)

// TestRandomHistory lets pods and ServiceAccounts come, change and go on the API server,
// on few addresses, in a random order, and compares who is served on each address with a
// plain model after each change. Clients ask all the time: whatever they get was true
// before or after the change that was under way. (The package identity plays 1,000 longer
// histories, with gaps and new lists, without an API server.)
func TestRandomHistory(t *testing.T) {
	const steps = 40
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	h := &apiHistory{
		rand: rand.New(rand.NewPCG(seed, 0)), namespace: newNamespace(t, fmt.Sprintf("history-%d", seed)),
		pods: map[string]*apiPod{}, accounts: map[string]string{}, remembered: map[string]string{}, passing: map[int][]string{},
	}
	for i := range 3 {
		h.addresses = append(h.addresses, newTenant(h.namespace, fmt.Sprintf("address-%d", i)))
	}
	h.roles = []string{"", "not an ARN", newTenant(h.namespace, "x").arn, newTenant(h.namespace, "y").arn}
	cfg := env.Config(t)
	cfg.MaxWait = 20 * time.Millisecond // most of the answers are that something is missing
	s := env.Start(t, cfg)
	s.WaitReady(t)
	h.note()
	defer func() {
		if t.Failed() {
			t.Log(strings.Join(h.trail, "\n"))
		}
	}()
	stop := h.askAlways(t, s)
	for step := range steps {
		h.change(t)
		h.note()
		barrier(t, s, h.namespace)
		for _, w := range h.addresses {
			if got, want := h.served(t, s, w), h.says(w); got != want {
				t.Fatalf("step %d: %s is served as %q, want %q", step, w.from, got, want)
			}
		}
	}
	for _, a := range stop() {
		got, allowed := h.read(t, a.status, a.body), h.allowed(a)
		if got != stillMissing && !slices.Contains(allowed, got) {
			t.Fatalf("%s was served as %q, true around it was %q", h.addresses[a.address].from, got, allowed)
		}
	}
}

// apiPod is what is true of a pod.
type apiPod struct {
	workload
	terminating, ended bool
}

// apiHistory is a random life of a small cluster.
type apiHistory struct {
	rand      *rand.Rand
	namespace string
	addresses []workload
	roles     []string
	names     int

	pods map[string]*apiPod
	// accounts are the role annotations; remembered those of ServiceAccounts that went
	// before their pods.
	accounts, remembered map[string]string
	trail                []string

	mu sync.Mutex
	// truths are how each address had to be served after each change, passing what was true
	// after one for a moment of the next.
	truths  [][]string
	passing map[int][]string
}

// note adds the truth of now.
func (h *apiHistory) note() {
	truth := h.now()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.truths = append(h.truths, truth)
}

// now is how each address has to be served.
func (h *apiHistory) now() []string {
	var truth []string
	for _, w := range h.addresses {
		truth = append(truth, h.says(w))
	}
	return truth
}

// allowed is how the address could be served in that time. The server may have seen a change
// before it is noted, and may not have seen the last one that is.
func (h *apiHistory) allowed(a heard) []string {
	first, last := max(0, a.since-1), min(len(h.truths)-1, a.until+1)
	var all []string
	for i := first; i <= last; i++ {
		all = append(all, h.truths[i][a.address])
		if passing := h.passing[i]; passing != nil && i < last {
			all = append(all, passing[a.address])
		}
	}
	return all
}

// noted is the number of the last truth.
func (h *apiHistory) noted() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.truths) - 1
}

// heard is an answer to one of the addresses, and the truths while it was on its way.
type heard struct {
	address, since, until, status int
	body                          string
}

// askAlways lets each address ask again and again until stop, which returns all answers.
func (h *apiHistory) askAlways(t *testing.T, s *environment.Server) (stop func() []heard) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var all []heard
	var mu sync.Mutex
	var clients sync.WaitGroup
	for i, w := range h.addresses {
		client := s.Client(t, w.from)
		clients.Go(func() {
			pace := time.NewTicker(5 * time.Millisecond) // the machine has other work
			defer pace.Stop()
			for ctx.Err() == nil {
				since := h.noted()
				r := fetch(ctx, s, client, appPath)
				if r.err != nil {
					if ctx.Err() == nil {
						t.Error(r.err)
					}
					return
				}
				mu.Lock()
				all = append(all, heard{i, since, h.noted(), r.StatusCode, r.body})
				mu.Unlock()
				<-pace.C
			}
		})
	}
	return func() []heard {
		cancel()
		clients.Wait()
		return all
	}
}

// change lets one random thing happen.
func (h *apiHistory) change(t *testing.T) {
	t.Helper()
	account := fmt.Sprintf("account-%d", h.rand.IntN(2))
	w := workload{Pod: controlplane.Pod{Namespace: h.namespace, Name: account, ServiceAccount: account}}
	arn, exists := h.accounts[account]
	switch n := h.rand.IntN(10); {
	case n < 3 && !exists:
		arn = h.roles[h.rand.IntN(len(h.roles))]
		h.say("create %s with %q", account, arn)
		w.createAccount(t, map[string]string{role.AnnotationARN: arn})
		h.accounts[account] = arn
		delete(h.remembered, account)
	case n < 2:
		arn = h.roles[h.rand.IntN(len(h.roles))]
		h.say("annotate %s with %q", account, arn)
		w.annotate(t, arn)
		h.accounts[account] = arn
	case n < 3:
		h.say("delete %s", account)
		w.removeAccount(t)
		delete(h.accounts, account)
		if isARN(arn) {
			h.remembered[account] = arn
		}
	case n < 6 || len(h.pods) == 0:
		h.names++
		w.Name, w.Node = fmt.Sprintf("pod-%d", h.names), "node-of-"+h.namespace
		w = w.at(h.addresses[h.rand.IntN(len(h.addresses))])
		h.say("create %s of %s on %s", w.Name, account, w.from)
		w.createPod(t)
		h.pods[w.Name] = &apiPod{workload: w}
	default:
		h.changePod(t)
	}
	for account := range h.remembered {
		if !slices.ContainsFunc(h.podNames(), func(name string) bool { return h.pods[name].ServiceAccount == account }) {
			delete(h.remembered, account)
		}
	}
}

func (h *apiHistory) changePod(t *testing.T) {
	t.Helper()
	names := h.podNames()
	p := h.pods[names[h.rand.IntN(len(names))]]
	switch n := h.rand.IntN(3); {
	case !p.terminating && n < 2:
		h.say("terminate %s", p.Name)
		p.terminate(t)
		p.terminating = true
	case !p.ended && n < 2:
		h.say("end %s", p.Name)
		p.end(t, []corev1.PodPhase{corev1.PodRunning, corev1.PodFailed, corev1.PodSucceeded}[h.rand.IntN(3)])
		p.ended = true
	default:
		h.say("delete %s", p.Name)
		// The API server writes that the pod terminates before it takes it away, also without a
		// grace period. To terminating pods a ServiceAccount that went before them counts.
		p.terminating = true
		h.passing[h.noted()] = h.now()
		p.remove(t)
		delete(h.pods, p.Name)
	}
}

func (h *apiHistory) say(format string, arguments ...any) {
	h.trail = append(h.trail, fmt.Sprintf(format, arguments...))
}

func (h *apiHistory) podNames() []string {
	var names []string
	for name := range h.pods {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func isARN(s string) bool { return strings.HasPrefix(s, "arn:") }

// says is how the address has to be served: ACCOUNT ARN, a missing piece, or "wrong" for
// an annotation that is.
func (h *apiHistory) says(address workload) string {
	var all, live []*apiPod
	for _, name := range h.podNames() {
		p := h.pods[name]
		if p.from != address.from || p.ended {
			continue
		}
		all = append(all, p)
		if !p.terminating {
			live = append(live, p)
		}
	}
	switch {
	case len(all) == 0:
		return "pod"
	case len(all) > 1 && len(live) != 1:
		return "single-pod"
	case len(all) > 1:
		all = live
	}
	p := all[0]
	arn, exists := h.accounts[p.ServiceAccount]
	if remembered := h.remembered[p.ServiceAccount]; !exists && p.terminating && remembered != "" {
		arn, exists = remembered, true
	}
	switch {
	case !exists:
		return "service-account"
	case arn == "":
		return "role-annotation"
	case !isARN(arn):
		return "wrong"
	}
	return p.ServiceAccount + " " + arn
}

// stillMissing is the answer for a role whose first credentials STS is being asked for.
const stillMissing = string(diagnosis.Credentials)

// served is how the address is served, once STS has answered.
func (h *apiHistory) served(t *testing.T, s *environment.Server, w workload) (served string) {
	t.Helper()
	environment.Eventually(t, patience, func() error {
		status, body := s.Get(t, w.from, appPath)
		if served = h.read(t, status, body); served == stillMissing {
			return errors.New(body)
		}
		return nil
	})
	return served
}

// read says it in the model's words.
func (h *apiHistory) read(t *testing.T, status int, body string) string {
	t.Helper()
	if status == http.StatusOK && !strings.Contains(body, "AssumeRoleUnauthorizedAccess") {
		arn, session := owner(t, body)
		return strings.TrimPrefix(session, h.namespace+"@") + " " + arn
	}
	if piece, ok := strings.CutPrefix(body, "iam4kube: missing "); ok {
		piece, _, _ = strings.Cut(piece, ":")
		return piece
	}
	if status == http.StatusNotFound && strings.Contains(body, "gives no IAM role") {
		return "wrong"
	}
	return fmt.Sprintf("%d %s", status, body)
}
