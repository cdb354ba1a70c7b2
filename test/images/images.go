// Package images builds container images without Docker and without a registry: those of the
// Dockerfile, as users build them, and those that only the tests' cluster needs.
//
// Debian's buildah does it, in a chroot and without a network. What runs in the images is
// their programs' business.
package images

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
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/iam4kube/iam4kube/test/checkout"
	"github.com/iam4kube/iam4kube/test/controlplane"
)

// Image is a target of a Dockerfile.
type Image struct {
	Target string
	// Name without the tag. If it has a tag, that is meant instead of Build's.
	Name string
	// Program is the package below test/ that is compiled for it; the Dockerfile compiles
	// its own.
	Program string
}

// All images, in the order of Build's archives.
func All() []Image {
	return []Image{
		{Target: "server", Name: "registry.invalid/iam4kube/server"},
		{Target: "webhook", Name: "registry.invalid/iam4kube/webhook"},
		{Target: "ip2service", Name: "registry.invalid/iam4kube/ip2service"},
		{Target: "ip2service-init", Name: "registry.invalid/iam4kube/ip2service-init"},
		{Target: "fakests", Name: "registry.invalid/iam4kube/fakests", Program: "./fakests/cmd/fakests"},
		{Target: "client", Name: "registry.invalid/iam4kube-test/client", Program: "./e2e/client"},
		{Target: "pause", Name: "registry.k8s.io/pause:iam4kube", Program: "./images/pause"},
	}
}

// Reference of an image with a tag.
func (i Image) Reference(tag string) string {
	if strings.Contains(i.Name, ":") {
		return i.Name
	}
	return i.Name + ":" + tag
}

// inputs are what the images depend on, in the repository.
var inputs = []string{
	"Dockerfile", "go.mod", "go.sum", "cmd", "internal",
	"test/go.mod", "test/go.sum", "test/fakests", "test/e2e/client", "test/images",
}

// Build returns a docker-archive file of each image. It takes a minute or two if something
// that they depend on has changed, and tells on progress where it is; processes that build
// at the same time wait for each other.
func Build(ctx context.Context, tag string, progress io.Writer) (archives []string, err error) {
	cache, err := controlplane.CacheDir()
	if err != nil {
		return nil, err
	}
	key, err := key(tag)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(cache, "images-"+key)
	for _, image := range All() {
		archives = append(archives, filepath.Join(dir, image.Target+".tar"))
	}
	if built(dir) {
		return archives, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	unlock, err := controlplane.Lock(ctx, filepath.Join(cache, "images.lock"), progress)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if built(dir) {
		return archives, nil
	}
	b := &builder{ctx: ctx, cache: cache, tag: tag, revision: revision, source: checkout.Path(), progress: progress}
	return archives, b.build(dir, All())
}

func built(dir string) bool {
	_, err := os.Stat(dir)
	return err == nil
}

// key changes whenever an image would.
func key(tag string) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, runtime.Version(), runtime.GOARCH, tag)
	for _, input := range inputs {
		err := filepath.WalkDir(checkout.Path(input), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || strings.HasSuffix(path, "_test.go") {
				return err
			}
			content, err := os.ReadFile(path)
			fmt.Fprintln(h, input, entry.Name(), len(content))
			h.Write(content)
			return err
		})
		if err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8]), nil
}

type builder struct {
	ctx      context.Context
	cache    string
	tag      string
	revision string
	// source is the checkout that has the Dockerfile.
	source   string
	progress io.Writer
	// context is the folder that the tests' own images are made of.
	context string
	// toolchainOf is the folder whose go.mod says which Go compiles, if not the present one.
	toolchainOf string
}

const (
	goImage = "localhost/iam4kube-go"
	// revision is what programs say of a checkout that may differ from every commit.
	revision = "checkout"
)

