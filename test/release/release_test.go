package release

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	spdxjson "github.com/spdx/tools-golang/json"

	"github.com/iam4kube/iam4kube/test/checkout"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/images"
)

// generate makes a pair of keys as make's comments say.
func generate(t *testing.T) (private, public string) {
	t.Helper()
	private, public = filepath.Join(t.TempDir(), "key.pem"), filepath.Join(t.TempDir(), "key.pub")
	for _, args := range [][]string{{"genpkey", "-algorithm", "ed25519", "-out", private}, {"pkey", "-in", private, "-pubout", "-out", public}} {
		if output, err := exec.CommandContext(t.Context(), "openssl", args...).CombinedOutput(); err != nil {
			t.Fatalf("openssl %q: %v: %s", args, err, output)
		}
	}
	return private, public
}

func options(key string) Options {
	return Options{
		Release: images.Release{
			Version: "v1.2.3", Revision: "0123456789abcdef0123456789abcdef01234567", Created: time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC),
			Platforms: []string{"linux/amd64", "linux/arm64"},
		},
		Registry: "registry.example/our", Key: key,
	}
}

func verify(t *testing.T, dir, key string) error {
	t.Helper()
	output, err := exec.CommandContext(t.Context(), checkout.Path("hack", "verify-release.sh"), dir, key).CombinedOutput()
	if err != nil {
		return errors.New(string(output))
	}
	return nil
}

// tree is what is in a folder: names, modes and contents.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		files[strings.TrimPrefix(path, dir)] = string(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestReleases: two builds are the same, and what has changed in one since then is found.
func TestReleases(t *testing.T) {
	key, public := generate(t)
	first, second := filepath.Join(t.TempDir(), "first"), filepath.Join(t.TempDir(), "second")
	for _, dir := range []string{first, second} {
		if err := Make(t.Context(), options(key), dir, os.Stderr); err != nil {
			t.Fatal(err)
		}
	}
	one, two := tree(t, first), tree(t, second)
	for name, content := range one {
		if two[name] != content {
			t.Errorf("%s differs between two builds: %d and %d bytes", name, len(content), len(two[name]))
		}
	}
	if len(one) != len(two) {
		t.Errorf("%d and %d files", len(one), len(two))
	}
	if err := verify(t, first, public); err != nil {
		t.Error(err)
	}
	t.Run("changes", func(t *testing.T) { tampered(t, first, public) })
	t.Run("provenance", func(t *testing.T) { wantProvenance(t, first, key, public) })
	t.Run("images", func(t *testing.T) { wantImages(t, first) })
	t.Run("registry", func(t *testing.T) { wantPushed(t, first) })
	t.Run("chart and manifests", func(t *testing.T) { wantDigests(t, first) })
	t.Run("bills of materials", func(t *testing.T) { wantBills(t, one) })
}

func tampered(t *testing.T, dir, public string) {
	t.Helper()
	blobs, err := filepath.Glob(filepath.Join(dir, "oci", "server", "blobs", "sha256", "*"))
	if err != nil || len(blobs) < 5 {
		t.Fatalf("%d blobs, %v", len(blobs), err)
	}
	blob, err := filepath.Rel(dir, blobs[0])
	if err != nil {
		t.Fatal(err)
	}
	change := func(name string) func(dir string) error {
		return func(dir string) error {
			path := filepath.Join(dir, name)
			content, err := os.ReadFile(path)
			if err == nil {
				content[len(content)/2] ^= 1
				err = os.WriteFile(path, content, 0o644)
			}
			return err
		}
	}
	_, another := generate(t)
	for name, tc := range map[string]struct {
		change    func(dir string) error
		key, says string
	}{
		"a byte of an image":      {change(blob), public, blob + ": FAILED"},
		"a byte of the chart":     {change("iam4kube-1.2.3.tgz"), public, "iam4kube-1.2.3.tgz: FAILED"},
		"a byte of a manifest":    {change("install-both.yaml"), public, "install-both.yaml: FAILED"},
		"a byte of provenance":    {change(provenanceFile), public, provenanceFile + ": FAILED"},
		"a byte of the checksums": {change("SHA256SUMS"), public, "not signed"},
		"a byte of the signature": {change("SHA256SUMS.sig"), public, "not signed"},
		"a file is gone":          {func(dir string) error { return os.Remove(filepath.Join(dir, "uninstall.yaml")) }, public, "uninstall.yaml"},
		"a file more":             {func(dir string) error { return os.WriteFile(filepath.Join(dir, "install.yaml"), nil, 0o600) }, public, "> install.yaml"},
		"no signature":            {func(dir string) error { return os.Remove(filepath.Join(dir, "SHA256SUMS.sig")) }, public, "not signed"},
		"another key":             {func(string) error { return nil }, another, "not signed"},
	} {
		t.Run(name, func(t *testing.T) {
			changed := filepath.Join(t.TempDir(), "changed")
			if err := errors.Join(os.CopyFS(changed, os.DirFS(dir)), tc.change(changed)); err != nil {
				t.Fatal(err)
			}
			if err := verify(t, changed, tc.key); err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%v, want to hear of %q", err, tc.says)
			}
		})
	}
}

