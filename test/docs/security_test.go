package docs

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/iam4kube/iam4kube/test/checkout"
)

// TestNamedTestsExist: a claim that names a test has one.
func TestNamedTestsExist(t *testing.T) {
	declared := map[string]bool{}
	err := filepath.WalkDir(checkout.Path(), func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllSubmatch(source, -1) {
			declared[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(Text(t, "security.md"), -1)
	if len(named) == 0 {
		t.Error("none is named")
	}
	for _, m := range named {
		if !declared[m[1]] {
			t.Errorf("there is no %s", m[1])
		}
	}
}
