package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/iam4kube/iam4kube/internal/server/audit"
	"github.com/iam4kube/iam4kube/test/checkout"
)

const auditPage = "audit.md"

// TestAuditSchema: the page has the fields, events and kinds that records have, and no others.
func TestAuditSchema(t *testing.T) {
	var fields []string
	for field := range reflect.TypeFor[audit.Record]().Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		fields = append(fields, name)
	}
	same(t, "fields", firstCells(t, "Fields"), fields)
	var events []string
	for _, event := range audit.Events {
		events = append(events, string(event))
	}
	same(t, "events", firstCells(t, "Events"), events)
	// Of what is missing yet, one piece is a denial.
	kinds := append(constants(t, "Refusal", "internal", "server", "diagnosis", "diagnosis.go"), "single-pod")
	kinds = append(kinds, constants(t, "refusalKind", "internal", "server", "metadata", "log.go")...)
	slices.Sort(kinds)
	same(t, "kinds", firstCells(t, "Kinds"), slices.Compact(kinds))
	if !strings.Contains(Text(t, auditPage), "`"+audit.Schema+"`") {
		t.Errorf("the schema is %s", audit.Schema)
	}
}

func firstCells(t *testing.T, section string) (all []string) {
	t.Helper()
	for cell := range maps.Keys(Rows(t, auditPage, section)) {
		all = append(all, InBackquotes("`"+cell+"`")...)
	}
	return all
}

func same(t *testing.T, what string, documented, have []string) {
	t.Helper()
	slices.Sort(documented)
	slices.Sort(have)
	if len(have) < 4 || !slices.Equal(documented, have) {
		t.Errorf("%s: documented %q, there are %q", what, documented, have)
	}
}

// constants are the values of a file's constants of this type.
func constants(t *testing.T, name string, path ...string) (values []string) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), checkout.Path(path...), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if of, ok := spec.Type.(*ast.Ident); ok && of.Name == name && len(spec.Values) == 1 {
			value, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			values = append(values, value)
		}
		return true
	})
	return values
}
