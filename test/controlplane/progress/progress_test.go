package progress

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// listed is what `go list` prints of packages whose sources have so many KB: name, KB, stale.
func listed(t *testing.T, packages ...[3]any) string {
	t.Helper()
	var list strings.Builder
	dir := t.TempDir()
	for _, p := range packages {
		file := fmt.Sprintf("%v.go", p[0])
		if err := os.WriteFile(filepath.Join(dir, file), make([]byte, p[1].(int)<<10), 0o644); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&list, "{\n\t\"ImportPath\": \"example.com/%v\", \"Dir\": %q, \"Stale\": %v, \"GoFiles\": [%q]\n}\n", p[0], dir, p[2], file)
	}
	return list.String()
}

func newBuild(t *testing.T, workers int, packages ...[3]any) *Build {
	t.Helper()
	b, err := New(strings.NewReader(listed(t, packages...)), workers)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func begin(b *Build, names ...string) {
	for _, name := range names {
		b.Line("example.com/" + name)
	}
}

// A package of 92 KB takes ten times what one of 2 KB does: each has 8 KB on top.
func TestTheRestIsWeighedByItsSources(t *testing.T) {
	b := newBuild(t, 1, [3]any{"small", 2, true}, [3]any{"large", 92, true}, [3]any{"other", 2, true}, [3]any{"main", 2, true})
	begin(b, "small")
	if got := b.Text(time.Minute); got != "1 of 4 packages" {
		t.Errorf("the first is being compiled: %q", got)
	}
	begin(b, "large")
	// 10 KB of 130, and 2.6 KB for the link.
	if got := b.Text(time.Minute); got != "2 of 4 packages, about 13 min left" {
		t.Errorf("the small one is done: %q", got)
	}
	begin(b, "other")
	if got := b.Text(11 * time.Minute); got != "3 of 4 packages, about 3 min left" {
		t.Errorf("the large one is done: %q", got)
	}
	begin(b, "main")
	if got := b.Text(12 * time.Minute); got != "4 of 4 packages, about 2 min left" {
		t.Errorf("at the link: %q", got)
	}
}

func TestWhatIsCompiledIsNotCounted(t *testing.T) {
	b := newBuild(t, 1, [3]any{"there", 1000, false}, [3]any{"one", 92, true}, [3]any{"two", 92, true})
	for _, line := range []string{"go: downloading example.com/one v1.0.0", "# example.com/one", "example.com/there"} {
		b.Line(line)
	}
	begin(b, "one")
	if got := b.Text(time.Second); got != "1 of 2 packages" {
		t.Errorf("got %q", got)
	}
}

func TestNothingIsSaidOfTheRestAtTheBeginning(t *testing.T) {
	b := newBuild(t, 2, [3]any{"a", 12, true}, [3]any{"b", 12, true}, [3]any{"c", 12, true}, [3]any{"large", 412, true})
	if got := b.Text(time.Hour); got != "0 of 4 packages" {
		t.Errorf("nothing has begun: %q", got)
	}
	begin(b, "a", "b", "c")
	if got := b.Text(time.Hour); got != "3 of 4 packages" {
		t.Errorf("20 KB of 480 are compiled: %q", got)
	}
	begin(b, "large")
	if got := b.Text(knownAfter - 1); got != "4 of 4 packages" {
		t.Errorf("too early: %q", got)
	}
	if got := b.Text(knownAfter); !strings.Contains(got, " left") {
		t.Errorf("40 KB of 480 are compiled: %q", got)
	}
}

func TestAbout(t *testing.T) {
	for d, want := range map[time.Duration]string{
		time.Millisecond: "10 s", 10 * time.Second: "10 s", 11 * time.Second: "20 s", time.Minute: "60 s",
		61 * time.Second: "2 min", 4 * time.Minute: "4 min", 90 * time.Minute: "90 min",
	} {
		if got := about(d); got != want {
			t.Errorf("%s: %q, want %q", d, got, want)
		}
	}
}

func TestAListThatEndsEarlyIsNone(t *testing.T) {
	list := listed(t, [3]any{"one", 1, true})
	if _, err := New(strings.NewReader(list[:len(list)-4]), 1); err == nil {
		t.Error("want an error")
	}
}
