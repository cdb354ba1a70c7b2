package benchscale

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
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
	server, process := env.StartReleased(b, "--debug", "--log-level", "info", "--drain", "0s", "--sts-rate-limit", strconv.Itoa(syncRate), "--sts-rate-burst", "20")
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
	r.live = append(r.live, live(b, process.Pid, lists+", every pod served"))

	fmt.Fprintf(os.Stderr, "scale: %s: all watches expire\n", lists)
	resetPeak(b, process.Pid)
	p := pace(b, server, pods[:pacedPods], requests)
	<-time.After(quietFor)
	quiet := p.p99(b)
	// The API server's own start, which is no part of it, would take what is measured.
	if err := env.Yield(true); err != nil {
		b.Fatal(err)
	}
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
	if err := env.Yield(false); err != nil {
		b.Fatal(err)
	}
	r.add(b, process.Pid, "  API server restarted, all listed again", time.Since(gone), 0)
	serve(b, server, pods[len(pods)-100:])

	before := live(b, process.Pid, lists+", listed again")
	keep(b, server, pods[:idle])
	r.idle = append(r.idle, live(b, process.Pid, lists+", connections kept")-before)
	if err := server.Stop(); err != nil {
		b.Fatal(err)
	}
}

// live is what of the server's heap is reachable, with its stacks, in MiB. With -profiles there is
// a profile of it, too, and the kernel's word on the whole process.
func live(b *testing.B, pid int, when string) float64 {
	b.Helper()
	const url = "http://127.0.0.1:6060/debug/pprof/heap?gc=1"
	get(b, url) // stacks shrink by half with each collection
	text := get(b, url+"&debug=1")
	if *profiles != "" {
		rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			b.Fatal(err)
		}
		path := filepath.Join(*profiles, strings.NewReplacer(" ", "-", ",", "").Replace(when))
		err = errors.Join(os.WriteFile(path+".pprof", get(b, url), 0o600), os.WriteFile(path+".txt", append(rollup, text...), 0o600))
		if err != nil {
			b.Fatal(err)
		}
	}
	return float64(statistic(b, string(text), "HeapAlloc")+statistic(b, string(text), "Stack")) / (1 << 20)
}

// statistic is one of runtime.MemStats, as a profile has them at its end.
func statistic(b *testing.B, text, name string) int {
	b.Helper()
	_, rest, _ := strings.Cut(text, "\n# "+name+" = ")
	var n int
	if _, err := fmt.Sscan(rest, &n); err != nil {
		b.Fatalf("%s of the heap: %v", name, err)
	}
	return n
}

func get(b *testing.B, url string) []byte {
	b.Helper()
	request, err := http.NewRequestWithContext(b.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		b.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		b.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		b.Fatalf("%s: %s, %v", url, response.Status, err)
	}
	return body
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
