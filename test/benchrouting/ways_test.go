package benchrouting

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"

	"github.com/iam4kube/iam4kube/internal/ip2service/bpf"
	"github.com/iam4kube/iam4kube/internal/ip2service/nftables"
	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
)

var intercepted = netip.AddrPortFrom(routes.MetadataIPv4, 80)

// way is how a pod's connections get to an endpoint.
type way struct {
	name string
	// direct: the client connects to the endpoints themselves.
	direct bool
	// set begins it, and remove ends it.
	set    func(to []netip.AddrPort) error
	remove func() error
	// change is for endpoints that differ from those before, same for none that does;
	// nil where that is not measured.
	change, same func(to []netip.AddrPort) error
	most         bounds
}

// bounds are the contract's; 0: there is none.
type bounds struct {
	connect float64 // of the first way's p50
	refuse  float64 // of the rules' p50
	change  float64 // p99, in milliseconds
}

// ways are compared with the first one. The table nat of iptables-legacy stays in a
// network namespace once it was used, so it is there, empty, beside all others.
var ways = []way{
	{
		name: "no rules", direct: true,
		set:    func([]netip.AddrPort) error { return nil },
		remove: func() error { return nil },
	},
	tracking,
	{name: "iam4kube", set: syncAnew, change: syncAnew, same: syncSame, remove: remove},
	{
		name: "iam4kube, eBPF", set: programsAnew, change: programsAnew, same: programsSame, remove: removePrograms,
		most: bounds{connect: 1.10, refuse: 0.25, change: 20},
	},
	{
		name:   "iam4kube, eBPF and rules",
		set:    func(to []netip.AddrPort) error { return errors.Join(syncAnew(to), programsAnew(to)) },
		remove: func() error { return errors.Join(removePrograms(), remove()) },
	},
	{
		name:   "iam4kube's rules as trees",
		set:    func(to []netip.AddrPort) error { return run(tree(to), "nft", "-f", "-") },
		remove: remove,
	},
	{
		name:   "statistic, iptables-nft",
		set:    func(to []netip.AddrPort) error { return run(jump+statistic(to), iptablesNFT, "--noflush") },
		change: func(to []netip.AddrPort) error { return run(statistic(to), iptablesNFT, "--noflush") },
		remove: func() error { return run("", "nft", "delete", "table", "ip", "nat") },
	},
	{
		name:   "statistic, iptables-legacy",
		set:    func(to []netip.AddrPort) error { return run(jump+statistic(to), iptablesLegacy, "--noflush") },
		change: func(to []netip.AddrPort) error { return run(statistic(to), iptablesLegacy, "--noflush") },
		remove: func() error { return run("*nat\nCOMMIT\n", iptablesLegacy) },
	},
}

// tracking is what any translation of addresses needs.
var tracking = way{
	name: "connection tracking alone", direct: true,
	set: func([]netip.AddrPort) error {
		return run("table ip tracking {\nchain prerouting {\ntype filter hook prerouting priority 0\nct state new\n}\n}\n", "nft", "-f", "-")
	},
	remove: func() error { return run("", "nft", "delete", "table", "ip", "tracking") },
}

// syncAnew brings the product's rules for these endpoints into the kernel.
func syncAnew(to []netip.AddrPort) error { return sync(to, true) }

// syncSame finds them there.
func syncSame(to []netip.AddrPort) error { return sync(to, false) }

func sync(to []netip.AddrPort, want bool) error { return bring(nftables.Kernel{}, to, want) }

// programs are the product's other data path, which leaves nothing to netfilter.
var programs = bpf.New("/sys/fs/bpf/iam4kube")

func programsAnew(to []netip.AddrPort) error { return bring(programs, to, true) }

func programsSame(to []netip.AddrPort) error { return bring(programs, to, false) }

func removePrograms() error {
	removed, err := programs.Remove()
	if err == nil && !removed {
		err = errors.New("there were no programs")
	}
	return err
}

func bring(path interface {
	Sync(routes.Routes) (bool, error)
}, to []netip.AddrPort, want bool,
) error {
	changed, err := path.Sync(routes.Routes{
		Hooks: routes.Node, New: to, Live: to, Bypassed: true,
		Intercept: []netip.AddrPort{intercepted, netip.AddrPortFrom(routes.MetadataIPv6, intercepted.Port())},
	})
	if err == nil && changed != want {
		err = fmt.Errorf("changed: %v", changed)
	}
	return err
}

func remove() error {
	removed, err := nftables.Kernel{}.Remove()
	if err == nil && !removed {
		err = errors.New("there were no rules")
	}
	return err
}

// Commands of the two iptables.
const (
	iptablesNFT    = "iptables-nft-restore"
	iptablesLegacy = "iptables-legacy-restore"
)

// jump leads to the chain of statistic.
var jump = fmt.Sprintf("*nat\n:ENDPOINTS - [0:0]\n-A PREROUTING ! -i lo -d %s -p tcp -m tcp --dport %d -j ENDPOINTS\nCOMMIT\n",
	intercepted.Addr(), intercepted.Port())

// statistic replaces the chain that leads to each endpoint with the same chance.
func statistic(to []netip.AddrPort) string {
	var text strings.Builder
	text.WriteString("*nat\n:ENDPOINTS - [0:0]\n")
	for i, e := range to {
		chance := ""
		if left := len(to) - i; left > 1 {
			chance = fmt.Sprintf("-m statistic --mode random --probability %.10f ", 1/float64(left))
		}
		fmt.Fprintf(&text, "-A ENDPOINTS -p tcp %s-j DNAT --to-destination %s\n", chance, e)
	}
	text.WriteString("COMMIT\n")
	return text.String()
}

func run(input, name string, arguments ...string) error {
	c := exec.Command(name, arguments...)
	c.Stdin = strings.NewReader(input)
	if output, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s\n%s", c, err, output, input)
	}
	return nil
}
