// Package docs reads the tables of docs/, so that tests can compare them with what the
// programs do.
package docs

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/iam4kube/iam4kube/test/checkout"
)

// Text returns a page of docs/.
func Text(t testing.TB, page string) string {
	t.Helper()
	text, err := os.ReadFile(checkout.Path("docs", page))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Rows returns the cells of those table rows in a section of a page whose first cell, the key
// of the result, is in backquotes.
func Rows(t testing.TB, page, section string) map[string][]string {
	t.Helper()
	_, text, found := strings.Cut(Text(t, page), "\n## "+section+"\n")
	if !found {
		t.Fatalf("no section %q", section)
	}
	text, _, _ = strings.Cut(text, "\n## ")
	all := map[string][]string{}
	for line := range strings.Lines(text) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if key, ok := strings.CutPrefix(cells[0], "`"); ok && strings.HasPrefix(line, "|") {
			all[strings.TrimSuffix(key, "`")] = cells[1:]
		}
	}
	return all
}

// InBackquotes are the parts of a cell between backquotes.
func InBackquotes(cell string) []string {
	var all []string
	for i, part := range strings.Split(cell, "`") {
		if i%2 == 1 {
			all = append(all, part)
		}
	}
	return all
}

// Blocks returns the fenced code blocks of a page that are in this language, without the
// indentation that those in lists have.
func Blocks(t testing.TB, page, language string) []string {
	t.Helper()
	var all []string
	for _, m := range regexp.MustCompile("(?ms)^( *)```"+language+"\n(.*?)^ *```$").FindAllStringSubmatch(Text(t, page), -1) {
		all = append(all, regexp.MustCompile("(?m)^"+m[1]).ReplaceAllString(m[2], ""))
	}
	return all
}

// Block is the page's only one with a text in it.
func Block(t testing.TB, page, language, with string) string {
	t.Helper()
	var found []string
	for _, block := range Blocks(t, page, language) {
		if strings.Contains(block, with) {
			found = append(found, block)
		}
	}
	if len(found) != 1 {
		t.Fatalf("docs/%s has %d blocks of %s with %q, want one", page, len(found), language, with)
	}
	return found[0]
}
