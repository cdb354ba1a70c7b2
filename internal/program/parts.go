package program

import (
	"context"

	"golang.org/x/sync/errgroup"
)

// RunParts runs front until ctx ends, and the parts behind it until front has returned, so
// that what front has under way then finds all that it needs. The first failure ends the
// contexts of all. It returns when everyone has, with that failure.
func RunParts(ctx context.Context, front func(context.Context) error, behind ...func(context.Context) error) error {
	working, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, working := errgroup.WithContext(working)
	for _, run := range behind {
		group.Go(func() error { return run(working) })
	}
	group.Go(func() error {
		defer stop()
		fronting, cancel := context.WithCancel(working)
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		return front(fronting)
	})
	return group.Wait()
}
