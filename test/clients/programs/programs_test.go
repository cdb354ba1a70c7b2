package programs

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// What the programs need is installed by `make test-tools`, and nothing else is.
func TestToolsAreWhatProgramsNeed(t *testing.T) {
	var packages, npm []string
	for _, p := range All {
		packages, npm = append(packages, p.Packages...), append(npm, p.NPM...)
	}
	makefile := regexp.MustCompile(`(?s)CLIENT_PACKAGES := (.*?[^\\])\n`).FindSubmatch(read(t, "../../../Makefile"))
	if makefile == nil {
		t.Fatal("the Makefile names no CLIENT_PACKAGES")
	}
	wantSame(t, "CLIENT_PACKAGES", strings.Fields(strings.ReplaceAll(string(makefile[1]), "\\\n", " ")), packages)

	var manifest struct{ Dependencies, OptionalDependencies map[string]string }
	if err := json.Unmarshal(read(t, "../js/package.json"), &manifest); err != nil {
		t.Fatal(err)
	}
	var dependencies []string
	for _, of := range []map[string]string{manifest.Dependencies, manifest.OptionalDependencies} {
		for name := range of {
			dependencies = append(dependencies, name)
		}
	}
	wantSame(t, "js/package.json", dependencies, npm)
}

func wantSame(t *testing.T, where string, has, needed []string) {
	t.Helper()
	for _, list := range []*[]string{&has, &needed} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	if !slices.Equal(has, needed) {
		t.Errorf("%s has %v, want %v", where, has, needed)
	}
}

// The files that a program names are all that it has, and docs/clients.md tells of it.
func TestEveryProgramIsThereAndInTheDocs(t *testing.T) {
	docs := string(read(t, "../../../docs/clients.md"))
	for _, p := range All {
		for _, file := range p.Files {
			read(t, filepath.Join("..", file))
			if !slices.Contains(p.Command, file) {
				t.Errorf("%s: %s is not in the command %q", p.Name, file, p.Command)
			}
		}
		if (p.Build == "") == (len(p.Command) == 0) {
			t.Errorf("%s has to have either a command or a folder to build", p.Name)
		}
		if p.Build != "" {
			read(t, filepath.Join("..", "..", "..", p.Build, "main.go"))
		}
		row := regexp.MustCompile(`(?m)^\| ` + "`" + p.Name + "`" + ` \| ` + regexp.QuoteMeta(p.Language+" | "+p.CodeBase+" |") + `.* \| ` + string(p.Container) + ` \|$`)
		if !row.MatchString(docs) {
			t.Errorf("docs/clients.md has no row for %s, %s, %s, container credentials: %s", p.Name, p.Language, p.CodeBase, p.Container)
		}
	}
}

func TestProgramsAreOfEnoughOrigins(t *testing.T) {
	for of, c := range map[string]struct {
		counts               func(Program) bool
		codeBases, languages int
	}{
		"metadata API":          {func(Program) bool { return true }, 12, 6},
		"container credentials": {func(p Program) bool { return p.Container.Asks() }, 15, 8},
	} {
		codeBases, languages := map[string]bool{}, map[string]bool{}
		for _, p := range All {
			if c.counts(p) {
				codeBases[p.CodeBase], languages[p.Language] = true, true
			}
		}
		t.Logf("%s: %d code bases in %d languages", of, len(codeBases), len(languages))
		if len(codeBases) < c.codeBases || len(languages) < c.languages {
			t.Errorf("%s: %d code bases in %d languages, want %d in %d", of, len(codeBases), len(languages), c.codeBases, c.languages)
		}
	}
}

func TestRead(t *testing.T) {
	const key = "ASIAABCDEFGHIJKLMNOP"
	for name, c := range map[string]struct {
		program Program
		output  string
		want    Found
		fails   bool
	}{
		"JSON after a warning": {
			output: "(node:1) NOTE: old\n{\"AccessKeyId\": \"a\", \"SecretAccessKey\": \"b\", \"SessionToken\": \"c\"}\n",
			want:   Found{AccessKeyId: "a", SecretAccessKey: "b", SessionToken: "c"},
		},
		"AWS CLI": {
			program: Program{Region: true},
			output:  "{\n  \"AccessKeyId\": \"a\",\n  \"SessionToken\": \"c\"\n}\n    region                eu-west-1             imds    \n",
			want:    Found{AccessKeyId: "a", SessionToken: "c", Region: "eu-west-1"},
		},
		"no region":               {program: Program{Region: true}, output: `{"AccessKeyId": "a", "SessionToken": "c"}`, fails: true},
		"no token":                {output: `{"AccessKeyId": "a"}`, fails: true},
		"null":                    {output: `{"AccessKeyId": null, "SessionToken": null}`, fails: true},
		"half a document":         {output: `{"AccessKeyId": "a"`, fails: true},
		"nothing":                 {fails: true},
		"list of the fake S3":     {program: Program{Signs: true}, output: "2026-01-02 15:04  0  s3://bucket/caller-" + key + "\n", want: Found{AccessKeyId: key}},
		"key, but not from there": {program: Program{Signs: true}, output: "no access for " + key, fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := c.program.Read([]byte(c.output))
			if (err != nil) != c.fails {
				t.Fatalf("got %+v, %v", f, err)
			}
			if !c.fails && (f.AccessKeyId != c.want.AccessKeyId || f.SecretAccessKey != c.want.SecretAccessKey ||
				f.SessionToken != c.want.SessionToken || f.Region != c.want.Region) {
				t.Errorf("got %+v, want %+v", f, c.want)
			}
		})
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}
