package release

import (
	"crypto/sha256"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/iam4kube/iam4kube/test/registry"
)

// wantPushed: what the guide's commands bring into a registry comes back by the digests that chart and
// manifests have, blob by blob, and so does the chart.
func wantPushed(t *testing.T, dir string) {
	t.Helper()
	r := registry.Start(t, net.IPv4(127, 0, 0, 1), func(args ...string) (*exec.Cmd, error) {
		return exec.CommandContext(t.Context(), args[0], args[1:]...), nil
	})
	r.Push(t, dir, "v1.2.3")
	pulled := t.TempDir()
	for _, name := range programs {
		released := layout(filepath.Join(dir, "oci", name))
		index, err := released.index()
		if err != nil {
			t.Fatal(err)
		}
		image := "docker://" + r.Address + "/iam4kube/" + name
		if tagged := fmt.Sprintf("sha256:%x", sha256.Sum256(r.Run(t, pulled, "skopeo inspect --raw "+image+":v1.2.3"))); tagged != index.Digest {
			t.Errorf("the tag of %s is %s, want %s", name, tagged, index.Digest)
		}
		r.Run(t, pulled, "skopeo copy --all --quiet "+image+"@"+index.Digest+" oci:"+name)
		want, got := tree(t, filepath.Join(string(released), "blobs")), tree(t, filepath.Join(pulled, name, "blobs"))
		for blob, content := range want {
			if got[blob] != content {
				t.Errorf("%s: the blob %s is not what was pushed", name, blob)
			}
		}
		if len(want) < 4 || len(want) != len(got) {
			t.Errorf("%s: %d blobs, want %d", name, len(got), len(want))
		}
	}
	r.Run(t, pulled, "helm pull oci://"+r.Address+"/iam4kube/charts/iam4kube --version 1.2.3")
	if want, got := tree(t, dir)["/iam4kube-1.2.3.tgz"], tree(t, pulled)["/iam4kube-1.2.3.tgz"]; want == "" || got != want {
		t.Errorf("the chart has %d bytes, want the %d that were pushed", len(got), len(want))
	}
}
