package webhook

import (
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"testing"
	"time"
)

// TestReviewsUnderWayAtSIGTERMAreAnswered: the header was read and half of the body, by as
// many connections as reviews.
func TestReviewsUnderWayAtSIGTERMAreAnswered(t *testing.T) {
	h := startProgram(t, []string{"-race"})
	h.waitReady(t)
	var reviews sync.WaitGroup
	var rest []*io.PipeWriter
	client := h.client(t)
	for range 20 {
		body, writer := io.Pipe()
		started := make(chan struct{})
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got100Continue: func() { close(started) }})
		request, err := http.NewRequestWithContext(ctx, http.MethodPost, h.url, body)
		if err != nil {
			t.Fatal(err)
		}
		request.ContentLength = int64(len(review))
		request.Header.Set("Content-Type", jsonType)
		// The hook says that it goes on when its handler reads the body.
		request.Header.Set("Expect", "100-continue")
		reviews.Go(func() {
			if err := injected(request, client); err != nil {
				t.Error(err)
			}
		})
		select {
		case <-started:
		case <-time.After(within):
			t.Fatal("the review was not accepted")
		}
		if _, err := io.WriteString(writer, review[:len(review)/2]); err != nil {
			t.Fatal(err)
		}
		rest = append(rest, writer)
	}
	ended := make(chan error, 1)
	go func() { ended <- h.stop() }()
	eventually(t, func() error { // until the signal has arrived
		if c, err := net.Dial("tcp", h.host()); err == nil {
			_ = c.Close()
			return errNotYet
		}
		return nil
	})
	for _, writer := range rest {
		if _, err := io.WriteString(writer, review[len(review)/2:]); err != nil {
			t.Error(err)
		}
		_ = writer.Close()
	}
	reviews.Wait()
	if err := <-ended; err != nil {
		t.Errorf("the webhook ended with: %v", err)
	}
}
