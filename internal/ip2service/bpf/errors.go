//go:build linux

package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
)

// refusalError is why this data path cannot be had here, and what to do.
type refusalError string

// Error implements error.
func (e refusalError) Error() string { return string(e) }

// Unwrap lets errors.Is find the reason.
func (refusalError) Unwrap() error { return routes.ErrUnsupported }

// deniedError is a right that is missing.
type deniedError string

// Error implements error.
func (e deniedError) Error() string { return string(e) }

// Unwrap lets errors.Is find the reason.
func (deniedError) Unwrap() error { return routes.ErrPermission }

const (
	errPermission = deniedError("the capabilities BPF and NET_ADMIN are needed, and the user root, whom the folder of the pins belongs to: the container needs securityContext.runAsUser 0 and capabilities.add [BPF, NET_ADMIN], and where SELinux is enforced a type that may use BPF, such as spc_t")
	errMissing    = refusalError("the kernel lacks a part of eBPF: Linux 5.10 or newer is needed, with CONFIG_CGROUP_BPF")
)

// explain says what to do about an error of the kernel.
func explain(what string, err error) error {
	var refused refusalError
	var reason error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refused):
		return err
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		reason = errPermission
	case errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP):
		reason = errMissing
	default:
		return fmt.Errorf("eBPF, %s: %w", what, err)
	}
	return fmt.Errorf("eBPF, %s: %w: %w", what, reason, err)
}
