//go:build linux

package bpf

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf/link"
)

// look is how often the links are looked at: the kernel tells nobody that one was detached,
// or that its cgroup has gone.
const look = 250 * time.Millisecond

// Watch calls changed when a pin or what it is attached to has changed since it last looked,
// until ctx ends.
func (k *Kernel) Watch(ctx context.Context, changed func()) error {
	last := k.pinned()
	changed()
	ticker := time.NewTicker(look)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
		if now := k.pinned(); now != last {
			last = now
			changed()
		}
	}
}

// pinned is what there is in the folder of the pins, as a text to compare.
func (k *Kernel) pinned() (text string) {
	pins, err := os.ReadDir(k.dir)
	if err != nil {
		return err.Error()
	}
	for _, pin := range pins {
		text += pin.Name()
		if l, err := link.LoadPinnedLink(filepath.Join(k.dir, pin.Name()), nil); err == nil {
			i, err := infoOf(l)
			text += fmt.Sprint(i, err)
			_ = l.Close()
		}
		text += "\n"
	}
	return text
}
