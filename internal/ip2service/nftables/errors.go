package nftables

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/iam4kube/iam4kube/internal/ip2service/ruleset"
)

// Reasons why the kernel refuses.
var (
	ErrOwned      = errors.New("owned table")
	ErrPermission = errors.New("the capability NET_ADMIN is missing: the container needs securityContext.capabilities.add [NET_ADMIN], and its binary the file capability if it does not run as root")
	ErrMissing    = errors.New("the kernel has no nftables, or lacks a part of it: Linux 4.18 or newer is needed, with nf_tables and the modules for NAT, reject, numgen and connection tracking (try modprobe nf_tables nft_chain_nat nft_reject nft_numgen nft_ct)")
)

// owned says whose the table is.
func owned(owner uint32, err error) error {
	return fmt.Errorf("%w: the table %s is owned by another process, netlink port %d (nft list tables), and can be changed when that process has ended: %w",
		ErrOwned, ruleset.TableName, owner, err)
}

// explain says what to do about an error of netlink.
func explain(what string, err error) error {
	var reason error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		reason = ErrPermission
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.ENOENT), errors.Is(err, unix.EINVAL),
		errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EAFNOSUPPORT):
		reason = ErrMissing
	default:
		return fmt.Errorf("nftables, %s: %w", what, err)
	}
	return fmt.Errorf("nftables, %s: %w: %w", what, reason, err)
}