// wantImages: each image has the program of each platform, with the capability that it needs.
func wantImages(t *testing.T, dir string) {
	t.Helper()
	for _, name := range programs {
		l := layout(filepath.Join(dir, "oci", name))
		all, err := l.images()
		if err != nil {
			t.Fatal(err)
		}
		var machines []elf.Machine
		for _, image := range all {
			header, program, err := l.program(image, strings.TrimSuffix(name, "-init"))
			if err != nil {
				t.Fatal(err)
			}
			binary, err := elf.NewFile(bytes.NewReader(program))
			if err != nil {
				t.Fatal(err)
			}
			if want := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[image.Platform.Architecture]; binary.Machine != want {
				t.Errorf("%s for %s has a program for %s", name, image.Platform.Architecture, binary.Machine)
			}
			machines = append(machines, binary.Machine)
			if has := header.PAXRecords["SCHILY.xattr.security.capability"] != ""; has != strings.HasPrefix(name, "ip2service") {
				t.Errorf("%s for %s has a file capability: %t", name, image.Platform.Architecture, has)
			}
		}
		slices.Sort(machines)
		if !slices.Equal(machines, []elf.Machine{elf.EM_X86_64, elf.EM_AARCH64}) {
			t.Errorf("%s is for %v", name, machines)
		}
	}
}

// wantDigests: what is installed by default is the release's images, by digest.
func wantDigests(t *testing.T, dir string) {
	t.Helper()
	helms, err := controlplane.BuildHelm(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{}
	for _, helm := range helms {
		output, err := exec.CommandContext(t.Context(), helm, "template", "iam4kube", filepath.Join(dir, "iam4kube-1.2.3.tgz")).Output()
		if err != nil {
			t.Fatal(err)
		}
		texts[filepath.Base(helm)] = string(output)
	}
	manifest, err := os.ReadFile(filepath.Join(dir, "install-both.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	texts["install-both.yaml"] = string(manifest)
	for of, text := range texts {
		for _, name := range programs {
			index, err := layout(filepath.Join(dir, "oci", name)).index()
			if err != nil {
				t.Fatal(err)
			}
			if image := "registry.example/our/" + name + ":v1.2.3@" + index.Digest; !strings.Contains(text, image) {
				t.Errorf("%s has no %s", of, image)
			}
		}
		if strings.Contains(text, "registry.invalid") {
			t.Errorf("%s has an image that is nowhere", of)
		}
	}
}

func wantBills(t *testing.T, files map[string]string) {
	t.Helper()
	for name, module := range map[string]string{
		"server": "github.com/aws/aws-sdk-go-v2", "webhook": "sigs.k8s.io/controller-runtime", "ip2service": "k8s.io/client-go", "ip2service-init": "github.com/google/nftables",
	} {
		document, err := spdxjson.Read(strings.NewReader(files["/"+name+".spdx.json"]))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var found bool
		for _, p := range document.Packages {
			found = found || p.PackageName == module && p.PackageVersion != ""
		}
		if !found || len(document.Relationships) != len(document.Packages) {
			t.Errorf("%s: %d packages, %d relationships, %s in it: %t", name, len(document.Packages), len(document.Relationships), module, found)
		}
	}
}

// TestRefusals: nothing is built, and nothing is left.
func TestRefusals(t *testing.T) {
	there := t.TempDir()
	for says, change := range map[string]func(o *Options, dir *string){
		`the version "1.2" is none`: func(o *Options, _ *string) { o.Version = "1.2" },
		"no registry":               func(o *Options, _ *string) { o.Registry = "" },
		"is there already":          func(_ *Options, dir *string) { *dir = there },
	} {
		o, dir := options(""), filepath.Join(t.TempDir(), "release")
		change(&o, &dir)
		ctx, stop := context.WithCancel(t.Context())
		stop()
		if err := Make(ctx, o, dir, io.Discard); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want to hear of %q", err, says)
		}
	}
}
