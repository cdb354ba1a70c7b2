package metadata

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// discard is a ResponseWriter that keeps only the status.
type discard struct {
	header http.Header
	status int
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
func (d *discard) WriteHeader(status int)      { d.status = status }

// warm returns a function that sends a warm request of the fixture's pod, as net/http does,
// but for what net/http itself allocates.
func warm(t testing.TB, s *Server, token string) func() int {
	t.Helper()
	header := http.Header{"User-Agent": {"test"}}
	if token != "" {
		header[headerToken] = []string{token}
	}
	r := httptest.NewRequest(http.MethodGet, list+roleName, http.NoBody)
	r.RemoteAddr, r.Host = podAddress+":40000", "169.254.169.254"
	uri, url := r.RequestURI, r.URL
	w := &discard{header: http.Header{}}
	return func() int {
		r.Header, r.RequestURI, r.URL = header, uri, url
		s.ServeHTTP(w, r)
		return w.status
	}
}

// A warm request allocates next to nothing beside what net/http does for it.
func TestWarmRequestAllocates(t *testing.T) {
	for name, tc := range map[string]struct {
		token bool
		most  float64
	}{"IMDSv1": {false, 1}, "IMDSv2": {true, 1}} {
		t.Run(name, func(t *testing.T) {
			s, token := newServer(t, time.Second), ""
			if tc.token {
				token = s.token(t)
			}
			ask := warm(t, s, token)
			if status := ask(); status != http.StatusOK {
				t.Fatal(status)
			}
			if got := testing.AllocsPerRun(1000, func() { ask() }); got > tc.most {
				t.Errorf("%v allocations, want %v at most", got, tc.most)
			}
		})
	}
}

func BenchmarkWarmRequest(b *testing.B) {
	s := newServer(b, time.Second)
	for name, token := range map[string]string{"IMDSv1": "", "IMDSv2": s.token(b)} {
		b.Run(name, func(b *testing.B) {
			ask := warm(b, s, token)
			b.ReportAllocs()
			for b.Loop() {
				ask()
			}
		})
	}
}
