package docs

import (
	"cmp"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/iam4kube/iam4kube/test/checkout"
)

// Variable stands in a page for what differs from one message to the next.
const Variable = "…"

var (
	verb     = regexp.MustCompile(`%[+#]?(\.\d+)?[a-z]`)
	inQuotes = regexp.MustCompile(`%(\.\d+)?q`)
	prose    = regexp.MustCompile(`\p{L}{2,}[,;:]?\s+\p{L}+`)
	// notProse are packages whose texts are rules of nft or lines of a protocol, or cannot come about,
	// and the plugin of kubectl, whose texts have a name, a remedy and a link each, and a page of their own.
	notProse = []string{"ruleset", "logging", "listener", "kubectl-iam4kube"}
)

// Texts returns the texts of two words or more in the Go files of folders and below, as users
// see them: with Variable for what is filled in. Left out are log messages, the help of metrics
// and flags, what is only compared with, and what tells of a mistake in the program (panics, %T).
func Texts(t testing.TB, folders ...string) []string {
	t.Helper()
	var all []string
	for _, folder := range folders {
		err := filepath.WalkDir(checkout.Path(folder), func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() && slices.Contains(notProse, entry.Name()) {
				return fs.SkipDir
			}
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				return err
			}
			var logged ast.Expr
			ast.Inspect(file, func(n ast.Node) bool {
				expression, ok := n.(ast.Expr)
				if !ok || n == logged {
					return n != logged && !isForOthers(n)
				}
				logged = cmp.Or(logMessage(n), logged)
				text, isText := textOf(expression)
				if text = strings.TrimSpace(text); isText && prose.MatchString(text) && !strings.Contains(text, "%T") {
					all = append(all, text)
				}
				return !isText && !isForOthers(n)
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// textOf puts a sum together that has a literal in it.
func textOf(e ast.Expr) (text string, hasLiteral bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		text, err := strconv.Unquote(e.Value)
		text = inQuotes.ReplaceAllString(text, `"`+Variable+`"`)
		return verb.ReplaceAllString(text, Variable), err == nil && e.Kind == token.STRING
	case *ast.BinaryExpr:
		left, l := textOf(e.X)
		right, r := textOf(e.Y)
		return left + right, (l || r) && e.Op == token.ADD
	}
	return Variable, false
}

// logMessage is the message of a call of a logger, which the programs' pages have.
func logMessage(n ast.Node) ast.Expr {
	if call, ok := n.(*ast.CallExpr); ok && len(call.Args) > 0 {
		if f, ok := call.Fun.(*ast.SelectorExpr); ok && slices.Contains([]string{"Debug", "Info", "Warn", "Error"}, f.Sel.Name) {
			return call.Args[0]
		}
	}
	return nil
}

// isForOthers knows the places of texts that no user gets as the reason of a failure.
func isForOthers(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.FuncDecl:
		return n.Name.Name == "String"
	case *ast.KeyValueExpr:
		key, ok := n.Key.(*ast.Ident)
		return ok && key.Name == "Help"
	case *ast.CallExpr:
		switch f := n.Fun.(type) {
		case *ast.Ident:
			return f.Name == "panic"
		case *ast.SelectorExpr:
			of, ok := f.X.(*ast.Ident)
			return f.Sel.Name == "NewDesc" || f.Sel.Name == "Fprintf" || ok && (of.Name == "strings" || of.Name == "f") // f: a set of flags
		}
	}
	return false
}
