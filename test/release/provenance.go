package release

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

const (
	// provenanceFile is named as in-toto wants it: one statement in one envelope.
	provenanceFile = "provenance.intoto.json"
	payloadType    = "application/vnd.in-toto+json"
	repository     = "https://github.com/iam4kube/iam4kube"
)

// statement says of what the release's files were made (https://in-toto.io/Statement/v1 with the
// predicate https://slsa.dev/spec/v1.0/provenance). It has no time of its own and no number of a run, so
// a second build of the commit says the same.
type statement struct {
	Type          string     `json:"_type"`
	Subject       []resource `json:"subject"`
	PredicateType string     `json:"predicateType"`
	Predicate     provenance `json:"predicate"`
}

// resource is a ResourceDescriptor. hack/verify-release.sh reads the fields in this order.
type resource struct {
	Name   string            `json:"name,omitempty"`
	URI    string            `json:"uri,omitempty"`
	Digest map[string]string `json:"digest"`
}

type provenance struct {
	BuildDefinition struct {
		BuildType            string            `json:"buildType"`
		ExternalParameters   map[string]string `json:"externalParameters"`
		InternalParameters   map[string]string `json:"internalParameters"`
		ResolvedDependencies []resource        `json:"resolvedDependencies"`
	} `json:"buildDefinition"`
	RunDetails struct {
		Builder struct {
			ID string `json:"id"`
		} `json:"builder"`
	} `json:"runDetails"`
}

// envelope is DSSE's (https://github.com/secure-systems-lab/dsse/blob/master/envelope.md).
type envelope struct {
	PayloadType string              `json:"payloadType"`
	Payload     string              `json:"payload"`
	Signatures  []envelopeSignature `json:"signatures"`
}

type envelopeSignature struct {
	Sig string `json:"sig"`
}

// provenance writes the statement about all files that are there, in its envelope, signed by the key.
func (r *release) provenance() error {
	s, err := r.statement()
	if err != nil {
		return err
	}
	payload, err := json.Marshal(s)
	if err != nil {
		return err
	}
	e := envelope{PayloadType: payloadType, Payload: base64.StdEncoding.EncodeToString(payload), Signatures: []envelopeSignature{}}
	if r.Key != "" {
		signature, err := r.signature(fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(payload), payload))
		if err != nil {
			return err
		}
		e.Signatures = append(e.Signatures, envelopeSignature{base64.StdEncoding.EncodeToString(signature)})
	}
	text, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(r.dir, provenanceFile), append(text, '\n'), 0o644)
}

func (r *release) statement() (statement, error) {
	s := statement{Type: "https://in-toto.io/Statement/v1", PredicateType: "https://slsa.dev/provenance/v1"}
	files, err := r.files()
	if err != nil {
		return s, err
	}
	for _, f := range files {
		s.Subject = append(s.Subject, resource{Name: f.name, Digest: map[string]string{"sha256": f.sum}})
	}
	build := &s.Predicate.BuildDefinition
	build.BuildType = repository + "/blob/main/docs/release.md#provenance"
	build.ExternalParameters = map[string]string{"VERSION": r.Version, "REGISTRY": r.Registry, "platforms": strings.Join(r.Platforms, ",")}
	certificates, err := os.ReadFile("/etc/ssl/certs/ca-certificates.crt")
	if err != nil {
		return s, err
	}
	sum := sha256.Sum256(certificates)
	build.ResolvedDependencies = []resource{
		{URI: "git+" + repository, Digest: map[string]string{"gitCommit": r.Revision}},
		{Name: "ca-certificates.crt", Digest: map[string]string{"sha256": hex.EncodeToString(sum[:])}},
	}
	build.InternalParameters, err = r.tools()
	s.Predicate.RunDetails.Builder.ID = repository + "/blob/main/docs/release.md#the-key"
	return s, err
}

// tools are those whose versions a second build has to have.
func (r *release) tools() (map[string]string, error) {
	program, err := r.program("server")
	if err != nil {
		return nil, err
	}
	info, err := buildinfo.Read(bytes.NewReader(program))
	if err != nil {
		return nil, err
	}
	buildah, err := exec.CommandContext(r.ctx, "buildah", "--version").Output()
	if err != nil {
		return nil, fmt.Errorf("buildah --version: %w", err)
	}
	return map[string]string{
		"images": info.GoVersion, "chart and manifests": runtime.Version(), "buildah": strings.TrimSpace(string(buildah)),
	}, nil
}
