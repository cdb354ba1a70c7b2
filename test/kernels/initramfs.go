package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/iam4kube/iam4kube/test/kernels/job"
)

// writeInitramfs writes the archive that the kernel unpacks: init, its job, and the modules.
// They are not read from the host, so that modprobe, which maps its index into memory, works
// like on a disk, and while the host's file system is not yet there.
func writeInitramfs(ctx context.Context, path, init string, k *kernel, j job.Job) error {
	first, err := loads(ctx, k.dir, k.release, rootModules)
	if err != nil {
		return err
	}
	for _, file := range first {
		j.Modules = append(j.Modules, filepath.Join(job.ModulesDir, k.release, filepath.Base(file)))
	}
	content, err := json.Marshal(j)
	if err != nil {
		return err
	}
	archive := &cpio{}
	archive.add(job.File, regular, content)
	if err := archive.addFile("/init", init); err != nil {
		return err
	}
	modules := filepath.Join(job.ModulesDir, k.release)
	for _, dir := range []string{"/lib", job.ModulesDir, modules} {
		archive.add(dir, directory, nil)
	}
	entries, err := os.ReadDir(k.modules())
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := archive.addFile(filepath.Join(modules, e.Name()), filepath.Join(k.modules(), e.Name())); err != nil {
			return err
		}
	}
	archive.add("/TRAILER!!!", 0, nil)
	return os.WriteFile(path, archive.Bytes(), 0o644)
}

// Modes of files in an archive, with their kind as in stat(2).
const (
	directory = 0o040755
	regular   = 0o100755
)

// cpio is an archive in the format "newc".
type cpio struct {
	bytes.Buffer
	files int
}

func (c *cpio) addFile(name, path string) error {
	content, err := os.ReadFile(path)
	if err == nil {
		c.add(name, regular, content)
	}
	return err
}

// add adds a file by the name that it will have in the machine.
func (c *cpio) add(name string, mode int, content []byte) {
	name = strings.TrimPrefix(name, "/") + "\x00"
	c.files++
	c.WriteString("070701")
	// inode, mode, UID, GID, links, time, size, four numbers of devices, size of the name, checksum
	for _, field := range []int{c.files, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0} {
		fmt.Fprintf(c, "%08x", field)
	}
	c.WriteString(name)
	c.align()
	c.Write(content)
	c.align()
}

func (c *cpio) align() {
	for c.Len()%4 != 0 {
		c.WriteByte(0)
	}
}
