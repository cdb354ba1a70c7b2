package metadata

import (
	"net/http"
	"testing"

	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
)

// What may still appear is unavailable, but for a role that nobody has asked for.
func TestStatusOfADiagnosis(t *testing.T) {
	for _, piece := range diagnosis.Pieces {
		want := http.StatusServiceUnavailable
		if piece == diagnosis.RoleAnnotation {
			want = http.StatusNotFound
		}
		if got := status(diagnosis.Diagnosis{Missing: piece}); got != want {
			t.Errorf("missing %s: %d, want %d", piece, got, want)
		}
	}
	for refusal, want := range map[diagnosis.Refusal]int{
		diagnosis.NodeAddress: http.StatusForbidden, diagnosis.BadAnnotation: http.StatusNotFound, diagnosis.Denied: http.StatusForbidden,
	} {
		if got := status(diagnosis.Diagnosis{Refusal: refusal}); got != want {
			t.Errorf("refused for %s: %d, want %d", refusal, got, want)
		}
	}
}
