package benchscale

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/test/environment"
)

const (
	// syncRate is how fast roles are fetched, a second: no credentials are waited for.
	syncRate = 2000
	// idle connections are measured together.
	idle = 8000
	// requests go a second, of pacedPods, while everything is listed again.
	requests, pacedPods = 500, 20
	quietFor            = 10 * time.Second
)

// measureSync measures a server from its start to its first full lists, while it gets its
// roles' credentials, serves every pod, and lists everything again under requests.
func measureSync(b *testing.B, r *results, lists string, pods []pod) {
	b.Helper()
	fmt.Fprintf(os.Stderr, "scale: %s: start\n", lists)
	start := time.Now()
	server, process := env.StartReleased(b, "--log-level", "info", "--drain", "0s", "--sts-rate-limit", strconv.Itoa(syncRate), "--sts-rate-burst", "20")
	answered := make(chan error, 1)
	go func() {
		err := errors.New("never asked")
		for err != nil && time.Since(start) < time.Minute {
			err = pods[len(pods)-1].ask(b.Context(), server.Address)
		}
		answered <- err
	}()
	synced := time.Duration(0)
	environment.Eventually(b, 2*time.Minute, func() error {
		_, body := server.Readyz(b)
		if strings.Contains(body, "first list") {
			return errors.New(body)
		}
		synced = time.Since(start)
		return nil
	})
	r.add(b, process.Pid, lists+": start to synced", synced, mostSync)
	if err := <-answered; err != nil {
		b.Fatal(err)
	}
	r.add(b, process.Pid, "  first answer", time.Since(start), mostFirst)
	server.WaitReady(b)
	r.add(b, process.Pid, fmt.Sprintf("  all roles fetched at %d/s", syncRate), time.Since(start), 0)
	serve(b, server, pods)
	r.add(b, process.Pid, "  every pod served once", time.Since(start), 0)

	fmt.Fprintf(os.Stderr, "scale: %s: all watches expire\n", lists)
	resetPeak(b, process.Pid)
	p := pace(b, server, pods[:pacedPods], requests)
	<-time.After(quietFor)
	quiet := p.p99(b)
	p = pace(b, server, pods[:pacedPods], requests)
	gone := time.Now()
	if err := env.ExpireWatches(b.Context()); err != nil {
		b.Fatal(err)
	}
	environment.Eventually(b, 2*time.Minute, func() error {
		for _, resource := range []string{"pods", "serviceaccounts", "nodes", "secrets"} {
			heard := server.Metric(b, "iam4kube_watch_last_event_timestamp_seconds", "resource", resource)
			if heard < float64(gone.UnixNano())/1e9 {
				return fmt.Errorf("nothing of %s", resource)
			}
		}
		return nil
	})
	r.relists = append(r.relists, relist{lists, quiet, p.p99(b)})
	r.add(b, process.Pid, "  API server restarted, all listed again", time.Since(gone), 0)
	serve(b, server, pods[len(pods)-100:])

	before := memory(b, process.Pid, "VmRSS")
	keep(b, server, pods[:idle])
	r.idle = append(r.idle, (memory(b, process.Pid, "VmRSS")-before)*1024/idle)
	if err := server.Stop(); err != nil {
		b.Fatal(err)
	}
}

// resetPeak lets VmHWM begin anew, proc_pid_clear_refs(5).
func resetPeak(b *testing.B, pid int) {
	b.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
		b.Fatal(err)
	}
}

// memory is resident memory in MiB: a field of proc_pid_status(5).
func memory(b *testing.B, pid int, field string) float64 {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), field+":")
	kilobytes, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		b.Fatal(err)
	}
	return float64(kilobytes) / 1024
}
