package observability

import (
	"bufio"
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

	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
)

// TestFloodOfFailures: the annotation of a ServiceAccount with many pods turns bad, and
// then all pods ask all the time. The API server gets events at the rate limit and nothing
// else; what does not fit is dropped and counted, and every request is answered.
func TestFloodOfFailures(t *testing.T) {
	const (
		asking, requestsEach = 200, 520
		pods                 = asking + 1200 // the others have no address, which is quicker made
		// of package podevents
		perSecond, burst, queue = 5, 50, 1000
	)
	ns := newNamespace(t, "flood")
	s, _ := env.StartReleased(t, "--drain", "0s")
	s.WaitReady(t)
	account := newWorkload(ns, "flood", env.NewRole()).createAccount(t)
	addresses := createPods(t, ns, account.Name, pods, asking)
	environment.Eventually(t, within, func() error {
		if n := s.Metric(t, "iam4kube_pods", "served", "yes"); n < pods {
			return fmt.Errorf("%v pods", n)
		}
		return nil
	})

	start := time.Now()
	annotate(t, account, role.AnnotationARN, "nonsense")
	environment.Eventually(t, within, func() error {
		if status, body := s.Get(t, addresses[0], rolesPath); status != http.StatusNotFound {
			return fmt.Errorf("%d %s", status, body)
		}
		return nil
	})
	var clients sync.WaitGroup
	for group := range slices.Chunk(addresses, asking/8) {
		clients.Go(func() {
			for _, from := range group {
				if err := pipeline(s.Address, from, requestsEach); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	clients.Wait()
	t.Logf("%d requests in %v", asking*requestsEach, time.Since(start).Round(time.Millisecond))
	if n := s.Metric(t, "iam4kube_http_requests_total", "endpoint", "role", "code", "404"); n < asking*requestsEach {
		t.Errorf("%v requests counted", n)
	}

	requests := audited(t, func(e auditEvent) bool {
		return e.ObjectRef.Namespace == ns && !e.RequestReceivedTimestamp.Before(start)
	})
	most := burst + perSecond*time.Since(start).Seconds() + 1
	for _, e := range requests {
		if e.Verb != "create" || e.ObjectRef.Resource != "events" {
			t.Errorf("a request that nobody needs: %+v", e)
		}
	}
	if n := len(requests); n < burst || float64(n) > most {
		t.Errorf("%d writes, want %d to %v", n, burst, most)
	}
	// What was neither written nor fits into the queue was dropped, and that once for each
	// pod: later requests of a pod are no news. The ServiceAccount has an event too.
	dropped := s.Metric(t, "iam4kube_events_total", "outcome", "dropped")
	if dropped < pods-queue-most || dropped > pods+1-queue {
		t.Errorf("%v dropped", dropped)
	}
	for _, line := range s.Logs.Lines("could not serve a request") {
		if line["reason"] != string(diagnosis.AnnotationInvalid) {
			t.Errorf("log line: %v", line)
		}
	}
	if n, seconds := len(s.Logs.Lines("could not serve a request")), int(time.Since(start).Seconds())+2; n == 0 || n > 10*seconds {
		t.Errorf("%d log lines for %d requests in %d s", n, asking*requestsEach, seconds)
	}
}

// createPods creates n pods of one ServiceAccount and returns the addresses of those that
// have one.
func createPods(t *testing.T, namespace, account string, n, withAddress int) []netip.Addr {
	t.Helper()
	addresses := make([]netip.Addr, withAddress)
	for i := range addresses {
		addresses[i] = env.Address()
	}
	err := env.CreatePods(t.Context(), func(yield func(controlplane.Pod) bool) {
		for i := range n {
			pod := controlplane.Pod{Namespace: namespace, Name: fmt.Sprint("pod-", i), ServiceAccount: account}
			if i < withAddress {
				pod.IPs = []string{addresses[i].String()}
			}
			if !yield(pod) {
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return addresses
}

// pipeline sends requests on one connection without waiting for the answers, each of which
// has to be the refusal of a bad annotation.
func pipeline(address string, from netip.Addr, requests int) error {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}}
	conn, err := dialer.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	request := "GET " + rolesPath + " HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n"
	if _, err := io.WriteString(conn, strings.Repeat(request, requests)); err != nil {
		return err
	}
	answers := bufio.NewReader(conn)
	for range requests {
		response, err := http.ReadResponse(answers, nil)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if err != nil || response.StatusCode != http.StatusNotFound || !strings.Contains(string(body), role.AnnotationARN) {
			return fmt.Errorf("%d %s: %w", response.StatusCode, body, err)
		}
	}
	return nil
}
