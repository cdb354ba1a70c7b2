// Package page shows what a server knows and does as one page of HTML, made anew for each
// request, without scripts. It owns what the page looks like. What it shows it asks of others,
// none of whom tells secrets.
package page

import (
	"bytes"
	_ "embed"
	"html/template"
	"net/http"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/iam4kube/iam4kube/internal/server/credentials"
	"github.com/iam4kube/iam4kube/internal/server/identity"
)

// Source is what the page shows. Every field is required.
type Source struct {
	Roles      func() []credentials.RoleState
	Namespaces func() []identity.NamespaceState
	// Replicas are the addresses of the others.
	Replicas func() []netip.Addr
	// Ready is why the server is not ready, nil if it is.
	Ready   func() error
	Metrics prometheus.Gatherer
}

var (
	//go:embed page.html
	pageHTML string
	//go:embed page.css
	pageCSS []byte

	page = template.Must(template.New("page").Funcs(template.FuncMap{"until": until, "ago": ago, "clock": clock}).Parse(pageHTML))
)

// New returns a handler that answers / and /page.css, and 404 to the rest.
func New(source Source) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", source.serve)
	mux.HandleFunc("GET /page.css", func(w http.ResponseWriter, _ *http.Request) {
		protect(w.Header(), "text/css;charset=utf-8")
		_, _ = w.Write(pageCSS) // the client's connection, the client's loss
	})
	return mux
}

func (s Source) serve(w http.ResponseWriter, r *http.Request) {
	var text bytes.Buffer
	if err := page.Execute(&text, s.look(r.URL.Query(), time.Now())); err != nil {
		panic(err) // the template fits what it shows, and a Buffer takes everything
	}
	protect(w.Header(), "text/html;charset=utf-8")
	_, _ = w.Write(text.Bytes()) // the client's connection, the client's loss
}

// protect lets the page do nothing but be seen: names in it are chosen by others.
func protect(header http.Header, contentType string) {
	header.Set("Content-Type", contentType)
	header.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("Cache-Control", "no-store")
}

// until is the time from now to a moment, and ago the time since one, to the second or minute.
func until(now, at time.Time) string {
	switch left := at.Sub(now); {
	case left <= 0:
		return "now"
	case left < 2*time.Minute:
		return "in " + left.Round(time.Second).String()
	default:
		return "in " + minutes(left)
	}
}

func ago(now, at time.Time) string {
	switch since := now.Sub(at); {
	case at.Unix() <= 0:
		return "never"
	case since < 2*time.Minute:
		return max(0, since).Round(time.Second).String() + " ago"
	default:
		return minutes(since) + " ago"
	}
}

// minutes is a duration without seconds, such as 1h5m.
func minutes(d time.Duration) string {
	text := d.Round(time.Minute).String()
	return text[:len(text)-len("0s")]
}

func clock(t time.Time) string { return t.UTC().Format(time.RFC3339) }
