package program

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

// part is one that ends with its context.
func part(name string, ended chan<- string) func(context.Context) error {
	return func(ctx context.Context) error {
		<-ctx.Done()
		ended <- name
		return nil
	}
}

// What front has under way at the end can count on the parts behind it.
func TestPartsOutliveTheFront(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		ended, underWay, done := make(chan string, 2), make(chan struct{}), make(chan error)
		front := func(ctx context.Context) error {
			<-ctx.Done()
			<-underWay
			ended <- "front"
			return nil
		}
		go func() { done <- RunParts(ctx, front, part("behind", ended)) }()
		synctest.Wait()
		cancel()
		synctest.Wait()
		if len(ended) > 0 {
			t.Errorf("%s has ended before what was under way", <-ended)
		}
		close(underWay)
		if err := <-done; err != nil {
			t.Error(err)
		}
		if first, second := <-ended, <-ended; first != "front" || second != "behind" {
			t.Errorf("%s ended before %s", first, second)
		}
	})
}

func TestFirstFailureEndsAll(t *testing.T) {
	failure := errors.New("failure")
	fail := func(context.Context) error { return failure }
	for name, run := range map[string]func(context.Context, chan<- string) error{
		"of the front": func(ctx context.Context, ended chan<- string) error {
			return RunParts(ctx, fail, part("a", ended), part("b", ended))
		},
		"of a part": func(ctx context.Context, ended chan<- string) error {
			return RunParts(ctx, part("a", ended), part("b", ended), fail)
		},
		"of a part, others": func(ctx context.Context, ended chan<- string) error {
			return RunParts(ctx, part("a", ended), fail, part("b", ended))
		},
	} {
		t.Run(name, func(t *testing.T) {
			ended := make(chan string, 2)
			if err := run(t.Context(), ended); !errors.Is(err, failure) {
				t.Errorf("got %v", err)
			}
			if len(ended) != 2 {
				t.Errorf("%d of 2 have ended", len(ended))
			}
		})
	}
}

// A part whose work is done ends nothing else.
func TestPartsMayBeDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		ended, result := make(chan string, 2), make(chan error)
		done := func(context.Context) error { return nil }
		go func() { result <- RunParts(ctx, part("front", ended), done, part("behind", ended)) }()
		synctest.Wait()
		if len(ended) > 0 {
			t.Errorf("%s has ended, too", <-ended)
		}
		cancel()
		if err := <-result; err != nil || len(ended) != 2 {
			t.Errorf("got %v, %d of 2 have ended", err, len(ended))
		}
	})
}
