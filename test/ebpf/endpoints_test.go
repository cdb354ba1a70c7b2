package ebpf

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/netns"
	"github.com/iam4kube/iam4kube/test/node"
)

// A server's node is dead and nobody knows yet: a connection ends soon, so that the client can
// try again. An application's own time-out stays.
func TestDeadEndpointCostsAConnectionSeconds(t *testing.T) {
	r := newRig(t)
	dead := netns.AddPod(t, "10.244.1.9")
	if output, err := dead.Run(t.Context(), "nft", "add table inet dead; add chain inet dead input { type filter hook input priority 0; policy drop; }"); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	r.sync(t, routesTo(ends("10.244.1.9:8080")...))
	for name, c := range map[string]struct {
		own                int
		atLeast, atMost    time.Duration
		timeoutOfTheSocket int
	}{
		"without a time-out of its own": {0, time.Second, 4 * time.Second, 3000},
		"with one":                      {1000, 500 * time.Millisecond, 2 * time.Second, 1000},
	} {
		t.Run(name, func(t *testing.T) {
			err := r.pod.Do(func() error {
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					return err
				}
				defer unix.Close(fd)
				if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, c.own); err != nil {
					return err
				}
				start := time.Now()
				err = unix.Connect(fd, sockaddr(metadata[0]))
				if took := time.Since(start); !errors.Is(err, unix.ETIMEDOUT) || took < c.atLeast || took > environment.AtMost(c.atMost) {
					t.Errorf("%v after %v", err, took)
				}
				if have, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT); err != nil || have != c.timeoutOfTheSocket {
					t.Errorf("the socket's time-out is %d, %v", have, err)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

// What was led to an endpoint that is gone ends; what a program has opened to it by its own
// address is none of our business.
func TestConnectionsToARemovedEndpointEnd(t *testing.T) {
	r := newRig(t)
	for family, to := range map[routes.Family]netip.AddrPort{routes.IPv4: metadata[0], routes.IPv6: metadata[1]} {
		t.Run(string(family), func(t *testing.T) {
			all := routesTo(r.endpoints...)
			all.New = ends("10.244.1.2:8080", "[fd00:10:244:1::2]:8080")
			r.sync(t, all)
			open := map[string]*node.Connection{}
			for name, address := range map[string]string{"led": to.String(), "own": all.Of(family).New[0].String()} {
				c, err := node.Connect(t, r.pod, address)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
				open[name] = c
				if answer, err := c.Ask(); err != nil || answer.Name != "a" {
					t.Fatalf("%s: %+v, %v", name, answer, err)
				}
			}
			draining := all
			draining.New = ends("10.244.1.3:8080", "[fd00:10:244:1::3]:8080")
			r.sync(t, draining)
			if answer, err := open["led"].Ask(); err != nil || answer.Name != "a" {
				t.Errorf("while it drains: %+v, %v", answer, err)
			}
			gone := draining
			gone.Live = draining.New
			r.sync(t, gone)
			if err := open["led"].SetDeadline(time.Now().Add(environment.AtMost(10 * time.Second))); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			answer, err := open["led"].Ask()
			took := time.Since(start)
			if !errors.Is(err, unix.ETIMEDOUT) || took > environment.AtMost(time.Second) {
				t.Errorf("%+v, %v after %v", answer, err, took)
			}
			t.Logf("ended after %v", took)
			if answer, err := open["own"].Ask(); err != nil || answer.Name != "a" {
				t.Errorf("a connection that was not led: %+v, %v", answer, err)
			}
		})
	}
}

// A pod on the host's network is let be, at the metadata service, and led at the addresses of
// container credentials if that is wanted.
func TestHostNetwork(t *testing.T) {
	r := newRig(t)
	netns.Require(t)
	// Somebody else's, who refuses.
	if output, err := r.far.Run(t.Context(), "ip", "address", "add", "169.254.170.2/32", "dev", "lo"); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	credentials := netip.MustParseAddrPort("169.254.170.2:80")
	want := routesTo(r.endpoints...)
	want.Intercept = slices.Concat(metadata[:2], []netip.AddrPort{credentials})
	for _, host := range []bool{false, true} {
		if host {
			want.Host = []netip.Addr{credentials.Addr()}
		}
		r.sync(t, want)
		if err := connectTo(credentials, r.endpoints); (err == nil) != host {
			t.Errorf("led: %v: %v", host, err)
		}
		for _, address := range metadata {
			c, err := net.Dial("tcp", address.String())
			if err != nil {
				t.Errorf("%s: %v", address, err)
				continue
			}
			c.Close()
		}
	}
	if r.far.TakeLeaks(t) == 0 { // the host's own
		t.Error("the host did not get to its metadata service")
	}
}

// A server that were led to itself, or to its neighbour, would get credentials of the role
// that it hands out. It has its error at once, by either family and as IPv4-mapped.
func TestEndpointsAreNotLed(t *testing.T) {
	r := newRig(t)
	r.sync(t, routesTo(r.endpoints...))
	for _, from := range []*node.Endpoint{r.a, r.b} {
		for name, connect := range map[string]func(fd4, fd6 int) error{
			"IPv4": func(fd4, _ int) error { return unix.Connect(fd4, sockaddr(metadata[0])) },
			"IPv6": func(_, fd6 int) error { return unix.Connect(fd6, sockaddr(metadata[1])) },
			"IPv4-mapped": func(_, fd6 int) error {
				return unix.Connect(fd6, &unix.SockaddrInet6{Addr: metadata[0].Addr().As16(), Port: 80})
			},
		} {
			err := from.Do(func() error {
				return withSocket(unix.AF_INET, unix.SOCK_STREAM, 0, func(fd4 int) error {
					return withSocket(unix.AF_INET6, unix.SOCK_STREAM, 0, func(fd6 int) error {
						start := time.Now()
						err := connect(fd4, fd6)
						if took := time.Since(start); !errors.Is(err, unix.ETIMEDOUT) || took > environment.AtMost(500*time.Millisecond) {
							t.Errorf("%s, %s: %v after %v", from.Name, name, err, took)
						}
						return nil
					})
				})
			})
			if err != nil {
				t.Error(err)
			}
		}
		if from.Connections.Load() != 0 {
			t.Errorf("%s has had a connection", from.Name)
		}
	}
}
