package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/iam4kube/iam4kube/test/controlplane"
)

// kernel is what a machine needs of one of Debian's, in a folder that stays: its image, and
// those of its modules that the tests may use. It is not installed.
type kernel struct {
	// name is a suite of Debian, whose newest kernel it is, or SUITE/PACKAGE for a package
	// that depends on it.
	name, dir string
	// release is what uname calls it.
	release string
}

func (k *kernel) image() string { return filepath.Join(k.dir, "vmlinuz") }

// modules is the folder of its modules, as depmod and modprobe expect one.
func (k *kernel) modules() string { return modulesIn(k.dir, k.release) }

func modulesIn(dir, release string) string { return filepath.Join(dir, "lib", "modules", release) }

// fetch returns a kernel. The first time it is downloaded with apt, from the mirrors that this
// machine uses.
func fetch(ctx context.Context, cache, name string) (*kernel, error) {
	k := &kernel{name: name, dir: filepath.Join(cache, "kernels", strings.ReplaceAll(name, "/", "-"))}
	if err := os.MkdirAll(filepath.Dir(k.dir), 0o755); err != nil {
		return nil, err
	}
	unlock, err := controlplane.Lock(ctx, k.dir+".lock", os.Stderr)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := os.Stat(k.dir); errors.Is(err, os.ErrNotExist) {
		// What is there under the lock was left by a killed process.
		partial := k.dir + ".partial"
		err := errors.Join(os.RemoveAll(partial), os.MkdirAll(partial, 0o755))
		if err == nil {
			err = download(ctx, name, partial)
		}
		if err == nil {
			err = os.Rename(partial, k.dir)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("fetching the kernel of %s: %w", name, err), os.RemoveAll(partial))
		}
	}
	k.release, err = release(k.dir)
	return k, err
}

// release is the name of the only folder of modules.
func release(dir string) (string, error) {
	entries, err := os.ReadDir(modulesIn(dir, ""))
	if err != nil {
		return "", err
	}
	if len(entries) != 1 {
		return "", fmt.Errorf("%s has %d kernels, want 1", dir, len(entries))
	}
	return entries[0].Name(), nil
}

// download makes of a package the folder of a kernel.
func download(ctx context.Context, name, dir string) error {
	suite, meta, named := strings.Cut(name, "/")
	if !named {
		meta = "linux-image-amd64"
	}
	apt, err := newApt(ctx, suite, filepath.Join(dir, "apt"))
	if err != nil {
		return err
	}
	if _, err := apt.run(ctx, "apt-get", "update", "-q"); err != nil {
		return err
	}
	// The package of this name is empty, and depends on the newest kernel.
	depends, err := apt.run(ctx, "apt-cache", "depends", meta)
	if err != nil {
		return err
	}
	_, image, _ := strings.Cut(string(depends), "Depends: ")
	image, _, _ = strings.Cut(image, "\n")
	if _, err := apt.run(ctx, "apt-get", "download", "-q", image); err != nil {
		return err
	}
	packages, err := filepath.Glob(filepath.Join(apt.dir, "*.deb"))
	if err != nil {
		return err
	}
	if len(packages) != 1 {
		return fmt.Errorf("apt-get download %s left %q, want one package", image, packages)
	}
	unpacked := filepath.Join(apt.dir, "unpacked")
	if _, err := output(exec.CommandContext(ctx, "dpkg-deb", "--extract", packages[0], unpacked)); err != nil {
		return err
	}
	if err := pick(ctx, unpacked, dir); err != nil {
		return err
	}
	return os.RemoveAll(apt.dir)
}

// apt is one that knows a single suite. That of the machine does not learn of it.
type apt struct {
	dir     string
	options []string
}

func newApt(ctx context.Context, suite, dir string) (*apt, error) {
	mirrors, err := output(exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)",
		"Created-By: Packages", "Origin: Debian", "Component: main"))
	if err != nil {
		return nil, err
	}
	of := map[string]string{}
	for line := range strings.Lines(string(mirrors)) {
		label, uri, _ := strings.Cut(strings.TrimSpace(line), " ")
		of[label] = uri
	}
	const source = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n"
	var sources strings.Builder
	for label, name := range map[string]string{"Debian": suite, "Debian-Security": suite + "-security"} {
		if of[label] == "" {
			return nil, fmt.Errorf("apt knows no mirror of %s here: apt-get update tells it what its sources are", label)
		}
		fmt.Fprintf(&sources, source, of[label], name)
	}
	a := &apt{dir: dir, options: []string{
		"-o", "Dir::Etc::sourcelist=" + filepath.Join(dir, "sources.list"), "-o", "Dir::Etc::sourceparts=-",
		"-o", "Dir::State::lists=" + filepath.Join(dir, "lists"), "-o", "Dir::Cache=" + filepath.Join(dir, "cache"),
		"-o", "APT::Architecture=amd64", "-o", "APT::Sandbox::User=",
	}}
	return a, errors.Join(
		os.MkdirAll(filepath.Join(dir, "lists", "partial"), 0o755),
		os.MkdirAll(filepath.Join(dir, "cache", "archives", "partial"), 0o755),
		os.WriteFile(filepath.Join(dir, "sources.list"), []byte(sources.String()), 0o644),
	)
}

func (a *apt) run(ctx context.Context, name string, arguments ...string) ([]byte, error) {
	command := exec.CommandContext(ctx, name, append(a.options, arguments...)...)
	command.Dir = a.dir
	return output(command)
}

// output is what a command prints, or an error that says what it complained of.
func output(command *exec.Cmd) ([]byte, error) {
	var failure bytes.Buffer
	command.Stderr = &failure
	out, err := command.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s%s", strings.Join(command.Args, " "), err, out, failure.Bytes())
	}
	return out, nil
}
