//go:build linux

package bpf

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf/asm"

	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
)

var update = flag.Bool("update", false, "write testdata/*.txt anew")

func ends(all ...string) (parsed []netip.AddrPort) {
	for _, a := range all {
		parsed = append(parsed, netip.MustParseAddrPort(a))
	}
	return parsed
}

var (
	metadata = ends("169.254.169.254:80", "[fd00:ec2::254]:80")
	servers  = ends("10.244.1.2:8080", "10.244.2.3:8080", "[fd00:10:244:1::2]:8080")
	modern   = features{refuse: true, skbCookie: true, host: 1}
)

// The programs are those of the golden files. That a kernel accepts these, and what it does
// with them, is tested in test/ebpf.
func TestProgramsAreTheGoldenFiles(t *testing.T) {
	for name, c := range map[string]struct {
		routes   routes.Routes
		features features
	}{
		"guard":        {routes.Routes{Hooks: routes.Node, Intercept: metadata}, modern},
		"endpoints":    {routes.Routes{Hooks: routes.Node, Intercept: metadata, New: servers, Live: servers}, modern},
		"old-kernel":   {routes.Routes{Hooks: routes.Node, Intercept: metadata, New: servers[:1], Live: servers[:1]}, features{}},
		"dns-bypassed": {routes.Routes{Hooks: routes.Node, Intercept: metadata, DNS: true, Bypassed: true}, modern},
		"host": {routes.Routes{
			Hooks: routes.Node, Intercept: append(metadata[:2:2], ends("169.254.170.2:80")...), Host: []netip.Addr{netip.MustParseAddr("169.254.170.2")}, New: servers[:1], Live: servers[:2],
		}, modern},
	} {
		t.Run(name, func(t *testing.T) {
			var text strings.Builder
			for _, s := range programs(c.routes, c.features) {
				fmt.Fprintf(&text, "%s, %s\n%v\n", s.Name, s.AttachType, s.Instructions)
			}
			file := filepath.Join("testdata", name+".txt")
			if *update {
				if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if text.String() != string(want) {
				t.Errorf("the programs are not those of %s (go test -update writes it):\n%s", file, text.String())
			}
		})
	}
}

// A program is replaced when it differs and only then.
func TestFingerprint(t *testing.T) {
	of := func(r routes.Routes) (prints []string) {
		for _, s := range programs(r, modern) {
			prints = append(prints, fingerprint(s.Instructions))
		}
		return prints
	}
	r := routes.Routes{Hooks: routes.Node, Intercept: metadata, New: servers, Live: servers}
	before := of(r)
	if again := of(r); strings.Join(again, " ") != strings.Join(before, " ") {
		t.Errorf("%v, and then %v", before, again)
	}
	r.New = servers[1:]
	changed := map[string]bool{}
	for i, now := range of(r) {
		changed[programs(r, modern)[i].Name] = now != before[i]
	}
	// One endpoint of IPv4 less for new connections concerns nothing else.
	for name, is := range changed {
		if want := name == "iam4kube_connect4" || name == "iam4kube_connect6"; is != want {
			t.Errorf("%s: changed %v", name, is)
		}
	}
}

func TestCgroupOfPods(t *testing.T) {
	const mounts = "24 1 0:22 / /proc rw - proc proc rw\n31 24 0:27 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n40 24 0:27 /../../.. /host/cgroup ro - cgroup2 cgroup2 rw\n"
	if have := fmt.Sprint(cgroup2Mounts(mounts)); have != "[{/sys/fs/cgroup /} {/host/cgroup /../../..}]" {
		t.Error(have)
	}
	if path := cgroup2Path("9:name=systemd:/a\n0::/kubepods/x\n"); path != "/kubepods/x" {
		t.Error(path)
	}
	for own, want := range map[string]string{
		"/c/kubepods/burstable/pod1/ctr": "/c/kubepods",
		"/c/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice/cri-1.scope": "/c/kubepods.slice",
		"/c/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod1.slice/cri-1.scope":        "/c/kubelet.slice/kubelet-kubepods.slice",
		"/c/kubepods/pod1/ctr/kubepods/pod2":                                                     "/c/kubepods", // a cluster in a pod
		"/c/system.slice/docker-1.scope":                                                         "",
		"/c/mykubepods":                                                                          "",
		"/c":                                                                                     "",
		"":                                                                                       "",
	} {
		if p, found := podsAbove("/c", own); p.pods != want || found != (want != "") {
			t.Errorf("%s: %+v, %v, want %s", own, p, found, want)
		}
	}
}

// Where a place is given by its number alone, as in a cgroup namespace.
func TestSearchByNumber(t *testing.T) {
	root := t.TempDir()
	own := filepath.Join(root, "kubepods", "pod1", "container")
	if err := os.MkdirAll(own, 0o700); err != nil {
		t.Fatal(err)
	}
	id, err := inode(own)
	if err != nil {
		t.Fatal(err)
	}
	if found := search(root, id); found != own {
		t.Errorf("found %q", found)
	}
	if found := search(root, 1); found != "" {
		t.Errorf("found %q", found)
	}
}

// Words and ports are as the kernel's structures have them, on either byte order.
func TestWordsAreOfTheNetwork(t *testing.T) {
	p := &program{}
	for _, w := range words(netip.MustParseAddr("169.254.169.254"), true) {
		p.add(asm.Mov.Imm32(asm.R1, w))
	}
	if len(p.ins) != 4 || len(words(netip.MustParseAddr("fd00::1"), true)) != 4 || len(words(netip.MustParseAddr("10.0.0.1"), false)) != 1 {
		t.Errorf("%v", p.ins)
	}
	if a, b := network16(0x0102), words(netip.MustParseAddr("1.2.1.2"), false)[0]; a != b&0xffff && a != b>>16 {
		t.Errorf("%x, %x", a, b)
	}
}
