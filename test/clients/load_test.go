package clients

import (
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/netns"
)

// load is pods that ask for their credentials all the time, while something happens to
// the servers.
type load struct {
	t      *testing.T
	end    func() // and wait for the last tries
	asking sync.WaitGroup
	ending chan struct{}

	mu    sync.Mutex
	tries []try
}

// try is one request, or one run of a real client.
type try struct {
	by         string
	start, end time.Time
	err        error
}

// Besides the real clients: requests on a connection of their own each, and on one that is
// kept. The former often give to one replica a token of another.
const (
	newConnections = "new connections"
	keepAlive      = "keep-alive"
)

// pace is the time between the beginnings of two rounds of 4 requests.
const pace = 160 * time.Millisecond

// startLoad lets every pod send 50 requests a second, and the first two run one real
// client after the other.
func startLoad(t *testing.T, pods []pod) *load {
	t.Helper()
	netns.Require(t)
	l := &load{t: t, ending: make(chan struct{})}
	l.end = sync.OnceFunc(func() {
		close(l.ending)
		l.asking.Wait()
	})
	t.Cleanup(l.end)
	for i, p := range pods {
		for _, by := range []string{newConnections, keepAlive} {
			l.asking.Go(func() { l.ask(p, by) })
		}
		if i < 2 {
			l.asking.Go(func() { l.runClients(p) })
		}
	}
	return l
}

func (l *load) ask(p pod, by string) {
	client := p.HTTPClient()
	client.Timeout = 10 * time.Second
	client.Transport.(*http.Transport).DisableKeepAlives = by == newConnections
	defer client.CloseIdleConnections()
	ticker := time.NewTicker(pace)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			l.round(p, by, client)
		case <-l.ending:
			return
		}
	}
}

// round asks what an SDK asks that has just started.
func (l *load) round(p pod, by string, client *http.Client) {
	ttl, withToken := http.Header{"X-Aws-Ec2-Metadata-Token-Ttl-Seconds": {"60"}}, http.Header{}
	var token, region, name, document string
	for _, step := range []struct {
		method, url string
		header      http.Header
		answer      *string
	}{
		{http.MethodPut, latest + "/api/token", ttl, &token},
		{http.MethodGet, latest + "/meta-data/placement/region", withToken, &region},
		{http.MethodGet, roles, withToken, &name},
		{http.MethodGet, roles, withToken, &document},
	} {
		withToken.Set("X-Aws-Ec2-Metadata-Token", token)
		start := time.Now()
		body, err := l.request(client, step.method, step.url+name, step.header)
		l.note(by, start, err)
		if err != nil {
			return
		}
		*step.answer = body
	}
	wantOwn(l.t, p, decode(l.t, document, region))
}

// request fails the test by any answer but 200: only who gets none may be unlucky.
func (l *load) request(client *http.Client, method, url string, header http.Header) (body string, err error) {
	r, err := http.NewRequestWithContext(l.t.Context(), method, url, http.NoBody)
	if err != nil {
		return "", err
	}
	r.Header = header
	response, err := client.Do(r)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s: %s", method, url, response.Status, content)
		l.t.Error(err)
	}
	return string(content), err
}

func (l *load) runClients(p pod) {
	for i := 0; ; i++ {
		select {
		case <-l.ending:
			return
		default:
		}
		c := sdkClients[i%len(sdkClients)]
		start := time.Now()
		f, err := c.try(l.t, p, nil)
		l.note(c.Name, start, err)
		if err == nil {
			wantOwn(l.t, p, f)
		}
	}
}

func (l *load) note(by string, start time.Time, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tries = append(l.tries, try{by, start, time.Now(), err})
}

// kinds are all values of try.by.
func kinds() []string {
	all := []string{newConnections, keepAlive}
	for _, c := range sdkClients {
		all = append(all, c.Name)
	}
	return all
}

// waitEach returns when there have been so many tries of each of these kinds that began
// after a time.
func (l *load) waitEach(tries int, after time.Time, kinds ...string) {
	l.t.Helper()
	environment.Eventually(l.t, time.Minute, func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		seen := map[string]int{}
		for _, y := range l.tries {
			if y.start.After(after) {
				seen[y.by]++
			}
		}
		for _, by := range kinds {
			if seen[by] < tries {
				return fmt.Errorf("%d tries of %s, want %d", seen[by], by, tries)
			}
		}
		return nil
	})
}

// failures ends the load, logs what came of the tries that touch a period, and returns
// the failures among those and among all others.
func (l *load) failures(from, to time.Time) (within, outside []error) {
	l.t.Helper()
	l.end()
	for _, by := range kinds() {
		var tries, failed int
		var slowest time.Duration
		for _, y := range l.tries {
			if y.by != by {
				continue
			}
			touches := y.start.Before(to) && y.end.After(from)
			if touches {
				tries++
				slowest = max(slowest, y.end.Sub(y.start))
			}
			switch {
			case y.err == nil:
			case touches:
				failed++
				within = append(within, fmt.Errorf("%s: %w", by, y.err))
			default:
				outside = append(outside, fmt.Errorf("%s, begun %v after the period: %w", by, y.start.Sub(to), y.err))
			}
		}
		l.t.Logf("%s: %d of %d failed, the slowest took %v", by, failed, tries, slowest)
	}
	return within, outside
}
