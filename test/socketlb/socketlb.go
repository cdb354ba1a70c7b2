// Package socketlb compiles Cilium's socket load balancing, for the data path through eBPF to be
// tested beside it. Nothing of its code is in the repository: its published sources come as the Go
// module that test/build/cilium names. It does not load what it compiles.
package socketlb

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/iam4kube/iam4kube/test/checkout"
	"github.com/iam4kube/iam4kube/test/controlplane"
)

// flags are those of its agent where it replaces kube-proxy, for the sockets of pods, too.
var flags = []string{
	"-O2", "-g", "-w", "--target=bpf", "-std=gnu99", "-mcpu=v3", "-nostdinc", "-ftrap-function=__undefined_trap",
	"-DENABLE_IPV4", "-DENABLE_IPV6", "-DENABLE_NODEPORT", "-DENABLE_SOCKET_LB_FULL", "-DENABLE_SOCKET_LB_PEER",
}

// Object is the file, which stays in the cache of package controlplane. Who has no network later
// asks for it before.
func Object() (object string, err error) {
	cache, err := controlplane.CacheDir()
	if err != nil {
		return "", err
	}
	module := checkout.Path("test", "build", "cilium")
	sums, err := os.ReadFile(filepath.Join(module, "go.sum"))
	if err != nil {
		return "", err
	}
	key := sha256.Sum256(fmt.Append(sums, flags))
	object = filepath.Join(cache, fmt.Sprintf("cilium-%x.o", key[:8]))
	if _, err := os.Stat(object); err == nil {
		return object, nil
	}
	download := exec.Command("go", "mod", "download", "-json", "github.com/cilium/cilium")
	download.Dir, download.Env = module, append(os.Environ(), "GOFLAGS=")
	output, err := download.Output()
	if err != nil {
		return "", fmt.Errorf("fetching Cilium's sources: %w: %s", err, output)
	}
	var sources struct{ Dir string }
	if err := json.Unmarshal(output, &sources); err != nil {
		return "", err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	bpf, partial := filepath.Join(sources.Dir, "bpf"), fmt.Sprint(object, ".", os.Getpid())
	compile := exec.Command("clang", slices.Concat(flags, []string{"-I" + bpf, "-I" + filepath.Join(bpf, "include"), "-c", filepath.Join(bpf, "bpf_sock.c"), "-o", partial})...)
	if output, err := compile.CombinedOutput(); err != nil {
		return "", fmt.Errorf("compiling Cilium's bpf_sock.c, for which Debian's package clang is needed: %w: %s", err, output)
	}
	return object, os.Rename(partial, object)
}
