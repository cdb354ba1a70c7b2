// Package probe asks an iam4kube server, through the intercepted address, whether the
// pod that asks has its credentials: the way that the pod's own first call will take. It
// owns what an answer, or none, means for the pod's start.
package probe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Probe is what to ask and of whom an answer is believed.
type Probe struct {
	// Address is the intercepted address and port.
	Address netip.AddrPort
	// Behind are the addresses that it leads to, for the text of an error.
	Behind []netip.AddrPort
	// Pod is the pod's NAMESPACE/NAME, which the server has to take it for; empty: whoever
	// it is.
	Pod string
	// PodIPs are the addresses that the pod may be seen by.
	PodIPs []netip.Addr
	// Wait is how long the server may wait for what it has not seen yet.
	Wait time.Duration
	// Timeout is after what time nothing is tried again. It cuts no try off: a server
	// that came late may still wait.
	Timeout time.Duration
	// Enough, once it is closed, ends the tries while no server answers; may be nil. One that
	// takes the pod for another is asked again until Timeout.
	Enough <-chan struct{}
	// Late is called with the reason when there has been no answer for lateAfter, once. May
	// be nil.
	Late func(error)
}

const (
	// path of the server's answer for init containers.
	path = "/iam4kube/ready"
	// serverName is in the header Server of each of its answers, sourceHeader the address
	// that it saw the request come from, and podHeader the NAMESPACE/NAME of the pod that it
	// knows there, if it does.
	serverName, sourceHeader, podHeader = "iam4kube", "X-Iam4kube-Source-Ip", "X-Iam4kube-Pod"

	// dialTimeout is over the first repetition of a SYN, after a second. Then another
	// try, which may meet another server, is better than the next repetition.
	dialTimeout = 2 * time.Second
	// answerReserve is for the answer after the wait.
	answerReserve = 5 * time.Second
	// lateAfter is over what a new connection takes to get past a server that is dead and not
	// known to be.
	lateAfter = 3 * time.Second
	// firstPause is doubled up to lastPause.
	firstPause, lastPause = 100 * time.Millisecond, time.Second
	maxBody               = 4 << 10
)

// Without says why the pod starts without credentials in the server's memory. It is no
// error: its requests reach the server and nobody else, who will answer them as soon as
// there is something to answer with.
type Without string

// ErrUnreached is in the chain of an error that says no more than that no server answered
// in time. Other errors are answers, of the wrong one, about another pod or of the wrong kind.
var ErrUnreached = errors.New("unreached")

// Run asks until there is an answer, the time is over or ctx ends. The error says what is
// likely to be wrong and that the pod must not start.
func (p Probe) Run(ctx context.Context) (Without, error) {
	begin := time.Now()
	end, late := begin.Add(p.Timeout), p.Late
	client := &http.Client{
		Transport: &http.Transport{
			DisableKeepAlives: true, // each try is a new connection
			DialContext:       (&net.Dialer{Timeout: dialTimeout}).DialContext,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       p.Wait + dialTimeout + answerReserve,
	}
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		without, err := p.try(ctx, client)
		if _, again := errors.AsType[*unreached](err); !again {
			return without, err
		}
		left := time.Until(end)
		switch {
		case ctx.Err() != nil: // also if there is enough by now
			return "", stopped(err)
		case left <= 0:
			return "", err
		}
		if late != nil && time.Since(begin) >= lateAfter {
			late(err)
			late = nil
		}
		enough := p.Enough
		if !errors.Is(err, ErrUnreached) {
			enough = nil
		}
		timer := time.NewTimer(min(pause/2+rand.N(pause), left))
		select {
		case <-timer.C:
		case <-enough:
			timer.Stop()
			return "", err
		case <-ctx.Done():
			timer.Stop()
			return "", stopped(err)
		}
	}
}

func stopped(err error) error { return fmt.Errorf("stopped before a server answered: %w", err) }

