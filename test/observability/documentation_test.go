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

	"github.com/iam4kube/iam4kube/internal/server/podevents"
)

// TestDocumentedLogMessages: the documentation lists the messages in the source, and no
// others. It finds a call of a logger by the method's name and the constant first argument;
// that no message is anything but constant shows in the busy server's log.
func TestDocumentedLogMessages(t *testing.T) {
	levels := map[string]string{"Debug": "debug", "Info": "info", "Warn": "warn", "Error": "error"}
	have := map[string]string{}
	for _, folder := range []string{"internal", "cmd"} {
		root := filepath.Join("..", "..", folder)
		err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
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
	}
	documented := map[string]string{}
	for message, row := range rows(t, "Logs") {
		documented[message] = row[0]
	}
	if !maps.Equal(have, documented) {
		t.Errorf("in the source:\n%v\ndocumented:\n%v", have, documented)
	}
}

func TestDocumentedEventReasons(t *testing.T) {
	have := []podevents.Reason{
		podevents.Serving, podevents.BadAnnotation, podevents.NoRole, podevents.Denied,
		podevents.Unavailable, podevents.NoAccount, podevents.Ambiguous,
	}
	table := rows(t, "Events")
	for _, reason := range have {
		row := table[string(reason)]
		if want := map[bool]string{true: "Normal", false: "Warning"}[reason == podevents.Serving]; row == nil || row[0] != want {
			t.Errorf("%s: %v", reason, row)
		}
	}
	if len(table) != len(have) {
		t.Errorf("documented: %v", slices.Sorted(maps.Keys(table)))
	}
}

// TestPromQLNamesLabels: the alert expressions use labels that the metrics have.
func TestPromQLNamesLabels(t *testing.T) {
	metrics := rows(t, "Metrics")
	text := fmt.Sprint(metrics)
	for _, m := range regexp.MustCompile(`(iam4kube_[a-z_]+)\{([a-z]+)=~?"([^"]*)"`).FindAllStringSubmatch(documentation(t), -1) {
		name, label := strings.TrimSuffix(strings.TrimSuffix(m[1], "_bucket"), "_count"), m[2]
		row := metrics[name]
		if row == nil || !slices.Contains(inBackquotes(row[1]), label) {
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
