//go:build linux

package bpf

import (
	"os"
	"path/filepath"
	"testing"
)

// A folder that somebody named by mistake keeps what is in it.
func TestRemoveTakesPinsAlone(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"report.txt", programPrefix + "connect4", stateMap} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if removed, err := New(dir).Remove(); removed || err != nil {
		t.Errorf("removed %v, %v", removed, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 3 {
		t.Errorf("left are %v, %v", left, err)
	}
	for name, want := range map[string]bool{programPrefix + "connect4": true, marksMap: true, countersMap: true, stateMap: true, "report.txt": false, "tc": false, "cilium_calls": false} {
		if isOurs(name) != want {
			t.Errorf("%s is ours: %v", name, !want)
		}
	}
}