// unreached is that no server answered who knows this pod from others, which may pass.
type unreached struct {
	// causes are ErrUnreached and what it came of; none if a server speaks of another pod.
	causes []error
	text   string
}

// Error implements error.
func (u *unreached) Error() string { return u.text }

// Unwrap is the causes.
func (u *unreached) Unwrap() []error { return u.causes }

func (p Probe) try(ctx context.Context, client *http.Client) (Without, error) {
	target := url.URL{Scheme: "http", Host: p.Address.String(), Path: path, RawQuery: url.Values{"wait": {p.Wait.String()}}.Encode()}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), http.NoBody)
	if err != nil {
		return "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return "", p.explain(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxBody))
	if err != nil {
		return "", p.explain(err)
	}
	return p.judge(response, strings.TrimSpace(string(body)))
}

// judge reads an answer. The source is compared before the status: a server that sees
// another address than the pod's speaks of somebody else.
func (p Probe) judge(response *http.Response, body string) (Without, error) {
	source, err := netip.ParseAddr(response.Header.Get(sourceHeader))
	if response.Header.Get("Server") != serverName || err != nil {
		return "", fmt.Errorf("the answer from %s is not iam4kube's: status %d, server %q. Something else in this pod or on its way answers, such as a proxy of a service mesh that was set up later",
			p.Address, response.StatusCode, response.Header.Get("Server"))
	}
	if !slices.Contains(p.PodIPs, source.Unmap().WithZone("")) {
		return "", fmt.Errorf("the server saw the address %s, which is none of this pod's (%s), and cannot know the pod by it. Either the traffic is masqueraded on its way (kube-proxy with masqueradeAll or a wrong cluster CIDR, the network plugin, the server on the host's network), or it leaves by another interface than the pod's first one",
			source, join(p.PodIPs))
	}
	// A server that knows no pod there, or is older than this header, says nothing.
	if seen := response.Header.Get(podHeader); p.Pod != "" && seen != "" && seen != p.Pod {
		return "", &unreached{text: fmt.Sprintf("the server takes this pod's address %s for that of pod %q, and this is %s. Either it has not heard yet that the address changed hands (is the API server reachable from the server's nodes?), or another node claims the address for a pod of its own",
			source, seen, p.Pod)}
	}
	switch response.StatusCode {
	case http.StatusNoContent:
		return "", nil
	case http.StatusNotFound, http.StatusServiceUnavailable, http.StatusForbidden:
		// No role, a piece that is still missing, a denial: the text says which.
		return Without(cmp.Or(body, response.Status)), nil
	case http.StatusTooManyRequests:
		return "", &unreached{[]error{ErrUnreached}, "the server has too many waiting requests: " + body}
	}
	return "", fmt.Errorf("the server answered %s to %s: %s; is its version older than this one's?", response.Status, path, body)
}

// explain says what to look for when nobody answers.
func (p Probe) explain(err error) error {
	hint := "the connection broke: the server that was asked has ended, or a proxy or firewall on the way cut it"
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		hint = "refused: there is no ready server (kubectl -n iam4kube get pods,endpointslices), or a NetworkPolicy rejects the traffic"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EACCES):
		hint = "no route: the pod has no address in this family, or a firewall rejects the traffic"
	case errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, os.ErrDeadlineExceeded):
		hint = "nobody answers: a NetworkPolicy drops the traffic from this pod or to the server, or the network plugin does not translate the Service's address for it (Cilium's full socket load balancing: set socketLB.hostNamespaceOnly=true)"
	}
	return &unreached{[]error{ErrUnreached, err}, fmt.Sprintf("%s, which leads to %s: %s (%v)", p.Address, join(p.Behind), hint, err)}
}

func join[T fmt.Stringer](all []T) string {
	words := make([]string, 0, len(all))
	for _, a := range all {
		words = append(words, a.String())
	}
	return strings.Join(words, ", ")
}
