package ip2service

import (
	"context"

	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
)

// dataPath is a part of the kernel that routes can be brought into, nftables.Kernel for
// example. Its errors say what to do, and errors.Is knows them by the reasons of package
// routes.
type dataPath interface {
	// Sync reads what is there and makes it what is wanted, so that at every moment a packet
	// meets either all that was before or all that is wanted. It says whether anything had
	// to be changed. On an error what is there is unknown.
	Sync(want routes.Routes) (changed bool, err error)
	// Watch calls changed after every change to what Sync made, those by Sync included,
	// until ctx ends or, with an error, it cannot know of changes any more. It calls it
	// once at the beginning, when no later change can be missed, and when it may have
	// missed one.
	Watch(ctx context.Context, changed func()) error
	// Counters are those of the families that something is there of. They begin anew when
	// it was removed and made again.
	Counters() (map[routes.Family]routes.Counters, error)
	// Remove takes away whatever Sync made, of this version and of earlier ones, and says
	// whether there was anything.
	Remove() (removed bool, err error)
}
