//go:build linux

package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// probe finds out what the machine has.
func probe() (f features, err error) {
	// Before Linux 5.11 programs and maps count as locked memory.
	if err := rlimit.RemoveMemlock(); err != nil {
		return f, explain("limit of locked memory", err)
	}
	if f.host, err = ownCookie(); err != nil {
		return f, err
	}
	if f.refuse, err = loads(ebpf.CGroupSockAddr, ebpf.AttachCGroupInet4Connect,
		asm.Mov.Imm(asm.R1, -int32(unix.ECONNREFUSED)), asm.FnSetRetval.Call()); err != nil {
		return f, err
	}
	f.skbCookie, err = loads(ebpf.CGroupSKB, ebpf.AttachCGroupInetEgress, asm.FnGetNetnsCookie.Call())
	return f, err
}

// ownCookie is that of the network namespace of this process, which is the host's. Kernels
// before Linux 5.14 do not tell.
func ownCookie() (uint64, error) {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("socket: %w", err)
	}
	defer func() { _ = unix.Close(socket) }()
	cookie, err := unix.GetsockoptUint64(socket, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if errors.Is(err, unix.ENOPROTOOPT) {
		return 0, nil
	} else if err != nil {
		return 0, fmt.Errorf("SO_NETNS_COOKIE: %w", err)
	}
	return cookie, nil
}

// loads says whether the kernel accepts instructions in a program of this kind.
func loads(of ebpf.ProgramType, at ebpf.AttachType, ins ...asm.Instruction) (bool, error) {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "iam4kube_probe", Type: of, AttachType: at, License: "Apache-2.0",
		Instructions: append(ins, asm.Mov.Imm(asm.R0, 1), asm.Return()),
	})
	if err == nil {
		return true, p.Close()
	}
	if errors.Is(err, unix.EINVAL) {
		return false, nil
	}
	return false, explain("probe", err)
}
