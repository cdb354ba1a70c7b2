//go:build !podonly

package ip2service

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// asking is proofs over endpoints that answer what the test says: a key, or "-" for no answer.
type asking struct {
	*proofs
	heard   bool
	answers map[string]string
	changes int
	logs    *observer.ObservedLogs
}

func newAsking(answers map[string]string) *asking {
	a := &asking{answers: answers, heard: true}
	core, logs := observer.New(zap.WarnLevel)
	a.logs = logs
	a.proofs = &proofs{
		hearing: func() bool { return a.heard },
		endpoints: func() (all []netip.AddrPort) {
			for e := range a.answers {
				all = append(all, netip.MustParseAddrPort(e))
			}
			return all
		},
		ask: func(_ context.Context, e netip.AddrPort) (string, error) {
			if key := a.answers[e.String()]; key != "-" {
				return key, nil
			}
			return "", errors.New("refused")
		},
		changed: func() { a.changes++ },
		log:     zap.New(core),
	}
	return a
}

func (a *asking) want(t *testing.T, when string, doubted ...string) {
	t.Helper()
	a.look(t.Context())
	var have []string
	for e := range a.answers {
		if a.Doubted(netip.MustParseAddrPort(e)) {
			have = append(have, e)
		}
	}
	slices.Sort(have)
	if !slices.Equal(have, doubted) {
		t.Errorf("%s: doubted are %v, want %v", when, have, doubted)
	}
}

// An endpoint that somebody else has got since the API server was lost is told by its key, and
// gets nothing until the API server is heard.
func TestProofs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAsking(map[string]string{one: "first", two: "second", six: "-"})
		a.want(t, "heard")
		a.heard = false
		a.want(t, "all of IPv6 cannot be asked")
		advance(askEvery)
		a.want(t, "the same")
		a.answers[one] = "thief"
		a.want(t, "another has the address", one)
		a.answers[one] = "second"
		a.want(t, "he asks another server", one)
		a.answers[one] = ""
		a.want(t, "he proves nothing", one)
		a.answers[one] = "-"
		a.want(t, "nobody answers any more", one)
		if told := a.logs.Len(); a.changes != 1 || told != 1 {
			t.Errorf("%d changes and %d doubts were told", a.changes, told)
		}
		a.answers[one] = "first"
		a.want(t, "it is back")
		a.answers[one] = "-"
		a.want(t, "one miss")
		a.want(t, "two misses")
		a.answers[one] = "first"
		a.want(t, "and an answer")
		a.answers[one] = "-"
		a.want(t, "one miss again")
		a.want(t, "two misses again")
		a.want(t, "three misses", one)
		a.answers[one] = "first"
		a.want(t, "back again")
		advance(pinWithin)
		a.answers[six] = "sixth"
		a.want(t, "who was not reached in time may be anybody, and so may all of its family")
		a.answers["[fd00::2]:8080"] = "told by the API server"
		a.want(t, "a new one", six)
		a.answers[two] = "other"
		a.heard = true
		a.want(t, "heard again")
		a.heard = false
		a.want(t, "lost again")
	})
}

// Servers of a version without keys are believed as before, and so are all where a firewall
// lets nobody ask.
func TestProofsThatNobodyCanGive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAsking(map[string]string{one: "", two: "second"})
		a.heard = false
		a.want(t, "an older version")
		advance(time.Hour)
		a.want(t, "still")
		b := newAsking(map[string]string{one: "-", two: "-"})
		b.heard = false
		b.want(t, "nobody answers")
		advance(time.Hour)
		b.want(t, "still")
		b.want(t, "and still")
		if told := b.logs.Len(); b.changes+told > 0 {
			t.Errorf("%d changes and %d doubts were told", b.changes, told)
		}
		c := newAsking(map[string]string{one: "first", two: "-"})
		c.heard = false
		c.want(t, "one is gone when the API server is lost")
		c.want(t, "it still is")
		c.want(t, "and for good", two)
		advance(pinWithin)
		c.answers[two] = "thief"
		c.want(t, "and another comes", two)
	})
}

// The endpoints that cannot prove themselves get nothing of the kernel.
func TestDoubtedEndpointsGetNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var doubted atomic.Pointer[string]
		b := startRigWith(t, func(b *rig) {
			b.doubted = func(e netip.AddrPort) bool { d := doubted.Load(); return d != nil && *d == e.String() }
		})
		b.list("ready "+one, "ready "+two)
		b.wantRules(t, []string{one, two}, []string{one, two})
		gone := one
		doubted.Store(&gone)
		b.Trigger()
		advance(2 * linger)
		b.wantRules(t, []string{two}, []string{two})
		if n := b.metric(t, "iam4kube_endpoints", "unproven"); n != 1 {
			t.Errorf("%v endpoints are unproven", n)
		}
		doubted.Store(nil)
		b.Trigger()
		synctest.Wait()
		b.wantRules(t, []string{one, two}, []string{one, two})
	})
}

// What is believed of an answer.
func TestAskServer(t *testing.T) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	public := base64.StdEncoding.EncodeToString(key.Public().(ed25519.PublicKey)) //nolint:errcheck // a panic tells as much
	sign := func(text string) string { return base64.StdEncoding.EncodeToString(ed25519.Sign(key, []byte(text))) }
	challenges := map[string]bool{}
	for _, tc := range []struct {
		name, server string
		proof        func(challenge string) string
		key          string
		err          bool
	}{
		{"a server", "iam4kube", func(c string) string { return public + " " + sign("iam4kube-server\n"+c) }, public, false},
		{"an older one", "iam4kube", func(string) string { return "" }, "", false},
		{"nobody of ours", "nginx", func(c string) string { return public + " " + sign("iam4kube-server\n"+c) }, "", true},
		{"an answer of before", "iam4kube", func(string) string { return public + " " + sign("iam4kube-server\nbefore") }, "", true},
		{"signed as something else", "iam4kube", func(c string) string { return public + " " + sign(c) }, "", true},
		{"no signature", "iam4kube", func(string) string { return public }, "", true},
		{"a short key", "iam4kube", func(c string) string { return public[:8] + " " + sign("iam4kube-server\n"+c) }, "", true},
		{"no base64", "iam4kube", func(string) string { return "? ?" }, "", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				challenge := r.Header.Get("X-Iam4kube-Challenge")
				if r.Method != http.MethodGet || r.RequestURI != "/iam4kube/ready" || len(challenge) < 20 || challenges[challenge] {
					t.Errorf("asked %s %s with %q", r.Method, r.RequestURI, challenge)
				}
				challenges[challenge] = true
				w.Header().Set("Server", tc.server)
				if proof := tc.proof(challenge); proof != "" {
					w.Header().Set("X-Iam4kube-Proof", proof)
				}
				w.WriteHeader(http.StatusForbidden)
				_, _ = io.WriteString(w, strings.Repeat("x", 1<<20)) // it is not read
			}))
			defer s.Close()
			got, err := newAsker()(t.Context(), netip.MustParseAddrPort(s.Listener.Addr().String()))
			if got != tc.key || (err != nil) != tc.err {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}
