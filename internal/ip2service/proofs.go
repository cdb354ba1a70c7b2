//go:build !podonly

package ip2service

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
	"github.com/iam4kube/iam4kube/internal/logging"
)

const (
	askEvery   = 10 * time.Second
	askTimeout = 3 * time.Second
	// pinWithin is how long after the API server was lost, or has told of an endpoint, its
	// key is believed. Later, the address may have another owner.
	pinWithin = 30 * time.Second
	// missesAtMost is how often in a row an endpoint may not answer: a lost packet must not
	// take it from its pods. A wrong answer is enough by itself.
	missesAtMost = 2
	// askAtOnce bounds the requests under way.
	askAtOnce = 16

	// What a server signs, see package metadata.
	readyPath                    = "/iam4kube/ready"
	headerChallenge, headerProof = "X-Iam4kube-Challenge", "X-Iam4kube-Proof"
	proofPrefix                  = "iam4kube-server\n"
	serverName                   = "iam4kube"
)

var errNoServer = errors.New("what answers is not iam4kube's server, or proves nothing")

// proofs tells servers from others who have got their addresses while the API server, which
// would say so, is not heard. Each server process has a key of its own. When the API server is
// lost, each endpoint is asked for it, and from then on, again and again, for a signature by
// the same key: whoever comes later does not have it, and cannot have it from another server,
// whose key is another one.
//
// An endpoint that cannot prove itself gets nothing until the API server is heard again. One
// whose server is of a version without keys is believed as before, and so are all of a family
// if none of it can be asked: a firewall may let nobody but pods reach them.
type proofs struct {
	// hearing says whether the API server is heard.
	hearing func() bool
	// endpoints are those that have to prove themselves.
	endpoints func() []netip.AddrPort
	// ask returns the endpoint's key, after it has signed by it; empty: it has none.
	ask func(context.Context, netip.AddrPort) (string, error)
	// changed is called when Doubted has changed.
	changed func()
	log     *zap.Logger

	// Of the one goroutine of Run.
	pins map[netip.AddrPort]*pin

	mu      sync.Mutex
	doubted map[netip.AddrPort]error
}

// Doubted says that the endpoint could not prove that it is a server of before.
func (p *proofs) Doubted(e netip.AddrPort) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.doubted[e] != nil
}

// Run asks while the API server is not heard, until ctx ends.
func (p *proofs) Run(ctx context.Context) error {
	ticker := time.NewTicker(askEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			p.look(ctx)
		case <-ctx.Done():
			return nil
		}
	}
}

// pin is what is known of an endpoint since the API server was lost.
type pin struct {
	since  time.Time
	pinned bool
	key    string
	misses int // in a row
}

// judge is why the endpoint is not, or not any more, who it was. It takes the key over from
// one that has just appeared.
func (n *pin) judge(a answer) error {
	switch {
	case errors.Is(a.err, errNoServer):
		return a.err
	case a.err != nil:
		if n.misses++; n.misses > missesAtMost {
			return a.err
		}
		return nil
	case !n.pinned && time.Since(n.since) < pinWithin:
		n.pinned, n.key = true, a.key
	}
	n.misses = 0
	if !n.pinned || n.key != a.key {
		return errNoServer
	}
	return nil
}

func (p *proofs) look(ctx context.Context) {
	if p.hearing() {
		p.pins = nil
		p.doubt(nil)
		return
	}
	pins, doubted := map[netip.AddrPort]*pin{}, map[netip.AddrPort]error{}
	asked := map[routes.Family]bool{} // somebody can be
	for e, answer := range p.askAll(ctx) {
		pins[e] = p.pins[e]
		if pins[e] == nil {
			pins[e] = &pin{since: time.Now()}
		}
		if err := pins[e].judge(answer); err != nil || answer.err != nil && p.Doubted(e) {
			doubted[e] = cmp.Or(err, answer.err)
		}
		asked[routes.FamilyOf(e.Addr())] = asked[routes.FamilyOf(e.Addr())] || pins[e].pinned
	}
	if ctx.Err() != nil {
		return
	}
	maps.DeleteFunc(doubted, func(e netip.AddrPort, _ error) bool { return !asked[routes.FamilyOf(e.Addr())] })
	p.pins = pins
	p.doubt(doubted)
}

// doubt takes over who is doubted, and why, and tells of those that are new.
func (p *proofs) doubt(doubted map[netip.AddrPort]error) {
	p.mu.Lock()
	before := p.doubted
	p.doubted = doubted
	p.mu.Unlock()
	for e, why := range doubted {
		if before[e] == nil {
			p.log.Warn("endpoint does not prove, while the API server is not heard, that it is the server of before",
				zap.Stringer(logging.Address, e), zap.Error(why))
		}
	}
	if !maps.EqualFunc(before, doubted, func(error, error) bool { return true }) {
		p.changed()
	}
}

type answer struct {
	key string
	err error
}

func (p *proofs) askAll(ctx context.Context) map[netip.AddrPort]answer {
	var mu sync.Mutex
	answers := map[netip.AddrPort]answer{}
	places := make(chan struct{}, askAtOnce)
	var asking sync.WaitGroup
	for _, e := range p.endpoints() {
		places <- struct{}{}
		asking.Go(func() {
			defer func() { <-places }()
			key, err := p.ask(ctx, e)
			mu.Lock()
			defer mu.Unlock()
			answers[e] = answer{key, err}
		})
	}
	asking.Wait()
	return answers
}

// askServer asks an endpoint to sign something new. It goes by the endpoint's own address,
// past all rules.
func askServer(ctx context.Context, client *http.Client, e netip.AddrPort) (key string, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+e.String()+readyPath, http.NoBody)
	if err != nil {
		return "", err
	}
	challenge := rand.Text()
	request.Header.Set(headerChallenge, challenge)
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	_ = response.Body.Close()
	if response.Header.Get("Server") != serverName {
		return "", errNoServer
	}
	proof := response.Header.Get(headerProof)
	if proof == "" {
		return "", nil
	}
	key, signature, _ := strings.Cut(proof, " ")
	public, keyErr := base64.StdEncoding.DecodeString(key)
	signed, signatureErr := base64.StdEncoding.DecodeString(signature)
	if keyErr != nil || signatureErr != nil || len(public) != ed25519.PublicKeySize || !ed25519.Verify(public, []byte(proofPrefix+challenge), signed) {
		return "", errNoServer
	}
	return key, nil
}

// newAsker is askServer with a connection for each try, and without redirects or proxies.
func newAsker() func(context.Context, netip.AddrPort) (string, error) {
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{}).DialContext, MaxResponseHeaderBytes: 4 << 10},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       askTimeout,
	}
	return func(ctx context.Context, e netip.AddrPort) (string, error) { return askServer(ctx, client, e) }
}
