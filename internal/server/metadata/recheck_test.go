package metadata

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/internal/server/credentials"
	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/internal/server/sts"
)

// What was looked up changes while a request has the credentials in its hand: the second look,
// before the answer, finds that, and the old ones are not handed out.
func TestWhatChangesBetweenTwoLooks(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*edge)
		status int
		has    string
	}{
		"the address has another pod": {func(e *edge) {
			e.deletePod(pod("a", ip, 0))
			e.setPod(pod("b", ip, 0))
		}, http.StatusOK, "ASIA-b/app"},
		"the account has another role of that name": {func(e *edge) {
			e.sts.verdict("b/app") <- nil
			e.setAccount(account("a", "b/app"))
		}, http.StatusOK, "ASIA-b/app"},
		"the account has another role":     {func(e *edge) { e.setAccount(account("a", "other")) }, http.StatusNotFound, ""},
		"another account has another role": {func(e *edge) { e.setAccount(account("c", "other")) }, http.StatusOK, "ASIA-app"},
	} {
		t.Run(name, func(t *testing.T) {
			held := &heldSTS{}
			e := newEdgeOver(t, held, 15*time.Second, newHub())
			for _, roleName := range []string{"app", "b/app", "other"} {
				held.verdict(roleName) <- nil
			}
			e.setAccount(account("b", "b/app"))
			e.setPod(pod("b", "10.1.2.4", 0))
			if got, _ := e.get(t.Context(), "10.1.2.4", list+"app"); got.Code != http.StatusOK {
				t.Fatalf("%d %s", got.Code, got.Body)
			}
			e.deletePod(pod("b", "10.1.2.4", 0))
			e.setAccount(account("a", "app"))
			e.setPod(pod("a", ip, 0))
			if got, _ := e.get(t.Context(), ip, list+"app"); !strings.Contains(got.Body.String(), "ASIA-app") {
				t.Fatalf("%d %s", got.Code, got.Body)
			}
			get, changed := e.Server.get, false
			e.Server.get = func(r *role.Role) (*credentials.Issued, *sts.Error) {
				issued, failure := get(r)
				if !changed {
					changed = true
					tc.change(e)
				}
				return issued, failure
			}
			got, _ := e.get(t.Context(), ip, list+"app")
			if !changed || got.Code != tc.status || !strings.Contains(got.Body.String(), tc.has) {
				t.Errorf("%d %s, want %d and %s", got.Code, got.Body, tc.status, tc.has)
			}
		})
	}
}
