package nftables

import (
	"errors"
	"io/fs"
	"os"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
	"github.com/iam4kube/iam4kube/internal/ip2service/ruleset"
)

func TestErrorsSayWhatToDo(t *testing.T) {
	for _, c := range []struct {
		cause  unix.Errno
		reason error // nil: the kernel's own text has to do
	}{
		{unix.EPERM, routes.ErrPermission},
		{unix.EACCES, routes.ErrPermission},
		{unix.EPROTONOSUPPORT, routes.ErrUnsupported}, // no nf_tables
		{unix.ENOENT, routes.ErrUnsupported},          // no numgen
		{unix.EOPNOTSUPP, routes.ErrUnsupported},
		{unix.EINVAL, routes.ErrUnsupported},
		{unix.EAFNOSUPPORT, routes.ErrUnsupported},
		{unix.EBUSY, nil},
		{unix.ENOBUFS, nil},
	} {
		// As the libraries wrap it.
		err := explain("read", &netlink.OpError{Op: "receive", Err: os.NewSyscallError("recvmsg", c.cause)})
		if !errors.Is(err, c.cause) {
			t.Errorf("%v does not hold its cause %v", err, c.cause)
		}
		for _, reason := range []error{routes.ErrPermission, routes.ErrUnsupported, routes.ErrOwned} {
			if errors.Is(err, reason) != errors.Is(c.reason, reason) {
				t.Errorf("%v: %v", c.cause, err)
			}
		}
	}
	if err := explain("read", nil); err != nil {
		t.Error(err)
	}
	if err := explain("read", fs.ErrClosed); !errors.Is(err, fs.ErrClosed) || err.Error() != "nftables, read: file already closed" {
		t.Error(err)
	}
}

// notification is one of the kernel's: the header of nfnetlink, and attributes.
func notification(t *testing.T, kind int, attributes ...netlink.Attribute) netlink.Message {
	t.Helper()
	data, err := netlink.MarshalAttributes(attributes)
	if err != nil {
		t.Fatal(err)
	}
	header := []byte{unix.NFPROTO_IPV4, unix.NFNETLINK_V0, 0, 7}
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind)},
		Data:   append(header, data...),
	}
}

func TestOnlyNotificationsOfOurTablesCount(t *testing.T) {
	name := func(text string) netlink.Attribute {
		return netlink.Attribute{Type: unix.NFTA_TABLE_NAME, Data: append([]byte(text), 0)}
	}
	ofTable := func(kind int, table string) netlink.Message {
		return notification(t, kind, name(table), netlink.Attribute{Type: 2, Data: []byte("iam4kube\x00")})
	}
	generation := notification(t, unix.NFT_MSG_NEWGEN, name(ruleset.TableName)) // its first attribute is a number
	broken := ofTable(unix.NFT_MSG_NEWRULE, "kube-proxy")
	broken.Data = broken.Data[:len(broken.Data)-8]
	short := ofTable(unix.NFT_MSG_NEWRULE, ruleset.TableName)
	short.Data = short.Data[:3]
	for name, c := range map[string]struct {
		messages []netlink.Message
		want     bool
	}{
		"none":                        {nil, false},
		"rule of ours added":          {[]netlink.Message{ofTable(unix.NFT_MSG_NEWRULE, "iam4kube")}, true},
		"rule of ours deleted":        {[]netlink.Message{ofTable(unix.NFT_MSG_DELRULE, "iam4kube")}, true},
		"chain of ours":               {[]netlink.Message{ofTable(unix.NFT_MSG_NEWCHAIN, "iam4kube")}, true},
		"table of ours":               {[]netlink.Message{ofTable(unix.NFT_MSG_DELTABLE, "iam4kube")}, true},
		"chain of our name elsewhere": {[]netlink.Message{ofTable(unix.NFT_MSG_NEWCHAIN, "kube-proxy")}, false},
		"table with a longer name":    {[]netlink.Message{ofTable(unix.NFT_MSG_NEWTABLE, "iam4kube2")}, false},
		"table with a shorter name":   {[]netlink.Message{ofTable(unix.NFT_MSG_NEWTABLE, "iam4kub")}, false},
		"end of a transaction":        {[]netlink.Message{generation}, false},
		"ours among others": {[]netlink.Message{
			ofTable(unix.NFT_MSG_NEWRULE, "kube-proxy"), ofTable(unix.NFT_MSG_NEWSETELEM, "iam4kube"), generation,
		}, true},
		"broken":    {[]netlink.Message{broken}, true},
		"too short": {[]netlink.Message{short}, false},
	} {
		if have := ours(c.messages); have != c.want {
			t.Errorf("%s: %v", name, have)
		}
	}
}