// build fills a folder beside dir and renames it when it is complete: until then the archives of
// an older version stay, and those of this one after an interrupted build, for the next.
func (b *builder) build(dir string, images []Image) error {
	partial := dir + "-partial"
	b.context = filepath.Join(partial, "context")
	if err := os.RemoveAll(b.context); err != nil {
		return err
	}
	if err := errors.Join(b.fillContext(images), b.fromContext("go", goImage)); err != nil {
		return err
	}
	for _, image := range images {
		if err := b.archive(image, filepath.Join(partial, image.Target+".tar")); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(b.context); err != nil {
		return err
	}
	if err := os.Rename(partial, dir); err != nil {
		return err
	}
	return removeOthers(dir)
}

// archive builds an image, unless an interrupted build has done it.
func (b *builder) archive(image Image, path string) error {
	if built(path) {
		return nil
	}
	start := time.Now()
	from := b.fromDockerfile
	if image.Program != "" {
		from = b.fromContext
	}
	reference := image.Reference(b.tag)
	if err := from(image.Target, reference); err != nil {
		return err
	}
	unfinished := path + ".unfinished"
	if err := os.RemoveAll(unfinished); err != nil { // buildah adds to none that is there
		return err
	}
	if err := b.buildah("push", "--quiet", reference, "docker-archive:"+unfinished+":"+reference); err != nil {
		return err
	}
	if err := os.Rename(unfinished, path); err != nil {
		return err
	}
	fmt.Fprintf(b.progress, "images: %s built in %s\n", reference, time.Since(start).Round(100*time.Millisecond))
	return nil
}

// removeOthers removes what is of other versions, complete or not. Under the lock nobody else
// builds one.
func removeOthers(dir string) error {
	kind, _, _ := strings.Cut(filepath.Base(dir), "-")
	all, err := filepath.Glob(filepath.Join(filepath.Dir(dir), kind+"-*"))
	if err != nil {
		return err
	}
	for _, other := range all {
		if other != dir {
			err = errors.Join(err, os.RemoveAll(other))
		}
	}
	return err
}

// fillRoot makes the folders of the images that have the machine's /usr mounted.
func (b *builder) fillRoot() error {
	root := filepath.Join(b.context, "root")
	for _, folder := range []string{"usr", "tmp", "etc", "var/tmp", "proc", "src", "goroot", "modules", "compiled"} {
		if err := os.MkdirAll(filepath.Join(root, folder), 0o755); err != nil {
			return err
		}
	}
	for _, folder := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+folder, filepath.Join(root, folder)); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(root, "tmp"), 0o777|os.ModeSticky); err != nil {
		return err
	}
	certificates, err := os.ReadFile("/etc/ssl/certs/ca-certificates.crt")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(b.context, "ca-certificates.crt"), certificates, 0o644)
}

// fillContext compiles the tests' own programs, too.
func (b *builder) fillContext(images []Image) error {
	if err := b.fillRoot(); err != nil {
		return err
	}
	for _, image := range images {
		if image.Program == "" {
			continue
		}
		cmd := exec.CommandContext(b.ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(b.context, image.Target), image.Program)
		cmd.Dir = checkout.Path("test")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off", "GOGC=400", "GOMEMLIMIT=3GiB") // as in Makefile
		if output, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("compiling %s: %w: %s", image.Program, err, output)
		}
	}
	return nil
}

func (b *builder) fromContext(target, reference string) error {
	return b.buildah("build", "--quiet", "--layers", "--target="+target, "--tag="+reference,
		"--file="+checkout.Path("test", "images", "Containerfile"), b.context)
}

// fromDockerfile builds a target with Go and modules of the machine.
func (b *builder) fromDockerfile(target, reference string) error {
	volumes, err := b.volumes()
	if err != nil {
		return err
	}
	return b.buildah("build", append(volumes, "--quiet", "--layers",
		"--isolation=chroot", "--pull=never",
		// buildah 1.28 leaves it empty.
		"--build-arg=BUILDPLATFORM=linux/"+runtime.GOARCH,
		"--build-arg=GO_IMAGE="+goImage, "--build-arg=GOTOOLCHAIN=local", "--build-arg=VERSION="+b.tag, "--build-arg=REVISION="+b.revision,
		"--target="+target, "--tag="+reference, b.source)...)
}

// volumes are those of goImage. The modules have to be there: the build has no network. What
// `make build` has compiled is used, too.
func (b *builder) volumes() ([]string, error) {
	download := exec.CommandContext(b.ctx, "go", "mod", "download")
	download.Dir = b.source
	if output, err := download.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("downloading modules: %w: %s", err, output)
	}
	environment := exec.CommandContext(b.ctx, "go", "env", "GOROOT", "GOMODCACHE", "GOCACHE")
	environment.Dir = b.toolchainOf
	output, err := environment.Output()
	if err != nil {
		return nil, err
	}
	folders := strings.Fields(string(output))
	return []string{
		"--volume=/usr:/usr:ro", "--volume=" + folders[0] + ":/goroot:ro",
		"--volume=" + folders[1] + ":/modules:ro", "--volume=" + folders[2] + ":/compiled:rw",
	}, nil
}

// buildah keeps what it stores in the cache, not where the machine's own images are.
func (b *builder) buildah(command string, args ...string) error {
	storage := filepath.Join(b.cache, "buildah")
	global := []string{"--root=" + filepath.Join(storage, "root"), "--runroot=" + filepath.Join(storage, "run"), "--storage-driver=vfs"}
	cmd := exec.CommandContext(b.ctx, "buildah", append(append(global, command), args...)...)
	// In a chroot, buildah's own --network=none changes nothing.
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("buildah %s %s: %w: %s", command, strings.Join(args, " "), err, output)
	}
	return nil
}
