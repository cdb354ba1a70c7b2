package release

import (
	"bytes"
	"debug/buildinfo"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx"
)

// billsOfMaterials writes an SPDX document for each image: the modules that its program itself
// says it is made of (`go version -m`), which are the same for each platform.
func (r *release) billsOfMaterials() error {
	for _, name := range programs {
		program, err := r.program(name)
		if err != nil {
			return err
		}
		info, err := buildinfo.Read(bytes.NewReader(program))
		if err != nil {
			return fmt.Errorf("what %s is made of: %w", name, err)
		}
		var text bytes.Buffer
		if err := spdxjson.Write(r.document(name, info), &text, spdxjson.Indent("  ")); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(r.dir, name+".spdx.json"), text.Bytes(), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (r *release) document(name string, info *buildinfo.BuildInfo) *spdx.Document {
	const program = spdx.ElementID("Package-0")
	document := &spdx.Document{
		SPDXVersion: spdx.Version, DataLicense: spdx.DataLicense, SPDXIdentifier: "DOCUMENT", DocumentName: "iam4kube " + name,
		DocumentNamespace: fmt.Sprintf("https://github.com/iam4kube/iam4kube/releases/%s/%s", r.Version, name),
		CreationInfo: &spdx.CreationInfo{
			Creators: []spdx.Creator{{CreatorType: "Organization", Creator: "iam4kube"}}, Created: r.Created.UTC().Format(time.RFC3339),
		},
		Packages: []*spdx.Package{pack(program, info.Main.Path+"/"+name, r.Version, "oci", "pkg:oci/"+name+"@"+strings.Replace(r.digests[name], ":", "%3A", 1))},
		Relationships: []*spdx.Relationship{{
			RefA: spdx.DocElementID{ElementRefID: "DOCUMENT"}, RefB: spdx.DocElementID{ElementRefID: program}, Relationship: "DESCRIBES",
		}},
	}
	add := func(path, version, sum string) {
		id := spdx.ElementID(fmt.Sprintf("Package-%d", len(document.Packages)))
		module := pack(id, path, version, "go module", "pkg:golang/"+path+"@"+version)
		module.PackageSourceInfo = sum
		document.Packages = append(document.Packages, module)
		document.Relationships = append(document.Relationships, &spdx.Relationship{
			RefA: spdx.DocElementID{ElementRefID: program}, RefB: spdx.DocElementID{ElementRefID: id}, Relationship: "DEPENDS_ON",
		})
	}
	add("stdlib", strings.TrimPrefix(info.GoVersion, "go"), "")
	for _, module := range info.Deps {
		add(module.Path, module.Version, "checksum in go.sum: "+module.Sum)
	}
	return document
}

func pack(id spdx.ElementID, name, version, kind, url string) *spdx.Package {
	return &spdx.Package{
		PackageSPDXIdentifier: id, PackageName: name, PackageVersion: version, PackageDownloadLocation: "NOASSERTION", PackageComment: kind,
		IsFilesAnalyzedTagPresent: true, FilesAnalyzed: false,
		PackageExternalReferences: []*spdx.PackageExternalReference{{Category: "PACKAGE-MANAGER", RefType: "purl", Locator: url}},
	}
}
