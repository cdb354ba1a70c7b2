package routingload

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nlenc"
	"golang.org/x/sys/unix"

	"github.com/iam4kube/iam4kube/internal/ip2service/ruleset"
)

// transaction is one change of the node's rules, as the kernel tells of it.
type transaction struct {
	// at is when the test was told, shortly after it.
	at time.Time
	// by is the name of the process.
	by string
	// ours says that it changed one of our tables.
	ours bool
	// foreign says that it changed another table.
	foreign bool
	// routed says that it changed where new connections go, in family ip: since then
	// fresh get them, and live may keep those that they have.
	routed      bool
	fresh, live []netip.Addr
	// lost says that there may have been others before it, which nobody was told of.
	lost bool
}

// kernel is all transactions since the test began to watch.
type kernel struct {
	mu           sync.Mutex
	transactions []transaction
	changed      chan struct{} // closed by the next one
}

// watchKernel records the transactions until the test ends.
func watchKernel(t *testing.T) *kernel {
	t.Helper()
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(conn.SetReadBuffer(4<<20), conn.JoinGroup(unix.NFNLGRP_NFTABLES)); err != nil {
		t.Fatal(err)
	}
	k := &kernel{changed: make(chan struct{})}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		k.run(conn)
	}()
	t.Cleanup(func() {
		_ = conn.Close()
		<-ended
	})
	return k
}

func (k *kernel) run(conn *netlink.Conn) {
	var next transaction
	for {
		messages, err := conn.Receive()
		switch {
		case errors.Is(err, unix.ENOBUFS):
			next.lost = true
			continue
		case err != nil:
			return // closed
		}
		at := time.Now()
		for _, m := range messages {
			if next.read(m) {
				next.at = at
				k.add(next)
				next = transaction{}
			}
		}
	}
}

func (k *kernel) add(t transaction) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.transactions = append(k.transactions, t)
	close(k.changed)
	k.changed = make(chan struct{})
}

// read adds what a notification says, linux/netfilter/nf_tables.h, and says whether it
// was the transaction's last one.
func (t *transaction) read(m netlink.Message) (last bool) {
	const header = 4 // struct nfgenmsg
	attributes, err := netlink.UnmarshalAttributes(m.Data[header:])
	if err != nil {
		panic(fmt.Sprint("a notification of nftables: ", err))
	}
	of := map[uint16][]byte{}
	for _, a := range attributes {
		of[a.Type] = a.Data
	}
	if m.Header.Type&0xff == unix.NFT_MSG_NEWGEN {
		t.by = nlenc.String(of[unix.NFTA_GEN_PROC_NAME])
		return true
	}
	if nlenc.String(of[unix.NFTA_TABLE_NAME]) != ruleset.TableName {
		t.foreign = true
		return false
	}
	t.ours = true
	if m.Header.Type&0xff == unix.NFT_MSG_NEWRULE && m.Data[0] == unix.NFPROTO_IPV4 && nlenc.String(of[unix.NFTA_RULE_CHAIN]) == "endpoints" {
		t.routed = true
		t.readEndpoint(of[unix.NFTA_RULE_EXPRESSIONS])
	}
	return false
}

// readEndpoint reads a rule of the chain endpoints, which names each live one as a source
// and each fresh one as what to translate to. It changes whenever one of both does.
func (t *transaction) readEndpoint(expressions []byte) {
	value := []byte{8, 0, unix.NFTA_DATA_VALUE, 0} // of four bytes, and all endpoints' first one is 10
	_, rest, found := bytes.Cut(expressions, append(value, 10))
	if !found {
		return
	}
	address := netip.AddrFrom4([4]byte{10, rest[0], rest[1], rest[2]})
	if bytes.Contains(expressions, []byte("nat\x00")) {
		t.fresh = append(t.fresh, address)
	} else {
		t.live = append(t.live, address)
	}
}

// after are the transactions since one that was counted before.
func (k *kernel) after(count int) []transaction {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.transactions[count:])
}

// count is how many there were so far.
func (k *kernel) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.transactions)
}

// wait returns the first transaction after these that is as wanted.
func (k *kernel) wait(t *testing.T, count int, wanted func(transaction) bool) transaction {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		k.mu.Lock()
		changed := k.changed
		k.mu.Unlock()
		found := k.after(count)
		if i := slices.IndexFunc(found, wanted); i >= 0 {
			return found[i]
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("not among %d transactions within a minute", len(found))
		}
	}
}
