// Package release makes what a release consists of, in one folder: the images of the Dockerfile for
// each platform as OCI image layouts, the Helm chart, the overlays as one file each for `kubectl
// apply -f`, what the programs are made of (SPDX), what all of it was made from (provenance), checksums
// of all that, and their signature.
//
// Two builds of a commit are the same, byte by byte, with the same Go. It owns neither formats nor
// cryptography: buildah, Helm, kustomize, SPDX's own library, sha256sum and openssl do the work, and
// hack/verify-release.sh checks the result with the last two.
package release

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/iam4kube/iam4kube/test/images"
)

// Options of a release.
type Options struct {
	images.Release
	// Registry is where the images will be, without their names: registry.example/iam4kube.
	Registry string
	// Key is the file of an Ed25519 private key in PEM (`openssl genpkey -algorithm ed25519`).
	// Without one there is no signature.
	Key string
}

// programs are the images of a release by their targets, which are their names, too.
var programs = []string{"server", "webhook", "ip2service", "ip2service-init"}

var version = regexp.MustCompile(`^v\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?$`)

// Make makes the release in dir, a folder that is not there yet.
func Make(ctx context.Context, o Options, dir string, progress io.Writer) error {
	switch {
	case !version.MatchString(o.Version):
		return fmt.Errorf("the version %q is none: it is like v1.2.3 or v1.2.3-rc.1", o.Version)
	case o.Registry == "":
		return errors.New("no registry: it says where the images will be, for example registry.example/iam4kube")
	}
	if _, err := os.Stat(dir); err == nil {
		return fmt.Errorf("%s is there already: a release is never changed", dir)
	}
	// Complete or not there.
	partial := dir + ".partial"
	if err := errors.Join(os.RemoveAll(partial), os.MkdirAll(partial, 0o755)); err != nil {
		return err
	}
	if err := images.Layouts(ctx, o.Release, filepath.Join(partial, "oci"), progress); err != nil {
		return err
	}
	r := &release{Options: o, ctx: ctx, dir: partial, digests: map[string]string{}}
	for _, step := range []func() error{r.readDigests, r.billsOfMaterials, r.overlays, r.chart, r.provenance, r.checksums, r.sign} {
		if err := step(); err != nil {
			return err
		}
	}
	return os.Rename(partial, dir)
}

type release struct {
	Options
	ctx context.Context
	dir string
	// digests of the images' indexes.
	digests map[string]string
}

func (r *release) readDigests() error {
	for _, name := range programs {
		l := layout(filepath.Join(r.dir, "oci", name))
		index, err := l.index()
		if err != nil {
			return err
		}
		r.digests[name] = index.Digest
	}
	return nil
}

// program is that of an image for the first platform.
func (r *release) program(name string) ([]byte, error) {
	l := layout(filepath.Join(r.dir, "oci", name))
	all, err := l.images()
	if err != nil {
		return nil, err
	}
	_, program, err := l.program(all[0], strings.TrimSuffix(name, "-init"))
	return program, err
}

// file is one of the release, with its SHA-256 in hexadecimal.
type file struct{ name, sum string }

func (r *release) files() (all []file, err error) {
	err = filepath.WalkDir(r.dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(r.dir, path)
		all = append(all, file{name, fmt.Sprintf("%x", sha256.Sum256(content))})
		return err
	})
	return all, err
}

// checksums are of all files, in sha256sum's format.
func (r *release) checksums() error {
	files, err := r.files()
	if err != nil {
		return err
	}
	var lines strings.Builder
	for _, f := range files {
		fmt.Fprintf(&lines, "%s  %s\n", f.sum, f.name)
	}
	return os.WriteFile(filepath.Join(r.dir, "SHA256SUMS"), []byte(lines.String()), 0o644)
}

// sign signs the checksums.
func (r *release) sign() error {
	if r.Key == "" {
		return nil
	}
	sums := filepath.Join(r.dir, "SHA256SUMS")
	content, err := os.ReadFile(sums)
	if err != nil {
		return err
	}
	signature, err := r.signature(content)
	if err != nil {
		return err
	}
	return os.WriteFile(sums+".sig", signature, 0o644)
}

// signature by the key. Ed25519's are the same each time. openssl signs files alone with it.
func (r *release) signature(of []byte) (signature []byte, err error) {
	dir, err := os.MkdirTemp("", "iam4kube-release-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	if err := os.WriteFile(in, of, 0o600); err != nil {
		return nil, err
	}
	if err := r.run("openssl", "pkeyutl", "-sign", "-rawin", "-inkey", r.Key, "-in", in, "-out", out); err != nil {
		return nil, err
	}
	return os.ReadFile(out)
}

// run runs a program, whose last words are the error if it fails.
func (r *release) run(program string, args ...string) error {
	if output, err := exec.CommandContext(r.ctx, program, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", filepath.Base(program), strings.Join(args, " "), err, output)
	}
	return nil
}
