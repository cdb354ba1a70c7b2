package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/iam4kube/iam4kube/test/kernels/job"
)

// timeout is for a machine that hangs, after testTimeout for each of three packages.
const timeout = 150 * time.Minute

// commandLine of the kernel. The clock is the host's, which is cheap to read, and steady,
// although the kernel mistrusts it under emulation.
const commandLine = "console=ttyS0 panic=-1 loglevel=4 mitigations=off clocksource=tsc tsc=reliable"

// boot runs the tests on a machine with this kernel, whose console goes to out, and returns
// their results when it is switched off.
func boot(ctx context.Context, k *kernel, init string, j job.Job, out io.Writer) ([]job.Result, error) {
	dir, err := os.MkdirTemp("", "iam4kube-kernels-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	initramfs, results := filepath.Join(dir, "initramfs"), filepath.Join(dir, "results")
	if err := writeInitramfs(ctx, initramfs, init, k, j); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("the machine was still running after %s", timeout))
	defer cancel()
	qemu := exec.CommandContext(ctx, "qemu-system-x86_64", arguments(k, initramfs, results)...)
	qemu.Stdout, qemu.Stderr = &console{out: out}, out
	qemu.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig follows the thread.
	defer runtime.UnlockOSThread()
	err = qemu.Run()
	if err != nil {
		err = errors.Join(fmt.Errorf("qemu: %w", err), context.Cause(ctx))
	}
	have, unread := read(results)
	return have, errors.Join(err, unread)
}

func arguments(k *kernel, initramfs, results string) []string {
	return []string{
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-nic", "none",
		"-accel", "tcg,thread=multi", "-cpu", "max,la57=off", "-smp", "2", "-m", "3G",
		"-kernel", k.image(), "-initrd", initramfs, "-append", commandLine,
		"-serial", "stdio", "-serial", "file:" + results,
		"-virtfs", "local,path=/,mount_tag=" + job.Tag + ",security_model=none,readonly=on,multidevs=remap",
	}
}

// read reads a result from each line. Serial lines end as those of a terminal.
func read(path string) (results []job.Result, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	decoder := json.NewDecoder(file)
	for decoder.More() {
		var r job.Result
		if err := decoder.Decode(&r); err != nil {
			return results, fmt.Errorf("reading the results: %w", err)
		}
		results = append(results, r)
	}
	return results, nil
}

// console writes what a terminal gets as lines of a file.
type console struct{ out io.Writer }

func (c *console) Write(p []byte) (int, error) {
	_, err := c.out.Write(bytes.ReplaceAll(p, []byte("\r"), nil))
	return len(p), err
}
