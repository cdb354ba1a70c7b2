package kube

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// Resource is a kind of object to follow. O is what the API server sends, T the
// little that the program keeps of it.
type Resource[O runtime.Object, T any] struct {
	// Name is the resource's plural, as in URLs; it is a metric label.
	Name string
	// Selector limits what the API server sends.
	Selector func(*metav1.ListOptions)
	List     func(context.Context, metav1.ListOptions) (runtime.Object, error)
	Watch    func(context.Context, metav1.ListOptions) (watch.Interface, error)
	Keep     func(O) T
	Sink     Sink[T]
}

// Sink receives a resource's state, from one goroutine.
type Sink[T any] interface {
	// Replace says that these objects exist, and no others. It comes first, and
	// again whenever the watch had to start anew: what is missing in it was deleted
	// in a moment that nobody saw.
	Replace([]T)
	// Set says that the object was created or changed.
	Set(T)
	// Delete says that the object is gone, with its last state.
	Delete(T)
}

// Follow adds the resource to the watches and returns a function that tells the
// sink about it until its context ends.
//
// It is a client-go Reflector with a store of our own in place of an informer's
// queue, index and whole objects: an event reaches the sink in one call, and what
// Keep leaves out is garbage before the next event is decoded.
func Follow[O runtime.Object, T any](w *Watches, r Resource[O, T]) func(context.Context) error {
	s := &store[O, T]{resource: r, activity: w.add(r.Name)}
	pages := &pages{list: r.List}
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			if options.ResourceVersion == "0" {
				// From its cache the API server would send one page with everything.
				options.ResourceVersion = ""
			}
			r.Selector(&options)
			page, err := pages.next(ctx, options)
			if err != nil {
				return nil, err
			}
			return keepPage(page, r.Keep)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			if options.SendInitialEvents == nil && s.activity.outdated() {
				s.activity.open.Store(false)
				return nil, apierrors.NewResourceExpired("nothing was heard for too long")
			}
			r.Selector(&options)
			w, err := r.Watch(ctx, options)
			s.activity.open.Store(err == nil)
			return w, err
		},
	}
	var object O
	reflector := cache.NewReflectorWithOptions(lw, object, s, cache.ReflectorOptions{
		Name: r.Name,
		// client-go's cap of 30 s would be the time to recover from an outage. Two pauses,
		// each up to half longer by jitter, stay below 2 s: where the API server does not
		// know any more what was missed (410), it takes two attempts.
		Backoff: &wait.Backoff{Duration: 100 * time.Millisecond, Factor: 2, Jitter: 0.5, Cap: 600 * time.Millisecond, Steps: 10},
	})
	reflector.WatchListPageSize = pageSize
	return func(ctx context.Context) error {
		reflector.RunWithContext(ctx)
		return nil
	}
}

// kept is what was kept of an object, in the form that client-go asks of the items of a
// list.
type kept[T any] struct{ value T }

// GetObjectKind implements runtime.Object.
func (kept[T]) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// DeepCopyObject implements runtime.Object. What is kept does not change.
func (k kept[T]) DeepCopyObject() runtime.Object { return k }

// keepPage shrinks a page of a list: client-go holds all pages until the last one.
func keepPage[O runtime.Object, T any](page runtime.Object, keep func(O) T) (runtime.Object, error) {
	from, err := meta.ListAccessor(page)
	if err != nil {
		return nil, err
	}
	list := &metainternalversion.List{ListMeta: metav1.ListMeta{ResourceVersion: from.GetResourceVersion(), Continue: from.GetContinue()}}
	return list, meta.EachListItem(page, func(item runtime.Object) error {
		object, ok := item.(O)
		if !ok {
			return fmt.Errorf("%T in a %T", item, page)
		}
		list.Items = append(list.Items, kept[T]{keep(object)})
		return nil
	})
}

// store is what the Reflector writes to.
type store[O runtime.Object, T any] struct {
	resource Resource[O, T]
	activity *activity
}

// Transformer shrinks what the Reflector collects during a streaming list.
func (s *store[O, T]) Transformer() cache.TransformFunc {
	return func(object any) (any, error) { return s.keep(object) }
}

func (s *store[O, T]) keep(object any) (T, error) {
	switch o := object.(type) {
	case kept[T]:
		return o.value, nil
	case O:
		return s.resource.Keep(o), nil
	case T:
		return o, nil
	}
	var none T
	return none, fmt.Errorf("%T among the %s", object, s.resource.Name)
}

func (s *store[O, T]) each(object any, do func(T)) error {
	kept, err := s.keep(object)
	if err != nil {
		return err
	}
	do(kept)
	s.activity.heard(false)
	return nil
}

func (s *store[O, T]) Add(object any) error    { return s.each(object, s.resource.Sink.Set) }
func (s *store[O, T]) Update(object any) error { return s.each(object, s.resource.Sink.Set) }
func (s *store[O, T]) Delete(object any) error { return s.each(object, s.resource.Sink.Delete) }
func (s *store[O, T]) Resync() error           { return nil }

func (s *store[O, T]) Bookmark(string) error {
	s.activity.heard(false)
	return nil
}

func (s *store[O, T]) Replace(objects []any, _ string) error {
	all := make([]T, 0, len(objects))
	for _, object := range objects {
		kept, err := s.keep(object)
		if err != nil {
			return err
		}
		all = append(all, kept)
	}
	s.resource.Sink.Replace(all)
	s.activity.heard(true)
	return nil
}
