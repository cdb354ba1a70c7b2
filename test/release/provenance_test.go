package release

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	provenancev1 "github.com/in-toto/attestation/go/predicates/provenance/v1"
	attestation "github.com/in-toto/attestation/go/v1"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"github.com/secure-systems-lab/go-securesystemslib/signerverifier"
	"google.golang.org/protobuf/encoding/protojson"
)

// wantProvenance: in-toto's own libraries verify the envelope and know every field of the statement, and
// a provenance that is not this release's is found, also where its checksum was signed.
func wantProvenance(t *testing.T, dir, key, public string) {
	t.Helper()
	s := decodeProvenance(t, dir, public)
	subjects := map[string]string{}
	for _, subject := range s.GetSubject() {
		subjects[subject.GetName()] = subject.GetDigest()["sha256"]
	}
	index, err := layout(filepath.Join(dir, "oci", "server")).index()
	if err != nil {
		t.Fatal(err)
	}
	_, hash, _ := strings.Cut(index.Digest, ":")
	if subjects["oci/server/blobs/sha256/"+hash] != hash || subjects["iam4kube-1.2.3.tgz"] == "" || subjects["install-both.yaml"] == "" {
		t.Errorf("the provenance is about %v, want image %s, chart and manifests, too", subjects, hash)
	}
	predicate, err := protojson.Marshal(s.GetPredicate())
	if err != nil {
		t.Fatal(err)
	}
	var p provenancev1.Provenance
	if err := errors.Join(protojson.Unmarshal(predicate, &p), p.Validate()); err != nil {
		t.Fatal(err)
	}
	build := p.GetBuildDefinition()
	if commit := build.GetResolvedDependencies()[0].GetDigest()["gitCommit"]; commit != options("").Revision {
		t.Errorf("from the commit %q", commit)
	}
	if tools := build.GetInternalParameters().AsMap(); !strings.HasPrefix(tools["images"].(string), "go1.") {
		t.Errorf("built with %v", tools)
	}
	otherKey, _ := generate(t)
	for name, tc := range map[string]struct {
		change func(r *release) error
		says   string
	}{
		"by another key": {func(r *release) error { r.Key = otherKey; return r.provenance() }, "the provenance in"},
		"of other files": {func(r *release) error {
			more := filepath.Join(r.dir, "more")
			return errors.Join(os.WriteFile(more, nil, 0o600), r.provenance(), os.Remove(more))
		}, "is about other files"},
	} {
		t.Run(name, func(t *testing.T) {
			changed := filepath.Join(t.TempDir(), "changed")
			sums := filepath.Join(changed, "SHA256SUMS")
			err := errors.Join(os.CopyFS(changed, os.DirFS(dir)), os.Remove(sums), os.Remove(sums+".sig"), os.Remove(filepath.Join(changed, provenanceFile)))
			r := &release{Options: options(key), ctx: t.Context(), dir: changed}
			err = errors.Join(err, tc.change(r))
			r.Key = key
			if err := errors.Join(err, r.checksums(), r.sign()); err != nil {
				t.Fatal(err)
			}
			if err := verify(t, changed, public); err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%v, want to hear of %q", err, tc.says)
			}
		})
	}
}

func decodeProvenance(t *testing.T, dir, public string) *attestation.Statement {
	t.Helper()
	text, err := os.ReadFile(public)
	if err != nil {
		t.Fatal(err)
	}
	key, err := signerverifier.LoadKey(text)
	if err != nil {
		t.Fatal(err)
	}
	by, err := signerverifier.NewED25519SignerVerifierFromSSLibKey(key)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := dsse.NewEnvelopeVerifier(by)
	if err != nil {
		t.Fatal(err)
	}
	var e dsse.Envelope
	if text, err = os.ReadFile(filepath.Join(dir, provenanceFile)); err == nil {
		err = json.Unmarshal(text, &e)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := verifier.Verify(t.Context(), &e); err != nil {
		t.Fatal(err)
	}
	payload, err := base64.StdEncoding.DecodeString(e.Payload)
	if err != nil {
		t.Fatal(err)
	}
	s := &attestation.Statement{}
	if err := errors.Join(protojson.Unmarshal(payload, s), s.Validate()); err != nil {
		t.Fatal(err)
	}
	return s
}
