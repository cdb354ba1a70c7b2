//go:build linux

package bpf

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
)

// info is what the kernel says of a link.
type info struct {
	program ebpf.ProgramID
	cgroup  uint64 // 0: it was detached, or its cgroup has gone
}

func infoOf(l link.Link) (info, error) {
	i, err := l.Info()
	if err != nil {
		return info{}, err
	}
	of := info{program: i.Program}
	if c := i.Cgroup(); c != nil {
		of.cgroup = c.CgroupId
	}
	return of, nil
}

// pinAgain is for what has a pin that somebody removed.
func pinAgain(what interface {
	Unpin() error
	Pin(string) error
}, pin string,
) (repaired bool, err error) {
	if _, err := os.Lstat(pin); !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	if err := what.Unpin(); err != nil && !errors.Is(err, os.ErrNotExist) { // so that it is not taken for pinned
		return false, err
	}
	return true, what.Pin(pin)
}

// attachTypes are those of all programs.
func attachTypes() map[ebpf.AttachType]string {
	types := map[ebpf.AttachType]string{}
	for _, s := range programs(routes.Routes{}, features{}) {
		types[s.AttachType] = s.Name
	}
	return types
}

// Programs says how the programs do.
type Programs struct {
	// Attached is how many have a link, Effective how many of them the kernel runs for this
	// process, which is in a pod.
	Attached, Effective int
}

// Programs are those of the last Sync.
func (k *Kernel) Programs() Programs {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.state
}

// judge asks the kernel which programs it runs for this process. Another program can be in
// their place, or they in another's, without an error of either's attachment.
func (k *Kernel) judge(s state) (p Programs, err error) {
	for at, name := range attachTypes() {
		have, wanted := s.Programs[name]
		if !wanted {
			continue
		}
		p.Attached++
		running, err := effective(k.at.own, at)
		if err != nil {
			return p, explain("query", err)
		}
		if !slices.ContainsFunc(running, func(a link.AttachedProgram) bool { return a.ID == have.ID }) {
			return p, refusalError(fmt.Sprintf("the program %s is attached and the kernel does not run it for pods: another one, of a cgroup between %s and this process, is exclusive", name, k.at.pods))
		}
		p.Effective++
		if err := k.exclusive(at); err != nil {
			return p, err
		}
	}
	return p, nil
}

// effective are the programs that the kernel runs for a cgroup, its own and its ancestors'.
func effective(cgroup string, at ebpf.AttachType) ([]link.AttachedProgram, error) {
	folder, err := os.Open(cgroup)
	if err != nil {
		return nil, err
	}
	defer func() { _ = folder.Close() }()
	const queryEffective = 1 // BPF_F_QUERY_EFFECTIVE
	result, err := link.QueryPrograms(link.QueryOptions{Target: int(folder.Fd()), Attach: at, QueryFlags: queryEffective})
	if err != nil {
		return nil, err
	}
	return result.Programs, nil
}

// exclusive finds a program of a cgroup above that of pods, or of that itself, that was
// attached so that no other one may be. With ours below it the kernel would not run it for
// pods any more, in some cases without telling anybody.
func (k *Kernel) exclusive(at ebpf.AttachType) error {
	for cgroup := k.at.pods; ; cgroup = filepath.Dir(cgroup) {
		count, flags, err := attachFlags(cgroup, at)
		if err != nil {
			return err
		}
		if count > 0 && flags&unix.BPF_F_ALLOW_MULTI == 0 {
			return refusalError(fmt.Sprintf("a program of the kind %s is attached to the cgroup %s so that no other one may be (bpftool cgroup tree): ours would take its place for all pods; have it attached with BPF_F_ALLOW_MULTI or by a link, as newer versions of network plugins do, or use --data-path nftables", kind(at), cgroup))
		}
		if cgroup == k.at.root {
			return nil
		}
	}
}

// kind is how bpftool calls it.
func kind(at ebpf.AttachType) string { return strings.TrimPrefix(at.String(), "CGroup") }

// attachFlags says how many programs a cgroup has, not those of others, and with which flags
// they were attached. The library keeps the flags to itself.
func attachFlags(cgroup string, at ebpf.AttachType) (count, flags uint32, err error) {
	folder, err := os.Open(cgroup)
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = folder.Close() }()
	query := struct { // the beginning of union bpf_attr for BPF_PROG_QUERY, and room for the rest
		target, attachType, queryFlags, attachFlags uint32
		programs                                    uint64
		count                                       uint32
		_                                           [100]byte
	}{target: uint32(folder.Fd()), attachType: uint32(at)}
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_QUERY, uintptr(unsafe.Pointer(&query)), unsafe.Sizeof(query)) //nolint:gosec // as the library does, which leaves the flags out
	runtime.KeepAlive(&query)
	if errno != 0 {
		return 0, 0, errno
	}
	return query.count, query.attachFlags, nil
}

// forwards says whether packets that come from an interface of this network namespace first
// meet a program that may forward them past netfilter, as network plugins with BPF host
// routing have them. Of Linux before 6.6, and of what attaches them in other ways, that
// cannot be seen.
func forwards() bool {
	interfaces, err := net.Interfaces()
	if err != nil {
		return true
	}
	return slices.ContainsFunc(interfaces, func(i net.Interface) bool {
		result, err := link.QueryPrograms(link.QueryOptions{Target: i.Index, Attach: ebpf.AttachTCXIngress})
		return err == nil && len(result.Programs) > 0
	})
}
