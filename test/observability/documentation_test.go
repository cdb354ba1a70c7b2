package observability

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
	"github.com/iam4kube/iam4kube/test/docs"
)

// page is the server's.
const page = "observability.md"

// TestDocumentedLogMessages: each program's page lists the messages in its source, and no
// others. That no message is anything but constant shows in the busy server's log.
func TestDocumentedLogMessages(t *testing.T) {
	in := func(parts ...string) string { return filepath.Join(append([]string{"..", ".."}, parts...)...) }
	for page, folders := range map[string][]string{
		page: {
			in("cmd", "server"), in("internal", "server"), in("internal", "auxserver"), in("internal", "kube"), in("internal", "listener"), in("internal", "logging"), in("internal", "program"),
		},
		"routing.md": {in("cmd", "ip2service"), in("internal", "ip2service")},
		"webhook.md": {in("cmd", "webhook"), in("internal", "webhook"), in("internal", "listener")},
	} {
		have := map[string]string{}
		for _, folder := range folders {
			maps.Copy(have, messages(t, folder))
		}
		documented := map[string]string{}
		for message, row := range docs.Rows(t, page, "Logs") {
			documented[message] = row[0]
		}
		if !maps.Equal(have, documented) {
			t.Errorf("%s: in the source:\n%v\ndocumented:\n%v", page, have, documented)
		}
	}
}

// messages finds the calls of a logger below a folder, by the method's name and the
// constant first argument, and returns their levels.
func messages(t *testing.T, folder string) map[string]string {
	t.Helper()
	levels := map[string]string{"Debug": "debug", "Info": "info", "Warn": "warn", "Error": "error"}
	have := map[string]string{}
	err := filepath.WalkDir(folder, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 {
				return true
			}
			method, isMethod := call.Fun.(*ast.SelectorExpr)
			text, isText := call.Args[0].(*ast.BasicLit)
			if isMethod && isText && levels[method.Sel.Name] != "" {
				message, _ := strconv.Unquote(text.Value)
				have[message] = levels[method.Sel.Name]
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return have
}

func TestDocumentedEventReasons(t *testing.T) {
	have := diagnosis.Reasons
	table := docs.Rows(t, page, "Events")
	for _, reason := range have {
		row := table[string(reason)]
		if want := map[bool]string{true: "Normal", false: "Warning"}[reason == diagnosis.Serving]; row == nil || row[0] != want {
			t.Errorf("%s: %v", reason, row)
		}
	}
	if len(table) != len(have) {
		t.Errorf("documented: %v", slices.Sorted(maps.Keys(table)))
	}
}

// TestPromQLNamesLabels: the alert expressions use labels that the metrics have.
func TestPromQLNamesLabels(t *testing.T) {
	metrics := docs.Rows(t, page, "Metrics")
	text := fmt.Sprint(metrics)
	for _, m := range regexp.MustCompile(`(iam4kube_[a-z_]+)\{([a-z]+)=~?"([^"]*)"`).FindAllStringSubmatch(docs.Text(t, page), -1) {
		name, label := strings.TrimSuffix(strings.TrimSuffix(m[1], "_bucket"), "_count"), m[2]
		row := metrics[name]
		if row == nil || !slices.Contains(docs.InBackquotes(row[1]), label) {
			t.Errorf("%s has no label %s: %v", name, label, row)
			continue
		}
		for value := range strings.SplitSeq(strings.ReplaceAll(m[3], `\|`, "|"), "|") {
			if !strings.Contains(text, "`"+value+"`") && label != "code" {
				t.Errorf("%s has no %s %q", name, label, value)
			}
		}
	}
}
