// Package buildinfo says what a program was built from. It does not know which program
// that is.
package buildinfo

import (
	"cmp"
	"runtime/debug"
)

// Set by the linker (-X), see Makefile and Dockerfile.
var version, revision string

// Version is that of the release.
func Version() string { return cmp.Or(version, "unreleased") }

// Revision is the commit, of the linker or else of Go's own stamp.
func Revision() string {
	const unknown = "unknown"
	if revision != "" && revision != unknown {
		return revision
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return unknown
}

// UserAgent is what a client of this name and version calls itself to servers (RFC 9110,
// section 10.1.5).
func UserAgent(name string) string { return name + "/" + Version() }
