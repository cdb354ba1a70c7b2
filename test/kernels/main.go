// Command kernels runs tests of what the kernel does on other kernels than the machine's own:
// Debian's, booted in QEMU on an emulated processor, so that it needs no virtualization.
//
//	kernels [-packages LIST] [-run REGEXP] KERNEL...
//
// A KERNEL is a suite of Debian, or SUITE/PACKAGE. The tests are compiled on the machine, and
// see its files; the virtual machine has no network. What is tested is the packages' business.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/iam4kube/iam4kube/test/checkout"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/kernels/job"
	"github.com/iam4kube/iam4kube/test/node"
	"github.com/iam4kube/iam4kube/test/socketlb"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	packages := flag.String("packages", "rules,inpod,ebpf", "folders of test/ with `tests`")
	run := flag.String("run", "", "run only the tests that match this `expression`")
	flag.Parse()
	if flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "kernels: want a kernel of Debian, such as bookworm")
		os.Exit(2)
	}
	if err := runAll(ctx, strings.Split(*packages, ","), *run, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "kernels:", err)
		os.Exit(1)
	}
}

const (
	// slowdown is about what an emulated processor needs in comparison with the one that
	// emulates it.
	slowdown = "10"
	// testTimeout is for a test that hangs: go prints where. A package takes ten minutes where
	// nothing else runs, and half an hour beside other jobs.
	testTimeout = "45m"
)

func runAll(ctx context.Context, packages []string, run string, kernels []string) error {
	cache, err := controlplane.CacheDir()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "iam4kube-kernels-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := compile(ctx, dir, packages); err != nil {
		return err
	}
	j := job.Job{Env: []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp",
		controlplane.CacheEnv + "=" + cache, environment.SlowdownEnv + "=" + slowdown,
	}}
	var failed []error
	var summary strings.Builder
	for _, name := range kernels {
		k, err := fetch(ctx, cache, name)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		fmt.Printf("--- %s, Linux %s\n", name, k.release)
		j.Tests = tests(dir, packages, run, k.release)
		begin := time.Now()
		results, err := boot(ctx, k, filepath.Join(dir, "init"), j, os.Stdout)
		took := time.Since(begin)
		failed = append(failed, err, judge(&summary, name, j.Tests, results), judgeClock(name, results, took))
		fmt.Fprintf(&summary, "%-10s %-26s %5.0f s\n", name, "all", took.Seconds())
	}
	fmt.Print("--- summary\n", summary.String())
	return errors.Join(failed...)
}

// newer are the tests that need a newer kernel, by package and version. The programs of the
// product need none of it, but for what docs/routing.md says of older ones.
var newer = map[string][]struct {
	major, minor int
	tests        string
	why          string
}{
	"ebpf": {
		{6, 6, "HostRouting|TestChangesByOthers|TestKilled", "links of tcx, which the tests themselves have"},
		{5, 18, "TestBesideCiliumsSocketLoadBalancing", "Cilium's refusals are EPERM there, as ours"},
		{6, 1, "TestDeadEndpointCostsAConnectionSeconds/with_one", "a socket's own TCP_USER_TIMEOUT cannot be read"},
		{6, 1, "TestWaysToReachAnAddress/.*/MPTCP", "Debian's kernel 5.10 has no MPTCP"},
		{5, 14, "TestHostNetwork", "the host's network namespace is taken for the machine's first, which that of a test is not"},
	},
}

// tests are those of packages, without those for newer kernels than a release.
func tests(dir string, packages []string, run, release string) (all []job.Test) {
	var major, minor int
	_, _ = fmt.Sscanf(release, "%d.%d", &major, &minor) // 0 is older than all
	for _, name := range packages {
		test := job.Test{
			Package: name, Dir: checkout.Path("test", name),
			Command: []string{filepath.Join(dir, name+".test"), "-test.v", "-test.run=" + run, "-test.timeout=" + testTimeout},
		}
		var skip []string
		for _, n := range newer[name] {
			if major < n.major || major == n.major && minor < n.minor {
				fmt.Printf("--- %s: left out, as they need Linux %d.%d: %s: %s\n", name, n.major, n.minor, n.tests, n.why)
				skip = append(skip, n.tests)
			}
		}
		if skip != nil {
			test.Command = append(test.Command, "-test.skip="+strings.Join(skip, "|"))
		}
		all = append(all, test)
	}
	return all
}

// compile makes the test binaries, init, and the programs that the tests run. Without the race
// detector, under which an emulated processor would be ten times slower still; `make test` has
// it.
func compile(ctx context.Context, dir string, packages []string) error {
	targets := []string{"test", "-c", "-trimpath", "-o", dir + "/"}
	for _, name := range packages {
		targets = append(targets, "./"+name)
	}
	for _, arguments := range [][]string{targets, {"build", "-trimpath", "-o", dir + "/init", "./kernels/init"}} {
		command := exec.CommandContext(ctx, "go", arguments...)
		command.Dir = checkout.Path("test")
		command.Env = append(os.Environ(), "CGO_ENABLED=0")
		if _, err := output(command); err != nil {
			return err
		}
	}
	_, program := node.Program(false)
	_, init := node.InitProgram()
	_, cilium := socketlb.Object()
	return errors.Join(program, init, cilium)
}

// judge adds a kernel's results to the summary, and says which are missing or no success.
func judge(summary io.Writer, kernel string, tests []job.Test, results []job.Result) error {
	var failed []error
	for i, r := range results {
		verdict := "ok"
		switch {
		case i == 0:
			verdict = "booted"
		case r.Err != "":
			verdict = "FAIL"
			failed = append(failed, fmt.Errorf("%s: %s: %s", kernel, r.Package, r.Err))
		}
		fmt.Fprintf(summary, "%-10s %-26s %5.0f s  %s\n", kernel, r.Package, r.Seconds, verdict)
	}
	if have := len(results) - 1; have < len(tests) {
		failed = append(failed, fmt.Errorf("%s: only %d of %d packages came to an end", kernel, max(0, have), len(tests)))
	}
	return errors.Join(failed...)
}

// judgeClock says if a kernel counted more time than there was: it takes the frequency of its
// clock from the first milliseconds of its boot, in which a busy host may not have let it run.
// Then tests that wait for a time-out say nothing.
func judgeClock(kernel string, results []job.Result, took time.Duration) error {
	counted := 0.0
	for _, r := range results {
		counted += r.Seconds
	}
	if fast := counted / took.Seconds(); fast > 1.2 {
		return fmt.Errorf("%s: its clock ran %.1f times too fast, because this machine was busy when it booted: run it again", kernel, fast)
	}
	return nil
}
