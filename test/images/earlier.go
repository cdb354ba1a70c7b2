package images

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/iam4kube/iam4kube/test/checkout"
	"github.com/iam4kube/iam4kube/test/controlplane"
)

// ofDockerfile are the images that users build.
func ofDockerfile() []Image {
	return slices.DeleteFunc(All(), func(i Image) bool { return i.Program != "" })
}

// Earlier returns the folder of a checkout of an earlier commit, and a docker-archive file of each of
// its Dockerfile's images, in the order of All, as Build does for this checkout.
func Earlier(ctx context.Context, commit, tag string, progress io.Writer) (folder string, archives []string, err error) {
	cache, err := controlplane.CacheDir()
	if err != nil {
		return "", nil, err
	}
	key := sha256.Sum256(fmt.Append(nil, commit, tag, runtime.Version(), runtime.GOARCH))
	dir := filepath.Join(cache, fmt.Sprintf("earlier-%x", key[:8]))
	folder = filepath.Join(dir, "checkout")
	for _, image := range ofDockerfile() {
		archives = append(archives, filepath.Join(dir, image.Target+".tar"))
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", nil, err
	}
	unlock, err := controlplane.Lock(ctx, filepath.Join(cache, "images.lock"), progress)
	if err != nil {
		return "", nil, err
	}
	defer unlock()
	if built(dir) {
		return folder, archives, nil
	}
	source := filepath.Join(dir+"-partial", "checkout")
	if err := CheckOut(ctx, commit, source); err != nil {
		return "", nil, err
	}
	b := &builder{ctx: ctx, cache: cache, tag: tag, revision: commit, source: source, progress: progress}
	return folder, archives, b.build(dir, ofDockerfile())
}

// CheckOut makes a folder with a commit's files.
func CheckOut(ctx context.Context, commit, folder string) error {
	if err := errors.Join(os.RemoveAll(folder), os.MkdirAll(folder, 0o755)); err != nil {
		return err
	}
	archive := folder + ".git-archive"
	for _, command := range [][]string{
		{"git", "-C", checkout.Path(), "archive", "--format=tar", "--output=" + archive, commit},
		{"tar", "--extract", "--file=" + archive, "--directory=" + folder},
	} {
		if output, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("the commit %s: %q: %w: %s", commit, command, err, output)
		}
	}
	return os.Remove(archive)
}
