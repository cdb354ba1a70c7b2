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
	"encoding/binary"
	"encoding/hex"
	"errors"
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
	different, err := k.compare(programs(want, *k.found), record, next)
	if err != nil {
		return false, err
	}
	defer func() {
		for _, r := range different {
			_ = r.program.Close()
		}
	}()
	k.load(different)
	var failed error
	for _, r := range different { // as many as can be, in their order: each closes a way
		if failed != nil && r.spec.AttachType == ebpf.AttachCGroupInetEgress && !want.Bypassed {
			break // it would drop what no program leads, and the rules do
		}
		now, err := k.attach(r)
		if err != nil {
			failed = errors.Join(failed, explain(r.spec.Name, err))
			continue
		}
		changed = true
		next.Programs[r.spec.Name] = now
	}
	if changed || repaired || !next.equal(record) {
		if err := k.write(next); err != nil {
			return changed, errors.Join(failed, explain("state", err))
		}
	}
	k.state, err = k.judge(next)
	return changed || repaired, errors.Join(failed, err)
}

// Attached says whether a program is attached to a cgroup that there is, of this process or an earlier one.
func (k *Kernel) Attached() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.ContainsFunc(programs(routes.Routes{}, features{}), func(spec *ebpf.ProgramSpec) bool {
		l := k.link(spec.Name, k.pin(spec))
		if l == nil {
			return false
		}
		i, err := infoOf(l)
		return err == nil && i.cgroup != 0
	})
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

// replacement is a program that is not in its place.
type replacement struct {
	spec *ebpf.ProgramSpec
	from string
	// link has another program there, or is nil.
	link link.Link
	// program and err are what came of loading it.
	program *ebpf.Program
	err     error
}

// compare finds what is different, and puts into next what is there already.
func (k *Kernel) compare(specs []*ebpf.ProgramSpec, record, next state) (different []*replacement, err error) {
	id, err := inode(k.at.pods)
	if err != nil {
		return nil, err
	}
	for _, spec := range specs {
		have, r := record.Programs[spec.Name], &replacement{spec: spec, from: fingerprint(spec.Instructions)}
		if l := k.link(spec.Name, k.pin(spec)); l != nil {
			if info, err := infoOf(l); err == nil && info.cgroup == id {
				if info.program == have.ID && have.From == r.from {
					next.Programs[spec.Name] = have
					continue
				}
				r.link = l
			}
		}
		different = append(different, r)
	}
	return different, nil
}

func (k *Kernel) pin(spec *ebpf.ProgramSpec) string { return filepath.Join(k.dir, spec.Name) }

// load brings programs into the kernel, which takes long for many endpoints, and changes nothing yet.
func (k *Kernel) load(all []*replacement) {
	var loading sync.WaitGroup
	for _, r := range all {
		for i := range r.spec.Instructions {
			if m := k.maps[r.spec.Instructions[i].Reference()]; m != nil {
				r.err = errors.Join(r.err, r.spec.Instructions[i].AssociateMap(m))
			}
		}
		if r.err == nil {
			loading.Go(func() { r.program, r.err = ebpf.NewProgram(r.spec) })
		}
	}
	loading.Wait()
}

// attach brings a program to its place.
func (k *Kernel) attach(r *replacement) (now attached, err error) {
	if r.err != nil {
		return now, r.err
	}
	info, err := r.program.Info()
	if err != nil {
		return now, err
	}
	number, _ := info.ID()
	now = attached{ID: number, From: r.from}
	if r.link != nil {
		return now, r.link.Update(r.program)
	}
	return now, k.create(r.spec, r.program, k.pin(r.spec))
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
	var all []byte
	for _, i := range ins {
		all = binary.NativeEndian.AppendUint64(all, uint64(i.Constant))
		all = binary.NativeEndian.AppendUint32(all, uint32(i.OpCode))
		all = binary.NativeEndian.AppendUint16(all, uint16(i.Offset))
		all = append(all, byte(i.Dst), byte(i.Src))
		all = append(append(append(append(all, i.Reference()...), 0), i.Symbol()...), 0)
	}
	sum := sha256.Sum256(all)
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
