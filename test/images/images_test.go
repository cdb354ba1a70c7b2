package images

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/buildinfo"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/iam4kube/iam4kube/test/checkout"
	"github.com/iam4kube/iam4kube/test/controlplane"
)

const (
	tag = "demo"
	mib = 1 << 20
	// netAdmin is the extended attribute of `setcap cap_net_admin+ep`: version 2, effective, bit 12.
	netAdmin = "\x01\x00\x00\x02\x00\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	xattr    = "SCHILY.xattr.security.capability"
)

// file of an image.
type file struct {
	content    []byte
	capability string
}

// image is what a docker-archive file has.
type image struct {
	size   int64
	config struct {
		User       string
		Entrypoint []string
		Labels     map[string]string
	}
	files map[string]file
}

// read opens an archive as `docker save` writes it (OCI image-spec, config and layer).
func read(t *testing.T, archive string) image {
	t.Helper()
	parts := map[string][]byte{}
	each(t, must(os.Open(archive))(t), func(header *tar.Header, content []byte) { parts[header.Name] = content })
	var manifest []struct {
		Config string
		Layers []string
	}
	decode(t, parts["manifest.json"], &manifest)
	var found image
	var configuration struct{ Config any }
	configuration.Config = &found.config
	decode(t, parts[manifest[0].Config], &configuration)
	found.files = map[string]file{}
	for _, layer := range manifest[0].Layers {
		found.size += int64(len(parts[layer]))
		each(t, io.NopCloser(bytes.NewReader(parts[layer])), func(header *tar.Header, content []byte) {
			if header.Typeflag == tar.TypeReg {
				found.files[path.Join("/", header.Name)] = file{content, header.PAXRecords[xattr]}
			}
		})
	}
	return found
}

func must[T any](value T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

func decode(t *testing.T, text []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
}

func each(t *testing.T, from io.ReadCloser, do func(*tar.Header, []byte)) {
	t.Helper()
	defer from.Close()
	for reader := tar.NewReader(from); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		do(header, must(io.ReadAll(reader))(t))
	}
}

