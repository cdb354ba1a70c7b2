package ebpf

import (
	"net"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/iam4kube/iam4kube/internal/ip2service/nftables"
	"github.com/iam4kube/iam4kube/test/node"
)

// Where Remove has returned no program is run any more. Removed pins alone would have the kernel
// detach them some time later, in any order.
func TestWhatIsRemovedIsNotRunAnyMore(t *testing.T) {
	r := newRig(t)
	for range 20 {
		r.sync(t, routesTo(r.endpoints...))
		if _, err := r.kernel.Remove(); err != nil {
			t.Fatal(err)
		}
		for _, at := range []ebpf.AttachType{ebpf.AttachCGroupInetEgress, ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect, ebpf.AttachCGroupSockOps} {
			if run := effective(t, at); run != 0 {
				t.Fatalf("%v: %d programs are run", at, run)
			}
		}
	}
}

// From one data path to the other and back nobody is refused or let through, and what was
// opened by one goes on with the other.
func TestChangeOfTheDataPath(t *testing.T) {
	r := newRig(t)
	want := routesTo(r.endpoints...)
	if _, err := (nftables.Kernel{}).Sync(want); err != nil {
		t.Fatal(err)
	}
	ask := func(when string, c *node.Connection) {
		t.Helper()
		if answer, err := c.Ask(); err != nil || answer.Source != podIPv4 {
			t.Errorf("%s: %+v, %v", when, answer, err)
		}
	}
	open := func() *node.Connection {
		t.Helper()
		c, err := node.Connect(t, r.pod, "169.254.169.254")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			// Nothing leads what it would still send when the rules are gone.
			_ = c.Conn.(*net.TCPConn).SetLinger(0)
			c.Close()
		})
		return c
	}
	byRules := open()
	_, stop := r.load(t, append(r.endpoints, metadata[0])) // whom the rules lead sees the address itself
	for range 20 {
		r.sync(t, want)
		ask("opened by the rules, with programs", byRules)
		byPrograms := open()
		ask("opened by programs", byPrograms)
		if removed, err := r.kernel.Remove(); err != nil || !removed {
			t.Fatalf("removed %v, %v", removed, err)
		}
		ask("opened by programs, without them", byPrograms)
		ask("opened by the rules, alone again", byRules)
	}
	t.Logf("%d connections meanwhile", stop())
}
