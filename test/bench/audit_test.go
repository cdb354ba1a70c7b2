package bench

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iam4kube/iam4kube/test/environment"
)

// BenchmarkAudit sends the same warm requests in turns to a server that writes an audit log
// and to two that do not, of which the second is the control: two processes of the same program
// differ by some hundredths, as they lie in memory. So the servers are started anew several times.
func BenchmarkAudit(b *testing.B) {
	const least, times, roundsEach = 0.97, 5, 3
	first, _ := startServer(b)
	audited, control := &scenario{name: "with --audit-log"}, &scenario{name: "without, another process"}
	for n := range times {
		fmt.Fprintf(os.Stderr, "audit: servers %d of %d\n", n+1, times)
		path := filepath.Join(b.TempDir(), "audit.log")
		off, stopOff := startLike(b, first)
		on, stopOn := startLike(b, first, "--audit-log", path)
		again, stopAgain := startLike(b, first)
		off.other = true // what the others are compared with
		for round := range roundsEach {
			order := []*peer{on, off, again}
			for _, p := range append(order[round%3:], order[:round%3]...) {
				if p != again {
					audited.saturate(b, p)
				}
				if p != on {
					control.saturate(b, p)
				}
			}
		}
		for _, stop := range []func() error{stopOff, stopOn, stopAgain} {
			if err := stop(); err != nil {
				b.Fatal(err)
			}
		}
		if text, err := os.ReadFile(path); err != nil || strings.Count(string(text), "\n") != podCount {
			b.Errorf("%v: %d records for %d pods", err, strings.Count(string(text), "\n"), podCount)
		}
	}
	fmt.Printf("\nwarm credentials requests of %d pods, beside a server without --audit-log, medians of %d servers with %d rounds each\n", podCount, times, roundsEach)
	for _, s := range []*scenario{audited, control} {
		f := figure{name: s.name, values: s.perSecond}
		if s == audited {
			f.least = least
		}
		cpu := figure{values: s.processor}
		fmt.Printf("  %s: %s requests/s, beside %s, ratio %.3f %s; server CPU per request %.3f\n",
			f.name, short(median(f.values[0])), short(median(f.values[1])), f.ratio(), f.contract(), cpu.ratio())
	}
	b.ReportMetric(0, "ns/op") // the time of all rounds says nothing
}

// startLike starts another server for the same pods.
func startLike(b *testing.B, p *peer, flags ...string) (another *peer, stop func() error) {
	b.Helper()
	server, process := env.StartReleased(b, append([]string{"--log-level", "info", "--drain", "0s", "--sts-rate-limit", "1000", "--sts-rate-burst", "100"}, flags...)...)
	server.WaitReady(b)
	return warmed(b, server, &peer{address: server.Address, pid: process.Pid}, p), server.Stop
}

// warmed gives a peer the clients of another, with what its own server has of STS for them.
func warmed(b *testing.B, server *environment.Server, p, like *peer) *peer {
	b.Helper()
	for _, client := range like.pods {
		status, body := server.Get(b, client.from, strings.Fields(string(client.request))[1])
		if status != http.StatusOK {
			b.Fatalf("%s: %d %s", client.from, status, body)
		}
		p.pods = append(p.pods, &pod{from: client.from, want: []byte(body), request: client.request})
	}
	return p
}
