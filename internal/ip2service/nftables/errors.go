package nftables

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
	"github.com/iam4kube/iam4kube/internal/ip2service/ruleset"
)

// Reasons why the kernel refuses, and what to do.
var (
	errOwned      = refusalError{routes.ErrOwned, "owned table"}
	errPermission = refusalError{routes.ErrPermission, "the capability NET_ADMIN is missing: the container needs securityContext.capabilities.add [NET_ADMIN], and its binary the file capability if it does not run as root"}
	errMissing    = refusalError{routes.ErrUnsupported, "the kernel has no nftables, or lacks a part of it: Linux 4.18 or newer is needed, with nf_tables and the modules for NAT, reject, numgen and connection tracking (try modprobe nf_tables nft_chain_nat nft_reject nft_numgen nft_ct)"}
)

// refusalError is a reason that every data path can have, in the words of this one.
type refusalError struct {
	reason error
	text   string
}

// Error implements error.
func (e refusalError) Error() string { return e.text }

// Unwrap lets errors.Is find the reason.
func (e refusalError) Unwrap() error { return e.reason }

// owned says whose the table is.
func owned(owner uint32, err error) error {
	return fmt.Errorf("%w: the table %s is owned by another process, netlink port %d (nft list tables), and can be changed when that process has ended: %w",
		errOwned, ruleset.TableName, owner, err)
}

// explain says what to do about an error of netlink.
func explain(what string, err error) error {
	var reason error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		reason = errPermission
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.ENOENT), errors.Is(err, unix.EINVAL),
		errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EAFNOSUPPORT):
		reason = errMissing
	default:
		return fmt.Errorf("nftables, %s: %w", what, err)
	}
	return fmt.Errorf("nftables, %s: %w: %w", what, reason, err)
}
