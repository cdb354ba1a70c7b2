package webhook

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/internal/webhook"
)

// Whoever reaches the port can send reviews, and cannot end the webhook with them within
// the memory limit of the manifests, or keep the API server's from an answer.
func TestFloodOfReviews(t *testing.T) {
	const limit = 256 // MiB
	t.Setenv("GOMEMLIMIT", fmt.Sprintf("%dMiB", limit*9/10))
	h := startProgram(t, nil)
	h.waitReady(t)
	client := h.client(t)
	large := without(t, secret, strings.Repeat("x", 2<<20))
	head := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: a\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", webhook.Path, jsonType, len(large))
	// More connections than there may be; of the large ones as many as would be twice the memory.
	for name, flood := range map[string]struct {
		connections int
		said        string
	}{
		"half a header": {1200, "POST " + webhook.Path + " HTTP/1.1\r\nX: " + strings.Repeat("x", 3<<10)},
		"half a body":   {limit, head + large[:len(large)-1]},
		"large pods":    {limit, head + large},
		"nothing":       {1200, ""},
	} {
		letGo := h.flood(t, flood.connections, flood.said)
		slowest := time.Duration(0)
		for range 50 {
			start := time.Now()
			request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, h.url, strings.NewReader(review))
			if err != nil {
				t.Fatal(err)
			}
			request.Header.Set("Content-Type", jsonType)
			if err := injected(request, client); err != nil {
				t.Errorf("%s: another's review: %v", name, err)
			}
			slowest = max(slowest, time.Since(start))
		}
		t.Logf("%s: another's review takes %v at most, peak %d MB", name, slowest, h.peakMB(t))
		letGo()
	}
	if peak := h.peakMB(t); peak > limit*9/10 {
		t.Errorf("the webhook has taken %d MB", peak)
	}
}

// flood opens up to so many connections from many addresses and says that on each.
func (h *hook) flood(t *testing.T, connections int, said string) (letGo func()) {
	t.Helper()
	var mu sync.Mutex
	var all []net.Conn
	var opening sync.WaitGroup
	cfg := h.client(t).Transport.(*http.Transport).TLSClientConfig
	const sources = 20
	for source := range sources {
		opening.Go(func() {
			dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 9, byte(source+1))}, Timeout: within}
			for range connections / sources {
				c, err := tls.DialWithDialer(dialer, "tcp", h.host(), cfg)
				if err != nil {
					continue // refused
				}
				mu.Lock()
				all = append(all, c)
				mu.Unlock()
				_ = c.SetWriteDeadline(time.Now().Add(within))
				_, _ = io.WriteString(c, said) // refused before its end
			}
		})
	}
	opening.Wait()
	return func() {
		for _, c := range all {
			_ = c.Close()
		}
	}
}

// peakMB is the most that the process had of memory: proc_pid_status(5).
func (h *hook) peakMB(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(status), "VmHWM:")
	var kB int
	if _, err := fmt.Sscan(after, &kB); err != nil {
		t.Fatal(err)
	}
	return kB / 1024
}

// Bodies are bounded before they are read.
func TestBodiesAreBounded(t *testing.T) {
	h := start(t)
	h.waitReady(t)
	client := h.client(t)
	for _, tc := range []struct {
		body   io.Reader
		length int64
		status int
	}{
		{strings.NewReader(""), 4 << 20, http.StatusRequestEntityTooLarge},
		{strings.NewReader(review), -1, http.StatusLengthRequired},
		{strings.NewReader(review), int64(len(review)), http.StatusOK},
	} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, h.url, io.NopCloser(tc.body))
		if err != nil {
			t.Fatal(err)
		}
		request.ContentLength = tc.length
		request.Header.Set("Content-Type", jsonType)
		request.Header.Set("Expect", "100-continue")
		if status, text, _, err := ask(request, client); err != nil || status != tc.status {
			t.Errorf("length %d: %d %s, %v", tc.length, status, text, err)
		}
	}
}
