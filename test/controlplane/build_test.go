package controlplane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/test/checkout"
)

func TestBuildKeyFollowsTheModules(t *testing.T) {
	sources := t.TempDir()
	for _, m := range buildModules {
		must(t, os.Mkdir(filepath.Join(sources, m.module), 0o755))
		for _, name := range []string{"go.mod", "go.sum", "main.go"} {
			must(t, os.WriteFile(filepath.Join(sources, m.module, name), []byte("one"), 0o644))
		}
	}
	key := func() string {
		key, err := buildKey(sources, "controlplane", buildModules)
		must(t, err)
		return key
	}
	before := key()
	if key() != before {
		t.Error("the key changes by itself")
	}
	must(t, os.WriteFile(filepath.Join(sources, "kubernetes", "go.sum"), []byte("two"), 0o644))
	if key() == before {
		t.Error("the key stays when go.sum changes")
	}
}

// What the modules have in common is compiled for each of them unless it is the same.
func TestModulesShareKubernetesClient(t *testing.T) {
	versions := func(folder ...string) string {
		list := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f",
			"{{with .Module}}{{.Path}} {{with .Replace}}{{.Version}}{{else}}{{.Version}}{{end}}{{end}}", "k8s.io/client-go/kubernetes")
		list.Dir, list.Env = checkout.Path(folder...), append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
		output, err := list.Output()
		must(t, err)
		lines := strings.Split(string(output), "\n")
		slices.Sort(lines)
		return strings.Join(slices.Compact(lines), "\n")
	}
	want := versions()
	for _, module := range []string{"kubernetes", "certmanager", "networkpolicy", "helm"} {
		if got := versions("test", "build", module); got != want {
			t.Errorf("test/build/%s has\n%s\nand the product\n%s\nUse `go get` and `go mod tidy` there.", module, got, want)
		}
	}
}

func TestOneBuildAtATime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	var said strings.Builder
	unlock, err := Lock(t.Context(), path, &said)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Lock(ctx, path, &said); !errors.Is(err, context.Canceled) {
		t.Errorf("locking twice: %v, want to wait until cancelled", err)
	}
	if !strings.Contains(said.String(), "another process is building") {
		t.Errorf("waiting silently, said %q", said.String())
	}
	unlock()
	unlock, err = Lock(t.Context(), path, &said)
	must(t, err)
	unlock()
}

func TestFailedBuildLeavesNothing(t *testing.T) {
	sources, cache := t.TempDir(), t.TempDir()
	must(t, os.Mkdir(filepath.Join(sources, "etcd"), 0o755))
	must(t, os.WriteFile(filepath.Join(sources, "etcd", "go.mod"), []byte("module example.com/etcd\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(sources, "etcd", "main.go"), []byte("package main\nfunc main() { undefined() }\n"), 0o644))
	var said strings.Builder
	err := buildAll(t.Context(), sources, filepath.Join(cache, "bin"), buildModules, &said)
	if err == nil || !strings.Contains(err.Error(), "undefined: undefined") {
		t.Errorf("got %v, want the compiler's message", err)
	}
	if left, err := os.ReadDir(cache); err != nil || len(left) != 0 {
		t.Errorf("a failed build left %v, %v", left, err)
	}
}

// endless makes TestProcessesEndWithTheTestProcess wait to be killed.
const endless = "IAM4KUBE_TEST_ENDLESS"

func TestProcessesEndWithTheTestProcess(t *testing.T) {
	if os.Getenv(endless) != "" {
		fmt.Printf("ports %d %d\n", shared.apiPort.number, shared.etcdPort.number)
		<-time.After(time.Minute)
		t.Fatal("nobody killed the test")
	}
	child := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$")
	child.Env = append(os.Environ(), endless+"=1", "TMPDIR="+t.TempDir())
	output, err := child.StdoutPipe()
	must(t, err)
	child.Stderr = os.Stderr
	must(t, child.Start())
	var api, etcd port
	if _, err := fmt.Fscanf(output, "ports %d %d\n", &api.number, &etcd.number); err != nil {
		t.Errorf("the child did not start its control plane: %v", err)
	}
	for _, p := range []port{api, etcd} {
		if !listening(p) {
			t.Errorf("nobody listens on port %d of the child", p.number)
		}
	}
	must(t, child.Process.Kill())
	_ = child.Wait() // killed, as asked
	eventually(t, "the child's processes to be gone", func() bool { return !listening(api) && !listening(etcd) })
}
