package finding

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
)

var docsFolder = filepath.Join("..", "..", "..", "docs")

// anchor is what a heading is linked by.
func anchor(heading string) string {
	text := strings.ToLower(strings.Trim(strings.TrimSpace(heading), "# "))
	text = regexp.MustCompile("[^a-z0-9 _-]").ReplaceAllString(text, "")
	return strings.ReplaceAll(text, " ", "-")
}

// Each link leads to a heading that is there, each name is there once, and the page about the
// plugin has all of them.
func TestPiecesAreDocumented(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(docsFolder, "kubectl.md"))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, p := range Pieces {
		if seen[p.Name] || p.Remedy == "" {
			t.Errorf("%+v", p)
		}
		seen[p.Name] = true
		if !strings.Contains(string(page), "| `"+p.Name+"` |") {
			t.Errorf("docs/kubectl.md has no row of %s", p.Name)
		}
		file, want, _ := strings.Cut(p.Page(), "#")
		text, err := os.ReadFile(filepath.Join(docsFolder, file))
		if err != nil {
			t.Error(err)
			continue
		}
		found := false
		for line := range strings.Lines(string(text)) {
			found = found || strings.HasPrefix(line, "#") && anchor(line) == want
		}
		if !found {
			t.Errorf("%s: %s has no heading #%s", p.Name, file, want)
		}
	}
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z0-9-]+)` \\| [^|]+ \\| \\[").FindAllStringSubmatch(string(page), -1) {
		if !seen[row[1]] {
			t.Errorf("docs/kubectl.md has a row of %s, which nothing is called", row[1])
		}
	}
}

// The reason of every event, but that of success, is about a piece.
func TestEveryReasonIsAboutAPiece(t *testing.T) {
	for _, reason := range diagnosis.Reasons {
		if f := Told(string(reason), "text"); (f.Piece == "") != (reason == diagnosis.Serving) {
			t.Errorf("%s: %+v", reason, f)
		}
	}
}

func TestWorst(t *testing.T) {
	for want, states := range map[State][]State{
		OK: {OK, Skipped}, Warning: {Warning, OK}, Unseen: {Unseen, Warning, OK}, Broken: {OK, Unseen, Broken, Warning},
	} {
		var all []Finding
		for _, s := range states {
			all = append(all, Finding{State: s})
		}
		if got := Worst(all); got != want {
			t.Errorf("%v: %s", states, got)
		}
	}
}

// People see the state by a mark, and what to do where something is wrong.
func TestPrint(t *testing.T) {
	var b strings.Builder
	p := Printer{Out: &b}
	broken := NoServer.Is("there is none")
	broken.Link = "server"
	for _, f := range []Finding{{Link: "a", State: OK, Text: "well"}, broken, {Link: "c", State: Unseen, Text: "no right"}} {
		p.Print(f)
	}
	want := "✓ a: well\n× server: there is none\n    " + NoServer.Remedy + "\n    " + docs + NoServer.Page() + "\n? c: cannot see: no right\n"
	if b.String() != want {
		t.Errorf("%s", b.String())
	}
}