// What took minutes must not be lost to a build that is interrupted or fails.
func TestInterruptedBuildLosesNothing(t *testing.T) {
	cache := t.TempDir()
	t.Setenv(controlplane.CacheEnv, cache)
	dir := "images-" + must(key(tag))(t)
	for _, path := range []string{"images-older/server.tar", dir + "-partial/server.tar"} {
		path = filepath.Join(cache, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if _, err := Build(ctx, tag, io.Discard); !errors.Is(err, context.Canceled) {
		t.Fatalf("an interrupted build: %v", err)
	}
	archives := func() []string {
		found := must(filepath.Glob(filepath.Join(cache, "images-*", "*.tar")))(t)
		for i := range found {
			found[i] = must(filepath.Rel(cache, found[i]))(t)
		}
		slices.Sort(found)
		return found
	}
	want := []string{dir + "-partial/server.tar", "images-older/server.tar"}
	slices.Sort(want)
	if got := archives(); !slices.Equal(got, want) {
		t.Errorf("after an interrupted build: %v, want %v", got, want)
	}
	complete := filepath.Join(cache, dir)
	if err := errors.Join(os.Rename(complete+"-partial", complete), removeOthers(complete)); err != nil {
		t.Fatal(err)
	}
	if got := archives(); !slices.Equal(got, []string{dir + "/server.tar"}) {
		t.Errorf("after a complete build: %v", got)
	}
}

// The images that users build have one program each and what it needs, and nothing runs in
// them as root.
func TestImagesOfTheDockerfile(t *testing.T) {
	archives, err := Build(t.Context(), tag, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct {
		files      []string
		main, tags string
		capability string
		below      int64
	}{
		{files: []string{"/etc/ssl/certs/ca-certificates.crt", "/server"}, main: "server", below: 60 * mib},
		{files: []string{"/webhook"}, main: "webhook", below: 60 * mib},
		{files: []string{"/ip2service"}, main: "ip2service", capability: netAdmin, below: 30 * mib},
		{files: []string{"/ip2service"}, main: "ip2service", tags: "podonly", capability: netAdmin, below: 10 * mib},
	} {
		target := All()[i].Target
		t.Run(target, func(t *testing.T) {
			got := read(t, archives[i])
			var files []string
			for name := range got.files {
				files = append(files, name)
			}
			slices.Sort(files)
			program := "/" + want.main
			if !slices.Equal(files, want.files) || !slices.Equal(got.config.Entrypoint, []string{program}) || got.config.User != "65532:65532" {
				t.Errorf("files %v, entrypoint %v, user %q", files, got.config.Entrypoint, got.config.User)
			}
			if got.files[program].capability != want.capability {
				t.Errorf("the file's capability is %q, want %q", got.files[program].capability, want.capability)
			}
			for _, label := range []string{"source", "licenses", "version", "revision", "title"} {
				if got.config.Labels["org.opencontainers.image."+label] == "" {
					t.Errorf("no label org.opencontainers.image.%s", label)
				}
			}
			if got.size > want.below {
				t.Errorf("%.1f MiB, want at most %d", float64(got.size)/mib, want.below/mib)
			}
			t.Logf("%.1f MiB unpacked", float64(got.size)/mib)
			wantStatic(t, got.files[program].content)
			wantModules(t, got.files[program].content, want.main, want.tags)
			wantVersion(t, got.files[program].content, want.main)
		})
	}
}

// The Go that images are built with unless somebody says otherwise is the one that `make vuln`
// has found nothing in.
func TestDockerfileHasTheGoOfGoMod(t *testing.T) {
	of := func(file, pattern string) string {
		found := regexp.MustCompile(pattern).FindSubmatch(must(os.ReadFile(checkout.Path(file)))(t))
		if found == nil {
			t.Fatalf("%s has no %s", file, pattern)
		}
		return string(found[1])
	}
	if image, toolchain := of("Dockerfile", `(?m)^ARG GO_IMAGE=golang:([0-9.]+)`), of("go.mod", `(?m)^toolchain go(\S+)$`); image != toolchain {
		t.Errorf("the image has Go %s, the toolchain line is %s", image, toolchain)
	}
}

// wantStatic checks that a program needs no other file.
func wantStatic(t *testing.T, program []byte) {
	t.Helper()
	binary := must(elf.NewFile(bytes.NewReader(program)))(t)
	for _, header := range binary.Progs {
		if header.Type == elf.PT_INTERP {
			t.Error("the program is not static")
		}
	}
}

// wantVersion checks that the program says what the image's build arguments say.
func wantVersion(t *testing.T, program []byte, name string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, program, 0o755); err != nil {
		t.Fatal(err)
	}
	said := string(must(exec.CommandContext(t.Context(), path, "--version").Output())(t))
	if want := fmt.Sprintf("%s %s, revision %s, %s\n", name, tag, revision, runtime.Version()); said != want {
		t.Errorf("the program says %q, want %q", said, want)
	}
}

// wantModules checks that the program lists every module that it is made of, with its
// checksum: that is its bill of materials (`go version -m`).
func wantModules(t *testing.T, program []byte, main, tags string) {
	t.Helper()
	info := must(buildinfo.Read(bytes.NewReader(program)))(t)
	var got []string
	for _, module := range info.Deps {
		if module.Sum == "" {
			t.Errorf("module %s has no checksum", module.Path)
		}
		got = append(got, module.Path+" "+module.Version)
	}
	list := exec.CommandContext(t.Context(), "go", "list", "-deps", "-tags", tags, "-f", "{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}}{{end}}{{end}}", "./cmd/"+main)
	list.Dir, list.Env = checkout.Path(), append(os.Environ(), "CGO_ENABLED=0")
	want := strings.Split(strings.TrimSpace(string(must(list.Output())(t))), "\n")
	slices.Sort(got)
	slices.Sort(want)
	want = slices.DeleteFunc(slices.Compact(want), func(line string) bool { return line == "" })
	if !slices.Equal(got, want) {
		t.Errorf("modules in the program: %v\nwant %v", got, want)
	}
}
