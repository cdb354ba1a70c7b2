package role

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
)

func TestAllowed(t *testing.T) {
	for _, tc := range allowedCases(t) {
		if got := ParseAllowed(tc.List + strings.Repeat(" ", tc.Spaces)).Allows(tc.ARN); got != tc.Allowed {
			t.Errorf("%.100q allows %s: %t, want %t", tc.List, tc.ARN, got, tc.Allowed)
		}
	}
}

// allowedCases are those of the policy in manifests/components/allowed-roles, too.
func allowedCases(t *testing.T) (cases []struct {
	List    string
	Spaces  int // behind it
	ARN     string
	Allowed bool
},
) {
	t.Helper()
	text, err := os.ReadFile("testdata/allowed.json")
	if err == nil {
		err = json.Unmarshal(text, &cases)
	}
	if err != nil || len(cases) < 50 {
		t.Fatalf("%d cases: %v", len(cases), err)
	}
	return cases
}

func TestAllowedSaysWhatIsWrong(t *testing.T) {
	for annotation, says := range map[string]string{
		"arn:aws:iam::1:role/a, team-*, other": `"team-*"`, strings.Repeat("x", maxAllowed+1): "16384 bytes", "arn:aws:iam::1:role/a": "", "": "",
	} {
		if wrong := ParseAllowed(annotation).Wrong(); !strings.Contains(wrong, says) || (wrong == "") != (says == "") || len(wrong) > 300 {
			t.Errorf("%.40q: %q", annotation, wrong)
		}
	}
}
