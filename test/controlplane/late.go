package controlplane

import (
	"context"
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path"
	"sync"
	"time"

	"k8s.io/client-go/rest"
)

// LateWatches is a proxy in front of an API server that delivers later what watches say.
// Lists and everything else pass at once: whoever watches sees a past cluster, and nothing
// tells it so.
type LateWatches struct {
	server *httptest.Server

	mu      sync.Mutex
	late    map[string]time.Duration // by resource
	changed chan struct{}            // closed and made anew when late changes
}

// Held is late enough for nothing to arrive before a test ends.
const Held = 24 * time.Hour

// NewLateWatches starts a proxy in front of the API server of config. No watch is late yet.
func NewLateWatches(config *rest.Config) (*LateWatches, error) {
	target, err := url.Parse(config.Host)
	if err != nil {
		return nil, err
	}
	// Whoever asks proves himself: his token passes.
	transport, err := rest.TransportFor(rest.AnonymousClientConfig(config))
	if err != nil {
		return nil, err
	}
	l := &LateWatches{late: map[string]time.Duration{}, changed: make(chan struct{})}
	l.server = httptest.NewUnstartedServer(&httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport:     transport,
		FlushInterval: -1,
		ErrorLog:      log.New(io.Discard, "", 0), // of clients that went away
		ModifyResponse: func(r *http.Response) error {
			if r.Request.URL.Query().Has("watch") {
				r.Body = l.delay(r.Request.Context(), path.Base(r.Request.URL.Path), r.Body)
			}
			return nil
		},
	})
	l.server.EnableHTTP2 = true
	l.server.StartTLS()
	return l, nil
}

// Config is a copy of config that goes through the proxy.
func (l *LateWatches) Config(config *rest.Config) *rest.Config {
	through := rest.CopyConfig(config)
	through.Host = l.server.URL
	through.TLSClientConfig = rest.TLSClientConfig{
		CAData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: l.server.Certificate().Raw}),
	}
	return through
}

// Late sets how late watches of the resource are ("pods"), those under way and what they have
// not delivered yet included. The order stays.
func (l *LateWatches) Late(resource string, by time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.late[resource] = by
	close(l.changed)
	l.changed = make(chan struct{})
}

// Close ends the proxy and its connections.
func (l *LateWatches) Close() {
	l.server.CloseClientConnections()
	l.server.Close()
}

// lateBody is the body of a watch, in the pieces in which it arrives.
type lateBody struct {
	late     *LateWatches
	resource string
	ctx      context.Context // of the request
	cancel   context.CancelFunc
	upstream io.Closer
	pump     sync.WaitGroup
	pieces   chan piece
	rest     []byte // of the piece that is due
}

// piece is some bytes, or what ended them.
type piece struct {
	bytes []byte
	err   error
	at    time.Time
}

// mostPieces is more than any test lets wait.
const mostPieces = 1 << 16

func (l *LateWatches) delay(ctx context.Context, resource string, upstream io.ReadCloser) io.ReadCloser {
	b := &lateBody{late: l, resource: resource, upstream: upstream, pieces: make(chan piece, mostPieces)}
	b.ctx, b.cancel = context.WithCancel(ctx)
	b.pump.Go(func() {
		for {
			buffer := make([]byte, 16<<10)
			n, err := upstream.Read(buffer)
			for _, p := range []piece{{bytes: buffer[:n], at: time.Now()}, {at: time.Now(), err: err}} {
				if len(p.bytes) == 0 && p.err == nil {
					continue
				}
				select {
				case b.pieces <- p:
				case <-b.ctx.Done():
					return
				}
			}
			if err != nil {
				return
			}
		}
	})
	return b
}

// Read implements io.Reader. It returns a piece, or a part of one, when that is due.
func (b *lateBody) Read(into []byte) (int, error) {
	if len(b.rest) == 0 {
		select {
		case p := <-b.pieces:
			if err := b.wait(p.at); err != nil {
				return 0, err
			}
			if p.err != nil {
				return 0, p.err
			}
			b.rest = p.bytes
		case <-b.ctx.Done():
			return 0, b.ctx.Err()
		}
	}
	n := copy(into, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

// wait waits until what arrived then is due.
func (b *lateBody) wait(arrived time.Time) error {
	for {
		b.late.mu.Lock()
		left, changed := time.Until(arrived.Add(b.late.late[b.resource])), b.late.changed
		b.late.mu.Unlock()
		if left <= 0 {
			return nil
		}
		timer := time.NewTimer(left)
		select {
		case <-timer.C:
		case <-changed:
		case <-b.ctx.Done():
		}
		timer.Stop()
		if err := b.ctx.Err(); err != nil {
			return err
		}
	}
}

// Close implements io.Closer.
func (b *lateBody) Close() error {
	b.cancel()
	err := b.upstream.Close()
	b.pump.Wait()
	return err
}
