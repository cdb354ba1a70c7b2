package webidentity

import (
	"strings"
	"testing"
)

// Where the URL cannot be read from here, whoever rotates vouches for it.
func TestRotationWithoutReach(t *testing.T) {
	allow(t)
	const url = "https://127.255.255.254/nobody"
	mustIssue(t, url)
	mustIssue(t, url, "rotate", "--emergency")
	mustSay(t, mustIssue(t, url, "rotate"), "Step 1 of 3")
	if _, said, err := issue(t, url, "rotate"); err == nil || !strings.Contains(said, "--published") {
		t.Errorf("%v %s", err, said)
	}
	mustSay(t, mustIssue(t, url, "rotate", "--published"), "Step 2 of 3")
	if _, said, err := issue(t, url, "rotate", "--published"); err == nil || !strings.Contains(said, "may sign after") {
		t.Errorf("%v %s", err, said)
	}
	mustSay(t, mustIssue(t, url, "rotate", "--published", "--after=0s"), "Step 3 of 3")
}
