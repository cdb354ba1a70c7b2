package netns

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"testing"
)

// MetadataAddresses are those of EC2's instance metadata service.
var MetadataAddresses = []string{"169.254.169.254", "fd00:ec2::254"}

// ContainerAddresses are those of container credentials, where an agent of AWS's would answer.
// A FarSide does not have them, but counts what is sent there if it is given them.
var ContainerAddresses = []string{"169.254.170.2", "169.254.170.23", "fd00:ec2::23"}

// NodeRole is what a FarSide answers to every HTTP request.
const NodeRole = "role-of-the-machine"

// FarSide stands for the metadata service of the cloud's machine that the nodes run on. A
// packet for the metadata addresses that nothing catches ends there.
type FarSide struct{ *Pod }

// routers are the far side's own addresses.
var routers = []string{"198.51.100.1", "2001:db8::1"}

// farRules count every packet that gets there, of whatever protocol.
const farRules = `table inet far {
	counter leaks { }
	chain input {
		type filter hook input priority -300
		ip daddr { 169.254.169.254, 169.254.170.2, 169.254.170.23 } counter name leaks
		ip6 daddr { fd00:ec2::254, fd00:ec2::23 } counter name leaks
	}
}`

// NewFarSide puts the far side behind the default route, until the test ends. The test
// fails if a packet has got there by then.
func NewFarSide(t testing.TB) *FarSide {
	t.Helper()
	far := &FarSide{AddPod(t, routers...)}
	for i, address := range MetadataAddresses {
		if err := ip("route", "add", "default", "via", routers[i], "dev", far.Device); err != nil {
			t.Fatal(err)
		}
		bits := "/32"
		if strings.Contains(address, ":") {
			bits = "/128"
		}
		// Without nodad an IPv6 address cannot be used yet.
		if err := far.Do(func() error { return ip("address", "add", address+bits, "dev", "lo", "nodad") }); err != nil {
			t.Fatal(err)
		}
		listener, err := far.Listen("tcp", net.JoinHostPort(address, "80"))
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, NodeRole) })}
		go func() { _ = server.Serve(listener) }() // until Close
		t.Cleanup(func() { server.Close() })
	}
	if err := far.Do(CountLeaks); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if leaks := far.TakeLeaks(t); leaks != 0 {
			t.Errorf("%d packets reached the metadata service of the machine, want none", leaks)
		}
	})
	return far
}

// TakeLeaks is how many packets for the metadata addresses have arrived since it was
// last called.
func (f *FarSide) TakeLeaks(t testing.TB) (packets int) {
	t.Helper()
	if err := f.Do(func() (err error) {
		packets, err = leaks("reset")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return packets
}

// CountLeaks begins to count what arrives for the metadata addresses in the network namespace
// of the calling thread.
func CountLeaks() error {
	nft := exec.Command("nft", "-f", "-")
	nft.Stdin = strings.NewReader(farRules)
	if output, err := nft.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, output)
	}
	return nil
}

// Leaks is how many packets have arrived since CountLeaks.
func Leaks() (packets int, err error) { return leaks("list") }

func leaks(verb string) (packets int, err error) {
	output, err := exec.Command("nft", "-j", verb, "counters", "table", "inet", "far").CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("nft: %w: %s", err, output)
	}
	var list struct {
		Nftables []struct{ Counter struct{ Packets int } }
	}
	if err := json.Unmarshal(output, &list); err != nil {
		return 0, err
	}
	for _, object := range list.Nftables {
		packets += object.Counter.Packets
	}
	return packets, nil
}
