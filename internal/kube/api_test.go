package kube

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/klog/v2"
)

func TestMain(m *testing.M) {
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	// client-go's own handlers log too, and limit themselves by a global clock that does
	// not survive the step from one bubble's time to the next one's.
	utilruntime.ErrorHandlers = nil //nolint:reassign // the only way
	os.Exit(m.Run())
}

// network is how an api can be reached.
type network int

const (
	reachable network = iota
	// refusing: connections are reset, new ones refused.
	refusing
	// blackHole: nothing moves, whether on a connection there was or on a new one.
	blackHole
)

// api is so much of an API server as minutes of fake time need: the real one runs by
// the real clock. It speaks TLS and HTTP/2 to the real client, over pipes, and serves
// ConfigMaps with list and watch; their names are all that matters. It sends bookmarks
// as often as the real one, a minute after the last (k8s.io/apiserver v0.37.2,
// pkg/storage/cacher/cacher.go, defaultBookmarkFrequency).
type api struct {
	t      *testing.T
	accept chan net.Conn
	closed chan struct{}
	ca     []byte

	mu          sync.Mutex
	changed     chan struct{} // closed and replaced with every change below
	network     network
	links       map[*link]struct{}
	certificate tls.Certificate
	token       string // the only one accepted, empty: any
	silent      bool   // watches get nothing, not even bookmarks
	overloaded  bool   // watches end, and every request is answered 429
	noStream    bool   // lists are not streamed, as by API servers before 1.32
	history     []event
	compacted   int // history up to here answers 410
	requests    map[string]int
}

const bookmarkEvery = time.Minute

type event struct {
	kind   watch.EventType
	object *corev1.ConfigMap
}

// newAPI starts one with no objects. Call it in a bubble.
func newAPI(t *testing.T) *api {
	t.Helper()
	a := &api{
		t: t, accept: make(chan net.Conn), closed: make(chan struct{}), changed: make(chan struct{}),
		links: map[*link]struct{}{}, requests: map[string]int{},
	}
	a.newCertificate()
	server := &http.Server{
		Handler: a,
		TLSConfig: &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			a.mu.Lock()
			defer a.mu.Unlock()
			return &a.certificate, nil
		}},
		ErrorLog: log.New(io.Discard, "", 0), // broken connections are what it is about
	}
	ended := make(chan error)
	go func() { ended <- server.ServeTLS(a, "", "") }()
	t.Cleanup(func() {
		a.set(func() { a.network = refusing })
		_ = server.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return a
}

// set changes the fields under the mutex.
func (a *api) set(change func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change()
	if a.network == refusing {
		for l := range a.links {
			l.reset()
		}
	}
	close(a.changed)
	a.changed = make(chan struct{})
}

// resetAll resets every connection.
func (a *api) resetAll() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for l := range a.links {
		l.reset()
	}
}

// connections is how many the client holds.
func (a *api) connections() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := 0
	for l := range a.links {
		select {
		case <-l.done:
		default:
			n++
		}
	}
	return n
}

func (a *api) asked(path string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.requests[path]
}

// create adds an object.
func (a *api) create(name string) { a.add(watch.Added, name) }

// remove deletes an object.
func (a *api) remove(name string) { a.add(watch.Deleted, name) }

func (a *api) add(kind watch.EventType, name string) {
	a.set(func() {
		a.history = append(a.history, event{kind, a.object(name, len(a.history)+1)})
	})
}

func (a *api) object(name string, version int) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, ResourceVersion: strconv.Itoa(version)},
	}
}

// present are the objects that were not deleted. It needs mu.
func (a *api) present() []corev1.ConfigMap {
	var present []corev1.ConfigMap
	last := map[string]watch.EventType{}
	for _, e := range a.history {
		last[e.object.Name] = e.kind
	}
	for _, e := range a.history {
		if e.kind != watch.Deleted && last[e.object.Name] != watch.Deleted {
			present = append(present, *e.object)
		}
	}
	return present
}

// ServeHTTP implements http.Handler.
func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	a.requests[r.URL.Path]++
	token, noStream, overloaded := a.token, a.noStream, a.overloaded
	a.mu.Unlock()
	query := r.URL.Query()
	switch {
	case overloaded:
		fail(w, http.StatusTooManyRequests, metav1.StatusReasonTooManyRequests)
	case token != "" && r.Header.Get("Authorization") != "Bearer "+token:
		fail(w, http.StatusUnauthorized, metav1.StatusReasonUnauthorized)
	case r.URL.Path == "/version":
		_, _ = w.Write([]byte("{}"))
	case query.Get("watch") == "":
		a.list(w)
	case noStream && query.Get("sendInitialEvents") != "":
		fail(w, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid)
	default:
		a.watch(w, r)
	}
}

func fail(w http.ResponseWriter, code int, reason metav1.StatusReason) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(status(code, reason))
}

func status(code int, reason metav1.StatusReason) *metav1.Status {
	return &metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status:   metav1.StatusFailure, Code: int32(code), Reason: reason,
	}
}

func (a *api) list(w http.ResponseWriter) {
	a.mu.Lock()
	list := corev1.ConfigMapList{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMapList"},
		ListMeta: metav1.ListMeta{ResourceVersion: strconv.Itoa(len(a.history))},
		Items:    a.present(),
	}
	a.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(list)
}

// watch answers until the client goes, its time-out is over or it is not authorized any
// more.
func (a *api) watch(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	seconds, _ := strconv.Atoi(query.Get("timeoutSeconds"))
	end := time.NewTimer(time.Duration(seconds) * time.Second)
	defer end.Stop()
	bookmark := time.NewTicker(bookmarkEvery)
	defer bookmark.Stop()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	send := func(kind watch.EventType, object runtime.Object) {
		raw, _ := json.Marshal(object)
		_ = json.NewEncoder(w).Encode(metav1.WatchEvent{Type: string(kind), Object: runtime.RawExtension{Raw: raw}})
		_ = http.NewResponseController(w).Flush()
	}
	_ = http.NewResponseController(w).Flush()

	seen, _ := strconv.Atoi(query.Get("resourceVersion"))
	initial := query.Get("sendInitialEvents") == "true"
	for {
		a.mu.Lock()
		changed, silent, token, overloaded := a.changed, a.silent, a.token, a.overloaded
		present, history, compacted := a.present(), a.history, a.compacted
		a.mu.Unlock()
		switch {
		case overloaded, token != "" && r.Header.Get("Authorization") != "Bearer "+token:
			return
		case silent:
		case initial:
			for i := range present {
				present[i].TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"}
				send(watch.Added, &present[i])
			}
			mark := a.object("", len(history))
			mark.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
			send(watch.Bookmark, mark)
			initial, seen = false, len(history)
		case seen < compacted:
			send(watch.Error, status(http.StatusGone, metav1.StatusReasonExpired))
			return
		default:
			for ; seen < len(history); seen++ {
				send(history[seen].kind, history[seen].object)
			}
		}
		select {
		case <-changed:
		case <-bookmark.C:
			if !silent {
				send(watch.Bookmark, a.object("", len(history)))
			}
		case <-end.C:
			return
		case <-r.Context().Done():
			return
		}
	}
}
