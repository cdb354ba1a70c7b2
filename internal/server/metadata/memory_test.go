package metadata

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/internal/server/waiting"
)

// A waiting request takes no more memory than the number of places is made for, also if
// its client fills the 4 KiB of a header with what takes most.
func TestMemoryOfAWaitingRequest(t *testing.T) {
	const requests, header = 500, 4 << 10
	var lines strings.Builder
	for i := 0; lines.Len() < header-200; i++ {
		fmt.Fprintf(&lines, "%c%c:\r\n", 'a'+i/26%26, 'a'+i%26)
	}
	for name, c := range map[string]struct{ path, lines string }{
		"plain":             {path: list},
		"many header lines": {path: list, lines: lines.String()},
		"long name":         {path: list + strings.Repeat("%41", 64)},
		"long path":         {path: strings.Repeat("/", header-200) + list},
		"long query":        {path: pathReady + "?wait=1h&" + strings.Repeat("a&", (header-200)/2)},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEdge(t, time.Hour, waiting.NewHub(64, 4*requests))
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			server := &http.Server{Handler: e, ReadHeaderTimeout: time.Minute}
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				_ = server.Serve(listener) // it ends with Close
			}()
			connections := make([]net.Conn, 0, requests)
			defer func() {
				for _, connection := range connections {
					_ = connection.Close()
				}
			}()
			before := memory()
			for i := range requests {
				dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 200, byte(i>>8), byte(i))}}
				connection, err := dialer.DialContext(t.Context(), "tcp", listener.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				connections = append(connections, connection)
				if _, err := io.WriteString(connection, "GET "+c.path+" HTTP/1.1\r\nHost: 169.254.169.254\r\n"+c.lines+"\r\n"); err != nil {
					t.Fatal(err)
				}
			}
			deadline := time.Now().Add(time.Minute)
			for e.waitingNow(t) < requests {
				if time.Now().After(deadline) {
					t.Fatalf("%v requests wait", e.waitingNow(t))
				}
				runtime.Gosched()
			}
			each := (memory() - before) / requests
			t.Logf("%d bytes", each)
			if most := uint64(WaitBytes + raceBytes); each > most {
				t.Errorf("a waiting request takes %d bytes, want %d at most", each, most)
			}
			_ = server.Close()
			<-ended
		})
	}
}

// memory is that of heap and stacks, in bytes.
func memory() uint64 {
	runtime.GC()
	runtime.GC() // what has a finalizer
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}
