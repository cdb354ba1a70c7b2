package benchscale

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/test/environment"
)

// measureSync measures a server from its start to its first full lists, while it gets its
// roles' credentials, and while it lists everything again.
func measureSync(b *testing.B, r *results, lists string, from netip.Addr) {
	b.Helper()
	fmt.Fprintf(os.Stderr, "scale: %s: start\n", lists)
	start := time.Now()
	server, process := env.StartReleased(b, "--log-level", "info", "--sts-rate-limit", "1000", "--sts-rate-burst", "20")
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
	server.WaitReady(b)
	r.add(b, process.Pid, "  all roles fetched at 1000/s", time.Since(start), 0)
	checkServes(b, server, from)

	fmt.Fprintf(os.Stderr, "scale: %s: all watches expire\n", lists)
	resetPeak(b, process.Pid)
	gone := time.Now()
	if err := env.ExpireWatches(b.Context()); err != nil {
		b.Fatal(err)
	}
	listed := func() error {
		for _, resource := range []string{"pods", "serviceaccounts", "nodes", "secrets"} {
			heard := server.Metric(b, "iam4kube_watch_last_event_timestamp_seconds", "resource", resource)
			if heard < float64(gone.UnixNano())/1e9 {
				return fmt.Errorf("nothing of %s", resource)
			}
		}
		return nil
	}
	environment.Eventually(b, 2*time.Minute, listed)
	r.add(b, process.Pid, "  API server restarted, all listed again", time.Since(gone), 0)
	checkServes(b, server, from)
	if err := server.Stop(); err != nil {
		b.Fatal(err)
	}
}

func checkServes(b *testing.B, server *environment.Server, from netip.Addr) {
	b.Helper()
	const path = "/latest/meta-data/iam/security-credentials/"
	status, name := server.Get(b, from, path)
	if status != http.StatusOK {
		b.Fatalf("%s: %d %s", from, status, name)
	}
	if status, body := server.Get(b, from, path+name); status != http.StatusOK {
		b.Fatalf("%s: %d %s", from, status, body)
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
