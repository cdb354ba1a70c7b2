//go:build e2e

package e2e

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What is applied is what is there, to the last field: nothing of it was dropped, and nothing in
// the cluster has changed it.
func TestNoDrift(t *testing.T) {
	t.Parallel()
	for _, kustomization := range []string{"../../manifests/namespace", both} {
		// It exits with 1 and the differences if there are any.
		if output, err := kubectl(t.Context(), "", "diff", "-k", kustomization); err != nil || output != "" {
			t.Errorf("%s: %v\n%s", kustomization, err, output)
		}
	}
}

// Who changes to server-side apply meets no conflict with the client-side apply before it.
func TestServerSideApplyTakesOver(t *testing.T) {
	t.Parallel()
	for _, kustomization := range []string{"../../manifests/namespace", both} {
		mustKubectl(t, "apply", "--server-side", "--dry-run=server", "--validate=strict", "-k", kustomization)
	}
}

// Every field of every overlay is known to the API server, cert-manager's included. What is
// there differs from most of them: that is what conflicts are forced for.
func TestOverlaysPassStrictFieldValidation(t *testing.T) {
	t.Parallel()
	users, err := filepath.Glob("../../manifests/*/kustomization.yaml")
	if err != nil || len(users) < 9 {
		t.Fatalf("%q, %v", users, err)
	}
	tests, err := filepath.Glob(overlays + "/*/kustomization.yaml")
	if err != nil || len(tests) < 2 {
		t.Fatalf("%q, %v", tests, err)
	}
	for _, file := range slices.Concat(users, tests) {
		overlay := filepath.Dir(file)
		if filepath.Base(overlay) == "init-image" {
			continue // a transformer
		}
		t.Run(filepath.Base(overlay), func(t *testing.T) {
			t.Parallel()
			output := mustKubectl(t, "apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-k", overlay)
			if !strings.Contains(output, "serverside-applied (server dry run)") {
				t.Errorf("nothing was applied: %s", output)
			}
		})
	}
}
