package controlplane

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/iam4kube/iam4kube/test/checkout"
	"github.com/iam4kube/iam4kube/test/controlplane/progress"
)

// CacheEnv names the environment variable that moves the built programs to another
// folder than iam4kube below os.UserCacheDir.
const CacheEnv = "IAM4KUBE_TEST_CACHE"

// VersionEnv names the environment variable that has Start run the API server of an older Kubernetes,
// by its minor version, for example 1.31. All else stays.
const VersionEnv = "IAM4KUBE_TEST_KUBERNETES"

// buildModule is a module below test/build and the programs that it becomes. All programs
// of a module are names of one binary.
type buildModule struct {
	module   string
	programs []string
	ldflags  string
	// main is the package to compile, of a module that has none itself.
	main string
}

var (
	buildModules = []buildModule{
		{module: "etcd", programs: []string{"etcd"}},
		{
			module:   "kubernetes",
			programs: []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"},
			// What nodes and `kubectl version` say. As in its go.mod.
			ldflags: "-X k8s.io/component-base/version.gitVersion=v1.37.2",
		},
	}
	// olderModules are API servers by their minor versions. As in their go.mod.
	olderModules = map[string][]buildModule{"1.31": older("1.31", "v1.31.14"), "1.34": older("1.34", "v1.34.4")}

	certManagerModules   = []buildModule{{module: "certmanager", programs: []string{"certmanager"}}}
	networkPolicyModules = []buildModule{{module: "networkpolicy", programs: []string{"networkpolicy"}}}
	helmModules          = []buildModule{
		{
			module: "helm", programs: []string{"helm3"}, main: "helm.sh/helm/v3/cmd/helm",
			// As its own build does: charts are rendered for this Kubernetes where there is no cluster.
			ldflags: "-X helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor=1 -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor=37 " +
				"-X helm.sh/helm/v3/pkg/lint/rules.k8sVersionMajor=1 -X helm.sh/helm/v3/pkg/lint/rules.k8sVersionMinor=37",
		},
		{module: "helm", programs: []string{"helm4"}, main: "helm.sh/helm/v4/cmd/helm"},
	}
)

func older(minor, version string) []buildModule {
	return []buildModule{{
		module: "kubernetes" + minor, programs: []string{"kube-apiserver"}, main: "k8s.io/kubernetes/cmd/kube-apiserver",
		ldflags: "-X k8s.io/component-base/version.gitVersion=" + version,
	}}
}

// Build makes sure that etcd and kube-apiserver are built and returns the folder that
// holds them. The first build takes many minutes and tells on stderr where it is;
// afterwards Build only looks whether the folder is there. Processes that build at the
// same time wait for the first of them.
func Build(ctx context.Context) (binDir string, err error) {
	return build(ctx, "controlplane", buildModules)
}

// BuildAPIServer makes sure, as Build does, that the API server of VersionEnv is built, and returns the
// program.
func BuildAPIServer(ctx context.Context) (program string, err error) {
	version := os.Getenv(VersionEnv)
	if version == "" {
		binDir, err := Build(ctx)
		return filepath.Join(binDir, "kube-apiserver"), err
	}
	modules, ok := olderModules[version]
	if !ok {
		return "", fmt.Errorf("%s=%s: want one of %q", VersionEnv, version, slices.Sorted(maps.Keys(olderModules)))
	}
	binDir, err := build(ctx, "kubernetes"+version, modules)
	return filepath.Join(binDir, "kube-apiserver"), err
}

// BuildCertManager makes sure, as Build does, that cert-manager's controllers are built, and
// returns the program and the folder of its CRDs.
func BuildCertManager(ctx context.Context) (program, crds string, err error) {
	binDir, err := build(ctx, "certmanager", certManagerModules)
	if err != nil {
		return "", "", err
	}
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", "github.com/cert-manager/cert-manager")
	cmd.Dir = checkout.Path("test", "build", "certmanager")
	output, err := cmd.Output()
	if err != nil {
		return "", "", fmt.Errorf("looking for cert-manager's CRDs: %w", err)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(output, &module); err != nil {
		return "", "", err
	}
	return filepath.Join(binDir, "certmanager"), filepath.Join(module.Dir, "deploy", "crds"), nil
}

// BuildNetworkPolicy makes sure, as Build does, that what enforces NetworkPolicies on a node is
// built, and returns the program.
func BuildNetworkPolicy(ctx context.Context) (program string, err error) {
	binDir, err := build(ctx, "networkpolicy", networkPolicyModules)
	return filepath.Join(binDir, "networkpolicy"), err
}

// BuildHelm makes sure, as Build does, that Helm 3 and Helm 4 are built, and returns the programs.
func BuildHelm(ctx context.Context) (programs []string, err error) {
	binDir, err := build(ctx, "helm", helmModules)
	for _, m := range helmModules {
		programs = append(programs, filepath.Join(binDir, m.programs[0]))
	}
	return programs, err
}

func build(ctx context.Context, name string, modules []buildModule) (binDir string, err error) {
	sources := checkout.Path("test", "build")
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	key, err := buildKey(sources, name, modules)
	if err != nil {
		return "", err
	}
	binDir = filepath.Join(cache, key)
	if built(binDir) {
		return binDir, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	unlock, err := Lock(ctx, filepath.Join(cache, "lock"), os.Stderr)
	if err != nil {
		return "", err
	}
	defer unlock()
	if built(binDir) {
		return binDir, nil
	}
	return binDir, buildAll(ctx, sources, binDir, modules, os.Stderr)
}

func built(binDir string) bool {
	_, err := os.Stat(binDir)
	return err == nil
}

// CacheDir is the folder of what is built for tests and stays, see CacheEnv.
func CacheDir() (string, error) {
	if dir := os.Getenv(CacheEnv); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no folder for the built programs, set %s: %w", CacheEnv, err)
	}
	return filepath.Join(dir, "iam4kube"), nil
}

// buildKey changes whenever the programs would: with the modules' files and with Go.
func buildKey(sources, name string, modules []buildModule) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	for _, m := range modules {
		fmt.Fprintln(h, m.module, m.programs, m.ldflags)
		files := []string{"go.mod", "go.sum", "main.go"}
		if m.main != "" {
			files = files[:2]
		}
		for _, file := range files {
			content, err := os.ReadFile(filepath.Join(sources, m.module, file))
			if err != nil {
				return "", err
			}
			fmt.Fprintln(h, file, len(content))
			h.Write(content)
		}
	}
	return fmt.Sprintf("%s-%x", name, h.Sum(nil)[:8]), nil
}

