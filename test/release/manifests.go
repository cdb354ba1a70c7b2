package release

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"

	"github.com/iam4kube/iam4kube/test/checkout"
	"github.com/iam4kube/iam4kube/test/controlplane"
)

// overlayNames are the folders of manifests/ that users apply.
func overlayNames() (names []string, err error) {
	files, err := filepath.Glob(checkout.Path("manifests", "*", "kustomization.yaml"))
	for _, file := range files {
		if name := filepath.Base(filepath.Dir(file)); !slices.Contains([]string{"base", "namespace", "init-image", "demo"}, name) {
			names = append(names, name)
		}
	}
	return names, err
}

// overlays writes install-OVERLAY.yaml for each: namespace and all, with the images of this
// release by digest. (uninstall.yaml removes the rules and leaves the namespace.)
func (r *release) overlays() error {
	all, err := overlayNames()
	if err != nil {
		return err
	}
	for _, overlay := range all {
		file, folders := "install-"+overlay+".yaml", []string{"namespace", overlay}
		if overlay == "uninstall" {
			file, folders = "uninstall.yaml", []string{overlay}
		}
		text, err := r.kustomize(folders)
		if err != nil {
			return fmt.Errorf("overlay %s: %w", overlay, err)
		}
		if err := os.WriteFile(filepath.Join(r.dir, file), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (r *release) kustomize(folders []string) (text []byte, err error) {
	dir, err := os.MkdirTemp("", "iam4kube-release-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	kustomization := "resources:\n"
	for _, folder := range folders {
		kustomization += "- manifests/" + folder + "\n"
	}
	kustomization += "transformers: [manifests/init-image]\nimages:\n"
	for _, name := range programs {
		kustomization += fmt.Sprintf("- {name: registry.invalid/iam4kube/%[1]s, newName: %[2]s/%[1]s, newTag: %[3]s, digest: '%[4]s'}\n", name, r.Registry, r.Version, r.digests[name])
	}
	if folders[len(folders)-1] == "uninstall" || folders[len(folders)-1] == "node-wide" { // without what the transformer changes
		kustomization = strings.Replace(kustomization, "transformers: [manifests/init-image]\n", "", 1)
	}
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(kustomization), 0o644),
		os.CopyFS(filepath.Join(dir, "manifests"), os.DirFS(checkout.Path("manifests"))),
	); err != nil {
		return nil, err
	}
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		return nil, err
	}
	return built.AsYaml()
}

// chart packages charts/iam4kube with the images of this release as its defaults. Helm 4 puts the
// files' own times into the archive.
func (r *release) chart() (err error) {
	dir, err := os.MkdirTemp("", "iam4kube-release-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	// With the files that its link leads to.
	if err := r.run("cp", "-RL", checkout.Path("charts", "iam4kube"), dir); err != nil {
		return err
	}
	chart := filepath.Join(dir, "iam4kube")
	values, err := os.ReadFile(filepath.Join(chart, "values.yaml"))
	if err != nil {
		return err
	}
	var digests strings.Builder
	digests.WriteString("digests:")
	for _, name := range programs {
		fmt.Fprintf(&digests, "\n    %s: %s", name, r.digests[name])
	}
	text := string(values)
	for line, with := range map[string]string{"registry: registry.invalid/iam4kube": "registry: " + r.Registry, "digests: {}": digests.String()} {
		found := regexp.MustCompile(`(?m)^  ` + regexp.QuoteMeta(line) + `$`)
		if len(found.FindAllString(text, -1)) != 1 {
			return fmt.Errorf("values.yaml of the chart does not have the line %q once", line)
		}
		text = found.ReplaceAllLiteralString(text, "  "+with)
	}
	if err := os.WriteFile(filepath.Join(chart, "values.yaml"), []byte(text), 0o644); err != nil {
		return err
	}
	if err := filepath.WalkDir(chart, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Chtimes(path, r.Created, r.Created))
	}); err != nil {
		return err
	}
	helms, err := controlplane.BuildHelm(r.ctx)
	if err != nil {
		return err
	}
	return r.run(helms[1], "package", chart, "--destination", r.dir, "--version", strings.TrimPrefix(r.Version, "v"), "--app-version", r.Version)
}
