package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/pager"
)

// A list in pages is followed to its last page, and of no object more is held than is
// kept of it.
func TestKeepsPagesWhole(t *testing.T) {
	keep := func(m *corev1.ConfigMap) string { return m.Name }
	page := func(_ context.Context, options metav1.ListOptions) (runtime.Object, error) {
		n, _ := strconv.Atoi(options.Continue) // the first page has no token
		list := &corev1.ConfigMapList{ListMeta: metav1.ListMeta{ResourceVersion: "7"}}
		for i := range 2 {
			list.Items = append(list.Items, corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: strconv.Itoa(2*n + i)}})
		}
		if n < 2 {
			list.Continue = strconv.Itoa(n + 1)
		}
		return keepPage(list, keep)
	}
	list, _, err := pager.New(page).ListWithAlloc(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	of, err := meta.ListAccessor(list)
	if err != nil || of.GetResourceVersion() != "7" {
		t.Errorf("resourceVersion of %v, %v", of, err)
	}
	items, err := meta.ExtractListWithAlloc(list)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, item := range items {
		k, ok := item.(kept[string])
		if !ok {
			t.Fatalf("holds a %T", item)
		}
		names = append(names, k.value)
	}
	if !slices.Equal(names, []string{"0", "1", "2", "3", "4", "5"}) {
		t.Errorf("kept %q", names)
	}
}

// An object of another kind is an error, not a panic in the middle of a list.
func TestRefusesAPageOfSomethingElse(t *testing.T) {
	list := &corev1.SecretList{Items: []corev1.Secret{{}}}
	if _, err := keepPage(list, func(*corev1.ConfigMap) string { return "" }); err == nil {
		t.Error("took a Secret for a ConfigMap")
	}
}

// A page that is too long is asked for again with half as many objects, whoever made them
// large and wherever in the list, and no object is missing or told twice.
func TestTooLongPagesAreHalved(t *testing.T) {
	const objects, large, fits = 2000, 1000, 30
	var asked []int64
	keep := func(m *corev1.ConfigMap) string { return m.Name }
	p := &pages{list: func(_ context.Context, options metav1.ListOptions) (runtime.Object, error) {
		asked = append(asked, options.Limit)
		from, _ := strconv.Atoi(options.Continue)
		to := min(from+int(options.Limit), objects)
		if to > large && to-max(from, large) > fits { // the second half is large
			return nil, fmt.Errorf("wrapped by client-go: %w", errTooLong)
		}
		list := &corev1.ConfigMapList{}
		for i := from; i < to; i++ {
			list.Items = append(list.Items, corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: strconv.Itoa(i)}})
		}
		if to < objects {
			list.Continue = strconv.Itoa(to)
		}
		return list, nil
	}}
	for range 2 { // the next list begins with large pages
		asked = nil
		pager := pager.New(func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			page, err := p.next(ctx, options)
			if err != nil {
				return nil, err
			}
			return keepPage(page, keep)
		})
		pager.PageSize = pageSize
		list, _, err := pager.ListWithAlloc(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		items, err := meta.ExtractListWithAlloc(list)
		if err != nil || len(items) != objects {
			t.Fatalf("%d objects, %v", len(items), err)
		}
		for i, item := range items {
			if k, ok := item.(kept[string]); !ok || k.value != strconv.Itoa(i) {
				t.Fatalf("%d is %v", i, item)
			}
		}
		if asked[0] != pageSize || len(asked) > 3*objects/fits {
			t.Errorf("asked for %v", asked)
		}
	}
}

// One object that is too long by itself is an error, and not a loop.
func TestTooLongObjectIsAnError(t *testing.T) {
	p := &pages{list: func(context.Context, metav1.ListOptions) (runtime.Object, error) { return nil, errTooLong }}
	for _, limit := range []int64{0, 1, pageSize} {
		if _, err := p.next(t.Context(), metav1.ListOptions{Limit: limit}); !errors.Is(err, errTooLong) {
			t.Errorf("limit %d: %v", limit, err)
		}
	}
}

// body is an answer of so many bytes.
type body struct{ left, read int }

func (b *body) Read(p []byte) (int, error) {
	n := min(len(p), b.left)
	b.left -= n
	if b.read += n; b.left == 0 {
		return n, io.EOF
	}
	return n, nil
}

func (b *body) Close() error { return nil }

// RoundTrip answers with b.
func (b *body) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Body: b}, nil
}

// An answer is read up to its longest length and not further, unless it is a watch.
func TestAnswersAreShort(t *testing.T) {
	for _, tc := range []struct {
		query string
		bytes int
		want  error
	}{
		{"", maxAnswer, nil},
		{"limit=500", maxAnswer + 1, errTooLong},
		{"limit=500", 1 << 30, errTooLong},
		{"watch=true", maxAnswer + 1, nil},
	} {
		b := &body{left: tc.bytes}
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://127.0.0.1/api/v1/pods?"+tc.query, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		response, err := shortAnswers{b}.RoundTrip(request)
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, response.Body)
		if !errors.Is(err, tc.want) || err == nil && n != int64(tc.bytes) || b.read > maxAnswer+1<<20 {
			t.Errorf("%q, %d bytes: %v after %d, %d were read", tc.query, tc.bytes, err, n, b.read)
		}
		if err := response.Body.Close(); err != nil {
			t.Error(err)
		}
	}
}
