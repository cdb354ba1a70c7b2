package nftables

import (
	"context"
	"errors"

	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nlenc"
	"golang.org/x/sys/unix"

	"github.com/iam4kube/iam4kube/internal/ip2service/ruleset"
)

// watchBuffer holds the notifications of large transactions of others, such as
// kube-proxy's first.
const watchBuffer = 4 << 20

// Watch calls changed after every change to a table of our name, ours included, until
// ctx ends or the socket fails. It calls it once at the beginning, when no later change
// can be missed any more, and when the kernel had more to tell than the socket holds.
func (Kernel) Watch(ctx context.Context, changed func()) error {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return explain("watch", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer func() {
		if stop() {
			_ = conn.Close()
		}
	}()
	// Without NET_ADMIN in the first user namespace the kernel's limit stays in force.
	if err := conn.SetReadBuffer(watchBuffer); err != nil {
		return explain("watch", err)
	}
	if err := conn.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		return explain("watch", err)
	}
	changed()
	for {
		messages, err := conn.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			changed()
		case err != nil:
			return explain("watch", err)
		case ours(messages):
			changed()
		}
	}
}

// ours says whether one of the notifications is of a table of our name. In all of them
// the first attribute is the table's name, linux/netfilter/nf_tables.h.
func ours(messages []netlink.Message) bool {
	const header, tableAttribute = 4, unix.NFTA_TABLE_NAME // struct nfgenmsg
	for _, m := range messages {
		if len(m.Data) < header || m.Header.Type&0xff == unix.NFT_MSG_NEWGEN {
			continue
		}
		attributes, err := netlink.UnmarshalAttributes(m.Data[header:])
		if err != nil {
			return true // what cannot be read may be ours
		}
		for _, a := range attributes {
			if a.Type == tableAttribute && nlenc.String(a.Data) == ruleset.TableName {
				return true
			}
		}
	}
	return false
}
