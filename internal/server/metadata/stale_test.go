package metadata

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// While nothing is heard from the API server, nobody gets anything by an address: not by a
// request that comes, and not by one that waits.
func TestStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEdge(t, 15*time.Second, newHub())
		e.setPod(pod("a", ip, time.Hour))
		e.setAccount(account("a", "one"))
		waits := e.began(t.Context(), ip, list+"one")
		e.cfg.Identity.SetStale(true)
		e.sts.verdict("one") <- nil
		got, took := waits()
		check(t, "waiting", got, took, http.StatusServiceUnavailable, 0, "stale: ")
		for _, path := range []string{list, list + "one", "/latest/meta-data/placement/region", "/latest/dynamic/instance-identity/document", pathReady + "?wait=5s"} {
			got, took := e.get(t.Context(), ip, path)
			check(t, path, got, took, http.StatusServiceUnavailable, 0, "stale: ")
			if name := got.Header().Get("X-Iam4kube-Pod"); name != "" || strings.Contains(got.Body.String(), "ns/a") {
				t.Errorf("%s names the pod: %q %s", path, name, got.Body)
			}
		}
		e.cfg.Identity.SetStale(false)
		got, took = e.get(t.Context(), ip, list+"one")
		check(t, "after", got, took, http.StatusOK, 0, "ASIA-one")
	})
}