// Lock holds an exclusive lock on a file, which the kernel gives up for a process that
// dies.
func Lock(ctx context.Context, path string, progress io.Writer) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	told := false
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("locking %s: %w", path, err)
		}
		if !told {
			fmt.Fprintln(progress, "controlplane: another process is building, waiting for it")
			told = true
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("waiting for another build: %w", ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// buildAll fills a folder beside binDir and renames it when it is complete, so that
// binDir is never half there.
func buildAll(ctx context.Context, sources, binDir string, modules []buildModule, progress io.Writer) error {
	// Under the lock nobody else has one, so what is there was left by a killed build.
	partial := filepath.Join(filepath.Dir(binDir), "partial")
	if err := os.RemoveAll(partial); err != nil {
		return err
	}
	if err := os.Mkdir(partial, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(partial)
	for _, m := range modules {
		out := filepath.Join(partial, m.programs[0])
		if err := compile(ctx, sources, m, out, progress); err != nil {
			return fmt.Errorf("building %s: %w", m.module, err)
		}
		for _, name := range m.programs[1:] {
			if err := os.Symlink(m.programs[0], filepath.Join(partial, name)); err != nil {
				return err
			}
		}
	}
	return os.Rename(partial, binDir)
}

// compile runs go build -v, whose lines name the packages as they are compiled. The flags are
// those of `make build`, so that go's cache has Kubernetes' client for all who use it.
func compile(ctx context.Context, sources string, m buildModule, out string, output io.Writer) error {
	start := time.Now()
	say := func(text string) {
		fmt.Fprintf(output, "controlplane: building %s: %s, %s\n", m.module, time.Since(start).Round(time.Second), text)
	}
	fmt.Fprintf(output, "controlplane: building %s\n", m.module)
	flags := []string{"-trimpath", "-buildvcs=false", "-ldflags=-s -w " + m.ldflags}
	command := func(args ...string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Dir = filepath.Join(sources, m.module)
		// A race-instrumented, cgo or workspace build of the caller must not change this one.
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off", "PWD="+cmd.Dir,
			"GOGC=400", "GOMEMLIMIT=3GiB") // as in Makefile
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
		return cmd
	}
	main := cmp.Or(m.main, ".")
	// It takes seconds, and as long as the download of the modules.
	list, packages, newest := command(append(append([]string{"list", "-deps", "-json=" + progress.Fields}, flags...), main)...), bytes.Buffer{}, "reading the module"
	list.Stdout = &packages
	err := follow(list, func(line string) { newest = strings.TrimPrefix(line, "go: ") }, func() { say(newest) })
	if err != nil {
		return err
	}
	building, err := progress.New(&packages, runtime.GOMAXPROCS(0))
	if err != nil {
		return err
	}
	began := time.Now()
	build := command(append(append([]string{"build", "-v"}, flags...), "-o", out, main)...)
	if err := follow(build, building.Line, func() { say(building.Text(time.Since(began))) }); err != nil {
		return err
	}
	fmt.Fprintf(output, "controlplane: %s built in %s\n", m.module, time.Since(start).Round(time.Second))
	return nil
}

// follow runs a command of go's, hands on the lines of its stderr, and calls tell every ten
// seconds. The last lines are the compiler's if it fails.
func follow(cmd *exec.Cmd, line func(string), tell func()) error {
	output, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	runtime.LockOSThread() // Pdeathsig follows the thread, see startProcess.
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return err
	}
	lines := make(chan string)
	go func() {
		defer close(lines)
		for scanner := bufio.NewScanner(output); scanner.Scan(); {
			lines <- scanner.Text()
		}
	}()
	ticker := time.NewTicker(10 * time.Second)
	defer ticker.Stop()
	const keep = 20
	var last []string
	for {
		select {
		case text, ok := <-lines:
			if ok {
				line(text)
				last = append(last, text)
				last = last[max(0, len(last)-keep):]
				continue
			}
			if err := cmd.Wait(); err != nil {
				return fmt.Errorf("%w\n%s", err, strings.Join(last, "\n"))
			}
			return nil
		case <-ticker.C:
			tell()
		}
	}
}
