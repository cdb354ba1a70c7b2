//go:build linux

package bpf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// stateMap holds the state, and nothing that a program looks at.
const stateMap = "state"

// stateSize is room for some hundred endpoints.
const stateSize = 64 << 10

// state says what an earlier run has attached. Which program a link has, a process without
// SYS_ADMIN can know by its number alone.
type state struct {
	Programs map[string]attached // by name
	Maps     []ebpf.MapID        // that they use
	// New and Live are those of the routes.
	New, Live []netip.AddrPort
}

func (s state) equal(other state) bool {
	return maps.Equal(s.Programs, other.Programs) && slices.Equal(s.Maps, other.Maps) &&
		slices.Equal(s.New, other.New) && slices.Equal(s.Live, other.Live)
}

// specs are the maps.
func specs() []*ebpf.MapSpec {
	const noPreallocation = 1 // BPF_F_NO_PREALLOC, which socket storage needs
	number := func() btf.Type { return &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed} }
	return []*ebpf.MapSpec{
		{Name: marksMap, Type: ebpf.SkStorage, Flags: noPreallocation, KeySize: 4, ValueSize: 4, Key: number(), Value: number()},
		{Name: countersMap, Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 8, MaxEntries: 4},
		{Name: stateMap, Type: ebpf.Array, KeySize: 4, ValueSize: stateSize, MaxEntries: 1},
	}
}

// open gets the maps and reads the state. Pins that somebody removed are made again.
func (k *Kernel) open() (s state, repaired bool, err error) {
	for _, spec := range specs() {
		again, err := k.openMap(spec)
		if err != nil {
			return s, repaired, explain("map "+spec.Name, err)
		}
		repaired = repaired || again
	}
	for name, l := range k.links {
		again, err := pinAgain(l, filepath.Join(k.dir, name))
		if err != nil {
			return s, repaired, explain(name, err)
		}
		repaired = repaired || again
	}
	content, err := k.maps[stateMap].LookupBytes(uint32(0))
	if err != nil {
		return s, repaired, explain("state", err)
	}
	content, _, _ = bytes.Cut(content, []byte{0})
	var ids []ebpf.MapID
	for _, name := range []string{marksMap, countersMap} {
		info, err := k.maps[name].Info()
		if err != nil {
			return s, repaired, explain("map "+name, err)
		}
		id, _ := info.ID()
		ids = append(ids, id)
	}
	// What cannot be read is another version's: all is made anew.
	if json.Unmarshal(content, &s) != nil {
		s = state{}
	}
	if !slices.Equal(s.Maps, ids) {
		s.Maps, s.Programs = ids, nil
	}
	return s, repaired, nil
}

// openMap gets a map that this process has, or an earlier one had, or makes it.
func (k *Kernel) openMap(spec *ebpf.MapSpec) (repaired bool, err error) {
	pin := filepath.Join(k.dir, spec.Name)
	if m := k.maps[spec.Name]; m != nil {
		return pinAgain(m, pin)
	}
	m, err := ebpf.LoadPinnedMap(pin, nil)
	if err == nil && (m.Type() != spec.Type || m.ValueSize() != spec.ValueSize || m.MaxEntries() != spec.MaxEntries) {
		err = errors.Join(os.ErrNotExist, m.Close(), os.Remove(pin)) // of another version
	}
	if errors.Is(err, os.ErrNotExist) {
		if m, err = ebpf.NewMap(spec); err == nil {
			err = m.Pin(pin)
		}
	}
	if err != nil {
		return false, err
	}
	k.maps[spec.Name] = m
	return false, nil
}

func (k *Kernel) write(s state) error {
	content, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if len(content) >= stateSize {
		return fmt.Errorf("%d endpoints are more than this data path can have; --data-path nftables can", len(s.Live))
	}
	return k.maps[stateMap].Put(uint32(0), append(content, make([]byte, stateSize-len(content))...))
}

// checkFolder makes the folder for the pins.
func checkFolder(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%w: %w", refusalError(fmt.Sprintf("the folder %s of a BPF file system cannot be made: mount one (mount -t bpf bpf /sys/fs/bpf), or give the container the host's (hostPath /sys/fs/bpf/iam4kube, DirectoryOrCreate) and name it in --bpf-dir", dir)), err)
	}
	if is, err := isBPF(dir); err != nil {
		return err
	} else if !is {
		return refusalError(dir + " is not in a BPF file system, so programs could not outlive this process: mount one (mount -t bpf bpf /sys/fs/bpf), or name the folder of one in --bpf-dir")
	}
	return nil
}

// isBPF says whether a folder is in a BPF file system, bpf(2).
func isBPF(dir string) (bool, error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil {
		return false, fmt.Errorf("%s: %w", dir, err)
	}
	return uint32(stat.Type) == unix.BPF_FS_MAGIC, nil
}
