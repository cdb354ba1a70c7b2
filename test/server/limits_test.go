package server

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/test/environment"
)

// hold opens connections from each of the addresses at once, sends the bytes on each and
// keeps what was not refused until the test lets go.
func hold(address string, from []netip.Addr, each int, raw string) (held int, letGo func()) {
	var mu sync.Mutex
	var all []net.Conn
	var opening sync.WaitGroup
	for _, source := range from {
		opening.Go(func() {
			dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: source.AsSlice()}, Timeout: rawTimeout}
			for range each {
				connection, err := dialer.Dial("tcp", address)
				if err != nil {
					continue // refused
				}
				if _, err := io.WriteString(connection, raw); err != nil {
					_ = connection.Close()
					continue
				}
				mu.Lock()
				all = append(all, connection)
				mu.Unlock()
			}
		})
	}
	opening.Wait()
	return len(all), func() {
		for _, connection := range all {
			_ = connection.Close()
		}
	}
}

// Pods that open all the connections they can, and do with them what takes most of a server,
// end nothing and hold up nobody: what all of them take together leaves, of the memory limit
// of the manifests, 200 MiB for the pods and roles of a large cluster, see `make bench-scale`.
func TestHostileConnections(t *testing.T) {
	const limit, cluster = 768, 200                                  // MiB
	t.Setenv("GOMEMLIMIT", fmt.Sprintf("%dMiB", limit*9/10-cluster)) // as the container's limit would be
	s, w := startWarmWith(t, "hostile-connections", env.StartReleased)
	process := s.process
	before := peakMB(t, process)
	from := make([]netip.Addr, 64)
	for i := range from {
		from[i] = env.Address()
	}
	shortest := "GET / HTTP/1.1\r\n"
	for i := range 98 {
		shortest += fmt.Sprintf("%d:\r\n", i)
	}
	for _, attack := range []struct{ name, raw string }{
		{"idle", request(http.MethodGet, "/x")},
		{"half a header", shortest + "X: " + strings.Repeat("x", 4000-len(shortest))},
		{"many lines and waiting", shortest + "\r\n" + strings.ReplaceAll(shortest, "GET / ", "GET "+rolesPath+" ") + "\r\n"},
		{"waiting, and bytes that nobody reads", request(http.MethodGet, rolesPath) + strings.Repeat("x", 20<<10)},
		{"nothing", ""},
	} {
		held, letGo := hold(s.Address, from, 300, attack.raw)
		took := latencies(t, s.Server, w)
		t.Logf("%s: %d connections were opened, %v connections are; others wait for %v by the median, %v at most; peak %d MB, %d before",
			attack.name, held, s.Metric(t, "iam4kube_connections", "listener", "listen-on"), took[len(took)/2], took[len(took)-1], peakMB(t, process), before)
		if slowest := took[len(took)-1]; slowest > 2*time.Second {
			t.Errorf("%s: another pod waits for %v", attack.name, slowest)
		}
		letGo()
	}
	if took := peakMB(t, process) - before; took > limit*9/10-cluster {
		t.Errorf("the connections took %d MB", took)
	}
	if refused := s.Metric(t, "iam4kube_connections_refused_total", "listener", "listen-on", "reason", "total"); refused == 0 {
		t.Error("no connection was refused")
	}
}

// The other port is the kubelet's, too: it gets its answers whatever pods do there.
func TestHostileConnectionsToAux(t *testing.T) {
	s, _ := startWarmWith(t, "hostile-aux", env.StartReleased)
	before := peakMB(t, s.process)
	from := make([]netip.Addr, 20)
	for i := range from {
		from[i] = env.Address()
	}
	for _, raw := range []string{
		"GET /metrics HTTP/1.1\r\nX: " + strings.Repeat("x", 1<<20), "GET /metrics HTTP/1.1\r\n" + strings.Repeat("a:\r\n", 1000),
		strings.Repeat("GET /metrics HTTP/1.1\r\n\r\n", 100), "",
	} {
		held, letGo := hold(s.Aux, from, 40, raw) // of one source 32 may be open, of all 256
		start := time.Now()
		for range 20 {
			if status, body := s.Readyz(t); status != http.StatusOK {
				t.Errorf("%d %s", status, body)
			}
		}
		t.Logf("%.20q: %d connections were opened; 20 probes take %v; peak %d MB, %d before", raw, held, time.Since(start), peakMB(t, s.process), before)
		letGo()
	}
	if took := peakMB(t, s.process) - before; took > 60 {
		t.Errorf("the connections took %d MB", took)
	}
}

type process struct {
	*environment.Server
	process *os.Process
}

// startWarmWith is startWarm with a process of its own.
func startWarmWith(t *testing.T, name string, start func(testing.TB, ...string) (*environment.Server, *os.Process)) (process, workload) {
	t.Helper()
	w := newWorkload(newNamespace(t, name), "app").create(t)
	s, p := start(t)
	s.WaitReady(t)
	if status, body := s.Get(t, w.from, w.path()); status != http.StatusOK {
		t.Fatalf("%d %s", status, body)
	}
	return process{s, p}, w
}

// latencies are the sorted times of requests for credentials, each on a connection of its own.
func latencies(t *testing.T, s *environment.Server, w workload) []time.Duration {
	t.Helper()
	var times []time.Duration
	for range 101 {
		start := time.Now()
		if a := send(t, s, w.from, http.MethodGet, w.path()); a.StatusCode != http.StatusOK {
			t.Fatalf("%d %s", a.StatusCode, a.body)
		}
		times = append(times, time.Since(start))
	}
	slices.Sort(times)
	return times
}

// peakMB is the most that a process had of memory.
func peakMB(t *testing.T, process *os.Process) int {
	t.Helper()
	return statusMB(t, process, "VmHWM:")
}
