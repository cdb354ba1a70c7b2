package benchscale

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/test/environment"
)

// pod is one of the cluster's, and the role that it gets.
type pod struct {
	from netip.Addr
	role string
}

// connection is one of a pod's, that is kept.
type connection struct {
	net.Conn
	answers *bufio.Reader
	request string
}

func (p pod) dial(ctx context.Context, server string) (*connection, error) {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: p.from.AsSlice()}}
	conn, err := dialer.DialContext(ctx, "tcp", server)
	if err != nil {
		return nil, err
	}
	request := "GET /latest/meta-data/iam/security-credentials/" + p.role + " HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n"
	return &connection{conn, bufio.NewReaderSize(conn, 2<<10), request}, nil
}

// ask fails if the answer is not credentials.
func (c *connection) ask() error {
	if _, err := io.WriteString(c, c.request); err != nil {
		return err
	}
	response, err := http.ReadResponse(c.answers, nil)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK || !strings.Contains(string(body), `"Code": "Success"`) {
		return fmt.Errorf("%d %s", response.StatusCode, body)
	}
	return nil
}

func (p pod) ask(ctx context.Context, server string) error {
	c, err := p.dial(ctx, server)
	if err != nil {
		return err
	}
	return errors.Join(c.ask(), c.Close())
}

// serve lets every pod ask once, a few at a time.
func serve(b *testing.B, server *environment.Server, pods []pod) {
	b.Helper()
	var clients sync.WaitGroup
	for some := range slices.Chunk(pods, (len(pods)+7)/8) {
		clients.Go(func() {
			for _, p := range some {
				if err := p.ask(b.Context(), server.Address); err != nil {
					b.Errorf("%s: %v", p.from, err)
					return
				}
			}
		})
	}
	clients.Wait()
}

// keep opens connections that stay until the server ends, each from a pod of its own.
func keep(b *testing.B, server *environment.Server, pods []pod) {
	b.Helper()
	for _, p := range pods {
		c, err := p.dial(b.Context(), server.Address)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = c.Close() })
		if err := c.ask(); err != nil {
			b.Fatal(err)
		}
	}
}

// paced are pods that ask at fixed moments until they are stopped.
type paced struct {
	stop  context.CancelFunc
	all   sync.WaitGroup
	mu    sync.Mutex
	times []time.Duration
	err   error
}

// pace starts them, perSecond in all.
func pace(b *testing.B, server *environment.Server, pods []pod, perSecond int) *paced {
	b.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	p := &paced{stop: cancel}
	every := time.Second * time.Duration(len(pods)) / time.Duration(perSecond)
	for i, one := range pods {
		c, err := one.dial(ctx, server.Address)
		if err != nil {
			b.Fatal(err)
		}
		p.all.Go(func() {
			defer c.Close()
			times, err := c.pace(ctx, time.Now().Add(every*time.Duration(i)/time.Duration(len(pods))), every)
			p.mu.Lock()
			defer p.mu.Unlock()
			p.times, p.err = append(p.times, times...), errors.Join(p.err, err)
		})
	}
	return p
}

// pace counts a request that its predecessor delays from its own moment, and not how late a
// timer fires, which is not the server's affair.
func (c *connection) pace(ctx context.Context, next time.Time, every time.Duration) (times []time.Duration, err error) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ; ; next = next.Add(every) {
		sent := next
		if wait := time.Until(next); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				return times, nil
			}
			sent = time.Now()
		} else if ctx.Err() != nil {
			return times, nil
		}
		if err := c.ask(); err != nil {
			return times, err
		}
		times = append(times, time.Since(sent))
	}
}

// p99 ends them.
func (p *paced) p99(b *testing.B) time.Duration {
	b.Helper()
	p.stop()
	p.all.Wait()
	if p.err != nil {
		b.Fatal(p.err)
	}
	slices.Sort(p.times)
	return p.times[(len(p.times)*99+99)/100-1]
}
