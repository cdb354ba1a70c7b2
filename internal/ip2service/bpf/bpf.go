//go:build linux

// Package bpf is the data path through eBPF: programs of the cgroup that all pods are
// below, which replace the address in connect() by that of an endpoint, so that no packet
// is ever sent to it, and drop what is sent there in other ways. It does not depend on
// netfilter seeing the packets of pods. It owns the programs, their links and their pins.
//
// Programs are a pure function of the routes, with the endpoints as constants, as the rules
// of package ruleset are. They are written with an assembler: no compiler is needed, and no
// object is kept in the repository.
//
// The links are pinned, so they outlive the process and the programs stay as they are.
package bpf

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
)

// Kernel is the eBPF of the node whose pods this process is one of.
type Kernel struct {
	dir string

	mu sync.Mutex
	// links are held, so that programs stay attached while somebody removes the pins.
	links map[string]link.Link
	maps  map[string]*ebpf.Map
	found *features
	at    place
	state Programs
}

// New is the data path whose pins are in a folder of a bpffs.
func New(dir string) *Kernel {
	return &Kernel{dir: dir, links: map[string]link.Link{}, maps: map[string]*ebpf.Map{}}
}

// Sync makes the programs those of the routes. Each is replaced in one step; a connection
// that is opened meanwhile meets the old or the new one.
func (k *Kernel) Sync(want routes.Routes) (changed bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	changed, err = k.sync(want)
	if err != nil && k.detached() {
		return k.sync(want)
	}
	return changed, err
}

// detached says that somebody has detached a program since it was attached, a moment ago or
// earlier. It needs mu.
func (k *Kernel) detached() bool {
	for _, l := range k.links {
		if i, err := infoOf(l); err == nil && i.cgroup == 0 {
			return true
		}
	}
	return false
}

func (k *Kernel) sync(want routes.Routes) (changed bool, err error) {
	k.state = Programs{}
	if err := k.prepare(); err != nil {
		return false, err
	}
	record, repaired, err := k.open()
	if err != nil {
		return false, err
	}
	if want.Unknown {
		want.New, want.Live = record.New, record.Live
	}
	want.Bypassed = want.Bypassed || forwards()
	next := state{Maps: record.Maps, Programs: map[string]attached{}, New: want.New, Live: want.Live}
	for _, spec := range programs(want, *k.found) {
		have := record.Programs[spec.Name]
		now, changes, err := k.attach(spec, have)
		if err != nil {
			return changed, explain(spec.Name, err)
		}
		changed = changed || changes
		next.Programs[spec.Name] = now
	}
	if changed || repaired || !next.equal(record) {
		if err := k.write(next); err != nil {
			return changed, explain("state", err)
		}
	}
	k.state, err = k.judge(next)
	return changed || repaired, err
}

// prepare finds out what does not change.
func (k *Kernel) prepare() error {
	if k.found == nil {
		f, err := probe()
		if err != nil {
			return err
		}
		k.found = &f
	}
	if k.at.pods == "" || k.at.gone() {
		at, err := findPods()
		if err != nil {
			return err
		}
		k.at = at
	}
	return checkFolder(k.dir)
}

// attached is a program in the kernel: its number, and what it was made from.
type attached struct {
	ID   ebpf.ProgramID
	From string
}

// attach brings a program to its place, unless it is there.
func (k *Kernel) attach(spec *ebpf.ProgramSpec, have attached) (now attached, changed bool, err error) {
	pin := filepath.Join(k.dir, spec.Name)
	from := fingerprint(spec.Instructions)
	id, err := inode(k.at.pods)
	if err != nil {
		return now, false, err
	}
	l := k.link(spec.Name, pin)
	alive := false
	if l != nil {
		info, err := infoOf(l)
		alive = err == nil && info.cgroup == id
		if alive && info.program == have.ID && have.From == from {
			return have, false, nil
		}
	}
	for i := range spec.Instructions {
		if name := spec.Instructions[i].Reference(); k.maps[name] != nil {
			if err := spec.Instructions[i].AssociateMap(k.maps[name]); err != nil {
				return now, false, err
			}
		}
	}
	program, err := ebpf.NewProgram(spec)
	if err != nil {
		return now, false, err
	}
	defer func() { _ = program.Close() }()
	info, err := program.Info()
	if err != nil {
		return now, false, err
	}
	number, _ := info.ID()
	now = attached{ID: number, From: from}
	if alive {
		return now, true, l.Update(program)
	}
	return now, true, k.create(spec, program, pin)
}

