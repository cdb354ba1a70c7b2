package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

var (
	// rootModules are what the root file system of the machine needs.
	rootModules = []string{"virtio_pci", "9pnet_virtio", "9p", "overlay"}
	// netModules and all those in netFolders are what the kernel loads by itself as the tests
	// make links and rules.
	netModules = []string{"veth"}
	netFolders = []string{"net/bridge", "net/netfilter", "net/ipv4/netfilter", "net/ipv6/netfilter"}
)

// pick puts the image of an unpacked package, and of its modules those that the machine may
// need, into a folder: of 6.1 these are 262, 10 of 300 MB.
func pick(ctx context.Context, unpacked, dir string) error {
	if _, err := os.Stat(modulesIn(unpacked, "")); errors.Is(err, os.ErrNotExist) {
		// So it is in newer packages, and modprobe looks into lib alone.
		if err := os.Symlink("usr/lib", filepath.Join(unpacked, "lib")); err != nil {
			return err
		}
	}
	release, err := release(unpacked)
	if err != nil {
		return err
	}
	from, to := modulesIn(unpacked, release), modulesIn(dir, release)
	if _, err := output(exec.CommandContext(ctx, "depmod", "--basedir", unpacked, release)); err != nil {
		return err
	}
	wanted, err := netFilterModules(from)
	if err != nil {
		return err
	}
	files, err := loads(ctx, unpacked, release, slices.Concat(rootModules, netModules, wanted))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	for _, file := range files {
		if err := copyModule(ctx, file, to); err != nil {
			return err
		}
	}
	for _, name := range []string{"modules.builtin", "modules.builtin.modinfo", "modules.order"} {
		if err := copyFile(filepath.Join(from, name), filepath.Join(to, name)); err != nil {
			return err
		}
	}
	if _, err := output(exec.CommandContext(ctx, "depmod", "--basedir", dir, release)); err != nil {
		return err
	}
	return copyFile(filepath.Join(unpacked, "boot", "vmlinuz-"+release), filepath.Join(dir, "vmlinuz"))
}

// netFilterModules are the names of all modules in netFolders.
func netFilterModules(dir string) (names []string, err error) {
	for _, folder := range netFolders {
		err := filepath.WalkDir(filepath.Join(dir, "kernel", folder), func(path string, _ fs.DirEntry, err error) error {
			if name, _, isModule := strings.Cut(filepath.Base(path), ".ko"); isModule {
				names = append(names, name)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return names, nil
}

// loads are the files that modprobe would load for these modules, in order.
func loads(ctx context.Context, dir, release string, modules []string) (files []string, err error) {
	arguments := []string{"--config", "/dev/null", "--dirname", dir, "--set-version", release, "--show-depends", "--all"}
	shown, err := output(exec.CommandContext(ctx, "modprobe", append(arguments, modules...)...))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(shown)) {
		words := strings.Fields(line)
		// Others are built in, and several modules may need one.
		if len(words) >= 2 && words[0] == "insmod" && !slices.Contains(files, words[1]) {
			files = append(files, words[1])
		}
	}
	return files, nil
}

// copyModule copies a module into a folder, uncompressed: not each kernel that has them
// compressed can read them so by itself.
func copyModule(ctx context.Context, file, to string) error {
	name := filepath.Base(file)
	switch extension := filepath.Ext(name); extension {
	case ".ko":
		return copyFile(file, filepath.Join(to, name))
	case ".xz":
		content, err := output(exec.CommandContext(ctx, "xz", "--decompress", "--stdout", file))
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, strings.TrimSuffix(name, extension)), content, 0o644)
	default:
		return fmt.Errorf("%s: compressed in a way that is not known here", file)
	}
}

func copyFile(from, to string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, content, 0o644)
}
