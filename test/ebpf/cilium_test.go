package ebpf

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/iam4kube/iam4kube/test/netns"
	"github.com/iam4kube/iam4kube/test/socketlb"
)

// cilium is Cilium's socket load balancing, in the kernel.
type cilium struct {
	*ebpf.Collection

	at       map[string]ebpf.AttachType // of the programs
	links    map[string]link.Link
	backends uint32
}

// loadCilium loads it, without attaching it.
func loadCilium(t *testing.T) *cilium {
	t.Helper()
	object, err := socketlb.Object()
	if err != nil {
		t.Fatal(err)
	}
	spec, err := ebpf.LoadCollectionSpec(object)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
		m.MaxEntries = min(m.MaxEntries, 1024) // some are made at their full size
	}
	// The agent's default: a Service without endpoints is unreachable.
	if err := spec.Variables["__config_enable_no_service_endpoints_routable"].Set(true); err != nil {
		t.Fatal(err)
	}
	if err := rlimit.RemoveMemlock(); err != nil { // before Linux 5.11
		t.Fatal(err)
	}
	c := &cilium{at: map[string]ebpf.AttachType{}, links: map[string]link.Link{}}
	for name, p := range spec.Programs {
		c.at[name] = p.AttachType
	}
	if c.Collection, err = ebpf.NewCollection(spec); err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(c.Close)
	return c
}

// attach attaches all programs to the cgroup above that of pods, by links, as its agent does.
func (c *cilium) attach(t *testing.T) {
	t.Helper()
	for name, program := range c.Programs {
		l, err := link.AttachCgroup(link.CgroupOptions{Path: filepath.Dir(netns.Kubepods()), Attach: c.at[name], Program: program})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		t.Cleanup(func() { l.Close() })
		c.links[name] = l
	}
}

// replace is what an agent does that is started again: each program by one that is the same.
func (c *cilium) replace(by *cilium) (err error) {
	for name, l := range c.links {
		err = errors.Join(err, l.Update(by.Programs[name]))
	}
	return err
}

// service leads an address to backends: struct lb4_key, lb4_service and lb4_backend of Cilium's
// bpf/lib/lb.h, and the same of IPv6.
func (c *cilium) service(t *testing.T, front netip.AddrPort, backends ...netip.AddrPort) {
	t.Helper()
	family := map[bool]string{true: "4", false: "6"}[front.Addr().Is4()]
	put := func(what string, key, value []byte) {
		t.Helper()
		if err := c.Maps["cilium_lb"+family+"_"+what].Put(key, value); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	const entry = 12 // struct lb4_service, lb6_service
	slot := func(n int) []byte {
		key := binary.BigEndian.AppendUint16(front.Addr().AsSlice(), front.Port())
		return append(binary.NativeEndian.AppendUint16(key, uint16(n)), unix.IPPROTO_TCP, 0, 0, 0)
	}
	first := make([]byte, entry)
	binary.NativeEndian.PutUint16(first[4:], uint16(len(backends)))
	binary.NativeEndian.PutUint16(first[6:], uint16(c.backends+1)) // the number for the way back
	put("services_v2", slot(0), first)
	for i, b := range backends {
		c.backends++
		number := binary.NativeEndian.AppendUint32(nil, c.backends)
		put("services_v2", slot(i+1), append(slices.Clone(number), make([]byte, entry-len(number))...))
		put("backends_v3", number, append(binary.BigEndian.AppendUint16(b.Addr().AsSlice(), b.Port()), 0, 0, 0, 0, 0, 0))
	}
}
