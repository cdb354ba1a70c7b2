package buildinfo

import "testing"

func TestWithoutTheLinker(t *testing.T) {
	// go test stamps nothing.
	if Version() != "unreleased" || Revision() != "unknown" || UserAgent("iam4kube-server") != "iam4kube-server/unreleased" {
		t.Errorf("version %s, revision %s, user agent %s", Version(), Revision(), UserAgent("iam4kube-server"))
	}
}

func TestWithTheLinker(t *testing.T) {
	version, revision = "v1.2.3", "0123abc"
	defer func() { version, revision = "", "" }()
	if Version() != "v1.2.3" || Revision() != "0123abc" || UserAgent("iam4kube-server") != "iam4kube-server/v1.2.3" {
		t.Errorf("version %s, revision %s, user agent %s", Version(), Revision(), UserAgent("iam4kube-server"))
	}
	// The Dockerfile's default is no revision.
	revision = "unknown"
	if Revision() != "unknown" {
		t.Errorf("revision %s", Revision())
	}
}
