package kube

import (
	"context"
	"errors"
	"io"
	"net/http"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

const (
	// pageSize limits what an API server without streaming lists sends at once. The longer a page,
	// the longer other requests wait while it is read, with the garbage that this makes: 5 MB are
	// 10 ms. The shorter, the longer all of them take, because each is asked for anew.
	pageSize = 250
	// maxAnswer is the most bytes of an answer that is no watch. Objects can have 1.5 MB
	// each, whoever writes them, and an answer is in memory three times while it is read: of
	// 500 of them, not even one would fit.
	maxAnswer = 16 << 20
)

var errTooLong = errors.New("the API server's answer is longer than 16 MiB")

// pages lists a resource in pages that are short enough.
type pages struct {
	list func(context.Context, metav1.ListOptions) (runtime.Object, error)
	// size is how many objects the next page may have.
	size int64
}

// next returns the page that options ask for, or the beginning of it. Of one that is too
// long, half is asked for; the pages that follow grow again.
func (p *pages) next(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
	if options.Limit == 0 { // client-go wants everything at once, after a page has expired
		return p.list(ctx, options)
	}
	if options.Continue == "" {
		p.size = options.Limit
	}
	for {
		options.Limit = min(p.size, options.Limit)
		page, err := p.list(ctx, options)
		if !errors.Is(err, errTooLong) || options.Limit == 1 {
			p.size = options.Limit * 2
			return page, err
		}
		p.size = options.Limit / 2
	}
}

// shortAnswers ends answers that are longer than maxAnswer with errTooLong.
type shortAnswers struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (t shortAnswers) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := t.next.RoundTrip(r)
	if err == nil && r.URL.Query().Get("watch") == "" {
		response.Body = &shortBody{response.Body, maxAnswer}
	}
	return response, err
}

type shortBody struct {
	io.ReadCloser
	left int
}

// Read implements io.Reader.
func (b *shortBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= n; b.left < 0 {
		return 0, errTooLong
	}
	return n, err
}
