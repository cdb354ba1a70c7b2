package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/iam4kube/iam4kube/test/checkout"
)

// Release says what the images of a release are made for.
type Release struct {
	Version, Revision string
	// Created is the time of all that is in them, so that a second build is the same.
	Created time.Time
	// Platforms as GOOS/GOARCH.
	Platforms []string
}

// Layouts builds the Dockerfile's images for the release's platforms. Each becomes an OCI image
// layout (https://github.com/opencontainers/image-spec/blob/main/image-layout.md), the folder in dir
// that is named as its target, with one index, whose name is the version.
func Layouts(ctx context.Context, r Release, dir string, progress io.Writer) (err error) {
	// Nothing of another build is taken over but what the Go compiler has in its cache.
	scratch, err := os.MkdirTemp("", "iam4kube-release-")
	if err != nil {
		return err
	}
	defer func() {
		if e := os.RemoveAll(scratch); err == nil {
			err = e
		}
	}()
	b := &builder{
		ctx: ctx, cache: scratch, tag: r.Version, revision: r.Revision, source: checkout.Path(), progress: progress,
		context: filepath.Join(scratch, "context"), toolchainOf: checkout.Path(),
	}
	if err := errors.Join(os.MkdirAll(dir, 0o755), b.fillRoot()); err != nil {
		return err
	}
	if err := b.fromContext("go", goImage); err != nil {
		return err
	}
	for _, image := range ofDockerfile() {
		start := time.Now()
		if err := b.index(r, image.Target, dir); err != nil {
			return err
		}
		fmt.Fprintf(progress, "release: %s for %s built in %s\n", image.Target, strings.Join(r.Platforms, ", "), time.Since(start).Round(100*time.Millisecond))
	}
	return nil
}

// index builds a target for each platform. The stage that compiles runs on the machine's own.
func (b *builder) index(r Release, target, dir string) error {
	volumes, err := b.volumes()
	if err != nil {
		return err
	}
	list := "localhost/iam4kube-release/" + target
	if err := b.buildah("manifest", "create", list); err != nil {
		return err
	}
	for _, platform := range r.Platforms {
		goos, goarch, _ := strings.Cut(platform, "/")
		image := list + ":" + goarch
		if err := b.buildah("build", append(volumes, "--quiet", "--layers", "--isolation=chroot", "--pull=never",
			"--platform="+platform, fmt.Sprintf("--timestamp=%d", r.Created.Unix()),
			// buildah 1.28 leaves it empty.
			"--build-arg=BUILDPLATFORM=linux/"+runtime.GOARCH, "--build-arg=TARGETOS="+goos, "--build-arg=TARGETARCH="+goarch,
			"--build-arg=GO_IMAGE="+goImage, "--build-arg=GOTOOLCHAIN=local", "--build-arg=VERSION="+r.Version, "--build-arg=REVISION="+b.revision,
			"--target="+target, "--tag="+image, b.source)...); err != nil {
			return err
		}
		if err := b.buildah("manifest", "add", list, image); err != nil {
			return err
		}
	}
	return b.buildah("manifest", "push", "--all", "--quiet", list, "oci:"+filepath.Join(dir, target)+":"+r.Version)
}
