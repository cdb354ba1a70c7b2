package metadata

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// The line that tells who got which credentials is written when the client has them: the
// client does not wait for whoever reads the log. It is written all the same if nobody asks again.
func TestClientDoesNotWaitForTheLog(t *testing.T) {
	for _, path := range []string{"/latest/meta-data/iam/security-credentials/" + roleName, "/v1/credentials"} {
		t.Run(path, func(t *testing.T) {
			s := newServer(t, time.Minute)
			log := slowLog{read: make(chan struct{}), lines: make(chan string, 10)}
			s.cfg.Log = zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), log, zap.InfoLevel))
			pod := &net.TCPAddr{IP: netip.MustParseAddr(podAddress).AsSlice(), Port: 1}
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				r.RemoteAddr = pod.String()
				s.ServeHTTP(w, r)
			}))
			defer server.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			request, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+path, http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			var body []byte
			response, err := server.Client().Do(request)
			if err == nil {
				body, err = io.ReadAll(response.Body)
				_ = response.Body.Close()
			}
			close(log.read)
			if err != nil {
				t.Fatalf("while nobody reads the log: %v", err)
			}
			if !bytes.Contains(body, []byte(secretKey)) || response.Header.Get("Content-Length") != fmt.Sprint(len(body)) {
				t.Errorf("%d %v %s", response.StatusCode, response.Header, body)
			}
			if line := <-log.lines; !strings.Contains(line, "handed out credentials") {
				t.Errorf("the log has %s", line)
			}
		})
	}
}

// slowLog takes nothing until somebody reads.
type slowLog struct {
	read  chan struct{}
	lines chan string
}

func (l slowLog) Write(line []byte) (int, error) {
	<-l.read
	l.lines <- string(line)
	return len(line), nil
}

func (slowLog) Sync() error { return nil }