// link is that of a name, which this process holds or an earlier one has pinned, or nil.
func (k *Kernel) link(name, pin string) link.Link {
	if l := k.links[name]; l != nil {
		return l
	}
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return nil
	}
	k.links[name] = l
	return l
}

// create attaches a program for the first time, or anew where its link was detached.
func (k *Kernel) create(spec *ebpf.ProgramSpec, program *ebpf.Program, pin string) error {
	if err := k.exclusive(spec.AttachType); err != nil {
		return err
	}
	l, err := link.AttachCgroup(link.CgroupOptions{Path: k.at.pods, Attach: spec.AttachType, Program: program})
	if err != nil {
		return err
	}
	if err := os.Remove(pin); err != nil && !errors.Is(err, os.ErrNotExist) {
		return errors.Join(err, l.Close())
	}
	if err := l.Pin(pin); err != nil {
		return errors.Join(err, l.Close())
	}
	if old := k.links[spec.Name]; old != nil {
		_ = old.Close() // it is attached nowhere
	}
	k.links[spec.Name] = l
	return nil
}

// fingerprint is the same for instructions that do the same.
func fingerprint(ins asm.Instructions) string {
	sum := sha256.Sum256(fmt.Append(nil, ins))
	return hex.EncodeToString(sum[:8])
}

// Remove detaches all programs and removes the pins and their folder.
func (k *Kernel) Remove() (removed bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, l := range k.links {
		err = errors.Join(err, l.Close())
		delete(k.links, name)
	}
	for name, m := range k.maps {
		err = errors.Join(err, m.Close())
		delete(k.maps, name)
	}
	k.state = Programs{}
	pins, readErr := os.ReadDir(k.dir)
	if errors.Is(readErr, os.ErrNotExist) || errors.Is(readErr, os.ErrPermission) {
		return false, err // what nobody but root may look at, nobody but root has made
	}
	err = errors.Join(err, readErr)
	pins = slices.DeleteFunc(pins, func(pin os.DirEntry) bool { return !isOurs(pin.Name()) })
	if onBPF, statErr := isBPF(k.dir); !onBPF {
		return false, errors.Join(err, statErr) // whatever is there, it is no pin
	}
	// The egress program first: without the others it drops what they would have led.
	slices.SortFunc(pins, func(a, b os.DirEntry) int { return attachOrder(b.Name()) - attachOrder(a.Name()) })
	for _, pin := range pins {
		path := filepath.Join(k.dir, pin.Name())
		// A removed pin alone has the kernel detach the program some time later (findings/). It has
		// to do for who may not do more.
		if l, loadErr := link.LoadPinnedLink(path, nil); loadErr == nil {
			_ = l.Detach()
			_ = l.Close()
		}
		removeErr := os.Remove(path)
		removed = removed || removeErr == nil
		err = errors.Join(err, removeErr)
	}
	if err == nil {
		// Of a container it is a mount, which stays, as does a folder with pins of others.
		if removeErr := os.Remove(k.dir); removeErr != nil && !errors.Is(removeErr, unix.EBUSY) && !errors.Is(removeErr, unix.EROFS) && !errors.Is(removeErr, unix.ENOTEMPTY) {
			err = removeErr
		}
	}
	return removed, explain("remove", err)
}

// isOurs says whether a pin has a name of this data path's, of this version or of another one.
func isOurs(name string) bool {
	return strings.HasPrefix(name, programPrefix) || slices.Contains([]string{marksMap, countersMap, stateMap}, name)
}

func attachOrder(name string) int {
	return slices.IndexFunc(programs(routes.Routes{}, features{}), func(s *ebpf.ProgramSpec) bool { return s.Name == name })
}

// Counters are those of both families, since the pins were made.
func (k *Kernel) Counters() (map[routes.Family]routes.Counters, error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(k.dir, countersMap), &ebpf.LoadPinOptions{ReadOnly: true})
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, explain("counters", err)
	}
	defer func() { _ = m.Close() }()
	counters := map[routes.Family]routes.Counters{}
	for _, family := range routes.Families {
		var of routes.Counters
		for value, refused := range map[*uint64]bool{&of.Translated: false, &of.Rejected: true} {
			var perCPU []uint64
			if err := m.Lookup(uint32(counter(family, refused)), &perCPU); err != nil {
				return nil, explain("counters", err)
			}
			for _, n := range perCPU {
				*value += n
			}
		}
		counters[family] = of
	}
	return counters, nil
}
