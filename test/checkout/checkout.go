// Package checkout finds the repository's own files.
package checkout

import (
	"os"
	"path/filepath"
	"sync"
)

// Path is that of a file or folder of the repository. It panics outside of a checkout.
//
// It goes by the working directory, in which make and `go test` start everything of test/: the
// compiler's knowledge of where a source file was is gone with -trimpath.
func Path(elements ...string) string {
	return filepath.Join(append([]string{top()}, elements...)...)
}

// top is found once, before a test changes the working directory of its process.
var top = sync.OnceValue(func() string {
	start, err := os.Getwd()
	if err != nil {
		panic(err)
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "test", "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			panic("the working directory " + start + " is not in a checkout of iam4kube")
		}
	}
})
