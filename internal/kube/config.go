// Package kube connects a program to the Kubernetes API: client configuration,
// and resources that are followed with list and watch into whatever store the
// program wants, with a judgement of whether those watches are alive. It does not
// know what the resources mean.
package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/connrotation"

	"github.com/iam4kube/iam4kube/internal/buildinfo"
)

const (
	// dialTimeout is short because a dial into a dead network is repeated: the
	// sooner one ends, the sooner the next one finds the network alive again.
	dialTimeout = 2 * time.Second
	// helloTimeout ends a connection whose other side accepts and then is silent.
	helloTimeout = 3 * time.Second
	// pingAfter and pingTimeout, in whole seconds, find a dead connection below an
	// open watch. client-go's own values, 30 and 15, would leave pods' events
	// unseen for that long after a network is back.
	pingAfter   = "5"
	pingTimeout = "5"
)

// Config returns the configuration for the API server that kubeconfig names; for
// an empty path it is the one that pods get. The API server is told the program's name
// and version. Every answer and every failure to get one is told to reach.
func Config(kubeconfig, name string, reach *Reach) (*rest.Config, error) {
	// client-go takes these two from the environment and from nowhere else.
	for name, value := range map[string]string{"HTTP2_READ_IDLE_TIMEOUT_SECONDS": pingAfter, "HTTP2_PING_TIMEOUT_SECONDS": pingTimeout} {
		if err := os.Setenv(name, cmp.Or(os.Getenv(name), value)); err != nil {
			return nil, err
		}
	}
	cfg, err := load(kubeconfig)
	if err != nil {
		return nil, err
	}
	cfg.UserAgent = buildinfo.UserAgent(name)
	cfg.ContentType = "application/vnd.kubernetes.protobuf"
	cfg.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	cfg.QPS, cfg.Burst = 50, 100
	cfg.Dial = dial
	cfg.Wrap(func(next http.RoundTripper) http.RoundTripper { return shortAnswers{reachTransport{next, reach}} })
	return cfg, nil
}

func load(kubeconfig string) (*rest.Config, error) {
	if kubeconfig != "" {
		cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
		if err != nil {
			return nil, fmt.Errorf("--kubeconfig %q: %w", kubeconfig, err)
		}
		return cfg, nil
	}
	cfg, err := rest.InClusterConfig()
	if err != nil {
		return nil, fmt.Errorf("not in a pod, so --kubeconfig is needed: %w", err)
	}
	return cfg, nil
}

func dial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return awaitHello(c)
}

// DialFunc is net.Dialer.DialContext, for example.
type DialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// Spread is for programs that run on every node: once connected, it puts each further dial
// off by a random part of d, so that not all nodes come at once when an API server is back,
// or when another one takes over.
func Spread(dial DialFunc, d time.Duration) DialFunc {
	var mu sync.Mutex
	var connected bool
	var next time.Time // of all dials that are put off: the first of several would come early
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		mu.Lock()
		now := time.Now()
		if connected && !next.After(now) {
			next = now.Add(rand.N(d))
		}
		timer := time.NewTimer(next.Sub(now)) // at once before the first connection
		mu.Unlock()
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		c, err := dial(ctx, network, address)
		mu.Lock()
		defer mu.Unlock()
		connected = connected || err == nil
		return c, err
	}
}

func awaitHello(c net.Conn) (net.Conn, error) {
	if err := c.SetReadDeadline(time.Now().Add(helloTimeout)); err != nil {
		_ = c.Close()
		return nil, err
	}
	return &helloConn{Conn: c}, nil
}

// helloConn lifts the deadline of dial with the first bytes of the other side;
// from then on HTTP/2 pings watch over the connection.
type helloConn struct {
	net.Conn
	hello sync.Once
}

// Read implements net.Conn.
func (c *helloConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.hello.Do(func() { err = cmp.Or(err, c.SetReadDeadline(time.Time{})) })
	}
	return n, err
}

// Reach knows since when the API server answers, whatever it answers.
type Reach struct {
	mu    sync.Mutex
	since time.Time
}

// For is how long the API server has been answering, or 0 if the last request had
// no answer.
func (r *Reach) For(now time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.since.IsZero() {
		return 0
	}
	return now.Sub(r.since)
}

func (r *Reach) record(answered bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case !answered:
		r.since = time.Time{}
	case r.since.IsZero():
		r.since = time.Now()
	}
}

type reachTransport struct {
	next  http.RoundTripper
	reach *Reach
}

// RoundTrip implements http.RoundTripper.
func (t reachTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := t.next.RoundTrip(r)
	// Whoever takes a request back says nothing about the API server; a time-out does.
	if err == nil || !errors.Is(r.Context().Err(), context.Canceled) {
		t.reach.record(err == nil)
	}
	return response, err
}

// HTTPClient returns the client that all API clients of a program share, so that
// they share one HTTP/2 connection too, and what closes its connections: its own
// CloseIdleConnections does not reach them through client-go's transports.
func HTTPClient(cfg *rest.Config) (client *http.Client, hangUp func(), err error) {
	dialer := connrotation.NewDialer(cfg.Dial)
	tracked := rest.CopyConfig(cfg)
	tracked.Dial = dialer.DialContext
	if client, err = rest.HTTPClientFor(tracked); err != nil {
		return nil, nil, fmt.Errorf("make a client for the API server: %w", err)
	}
	return client, dialer.CloseAll, nil
}
