// Package job is what the host and the init of a virtual machine have agreed on.
package job

const (
	// File is where the initramfs has the Job, ModulesDir where it has a folder with the
	// modules of its kernel.
	File       = "/job.json"
	ModulesDir = "/lib/modules"
	// Tag is that of the host's file system.
	Tag = "host"
	// Results is the device that takes each Result, as JSON in a line of its own.
	Results = "/dev/ttyS1"
)

// Job is what init does.
type Job struct {
	// Modules are what the root file system needs, files in the order in which they are
	// loaded.
	Modules []string
	Env     []string
	Tests   []Test
}

// Test is a test binary of the host.
type Test struct {
	Package, Dir string
	Command      []string
}

// Result of a Test that has ended. The first is that of the boot: it has the kernel's release
// for a Package.
type Result struct {
	Package, Err string
	Seconds      float64
}
