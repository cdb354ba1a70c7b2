package metadata

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/iam4kube/iam4kube/internal/server/role"
)

// The address changes hands between a request's first look at it and the credentials:
// the second look, before the answer, finds that, and the old pod's credentials are not
// handed out. What holds the request up in between is the cache's lock, taken by Fill
// over many roles.
//
// No test can see where exactly a request is, so this is tried many times: a request
// that was under way when the address changed hands may have been past its second look in
// a try or two, but without that look it would be wrong nearly every time.
func TestAddressChangesHandsBetweenTwoLooks(t *testing.T) {
	const enough, roles = 10, 20_000
	held := &heldSTS{places: make(chan struct{}, 2)}
	e := newEdgeOver(t, held, 15*time.Second, newHub())
	for range cap(held.places) {
		held.places <- struct{}{}
	}
	for name, roleName := range map[string]string{"a": "app", "b": "b/app"} {
		held.verdict(roleName) <- nil
		e.setAccount(account(name, roleName))
		e.setPod(pod(name, ip, 0))
		if got, _ := e.get(t.Context(), ip, list+"app"); got.Code != http.StatusOK {
			t.Fatalf("%d %s", got.Code, got.Body)
		}
		e.deletePod(pod(name, ip, 0))
	}
	for i := range roles {
		e.cfg.Credentials.Want(&role.Role{Namespace: "others", ARN: fmt.Sprint(i)})
	}
	underWay, wrong, tries := 0, 0, 0
	for ; underWay < enough && tries < 100*enough; tries++ {
		e.setPod(pod("a", ip, 0))
		filled, answered := make(chan struct{}), make(chan string, 1)
		var done atomic.Bool
		go func() {
			defer close(filled)
			e.cfg.Credentials.Fill()
		}()
		go func() {
			got, _ := e.get(t.Context(), ip, list+"app")
			done.Store(true)
			answered <- got.Body.String()
		}()
		<-time.After(time.Millisecond)
		before := !done.Load()
		e.deletePod(pod("a", ip, 0))
		e.setPod(pod("b", ip, 0))
		body := <-answered
		<-filled
		e.deletePod(pod("b", ip, 0))
		if !before {
			continue
		}
		underWay++
		if !strings.Contains(body, "ASIA-b/app") {
			wrong++
		}
	}
	t.Logf("%d of %d requests were under way, %d got the old pod's credentials", underWay, tries, wrong)
	if underWay < enough || wrong > underWay/2 {
		t.Errorf("%d of %d requests were under way, %d got the old pod's credentials", underWay, tries, wrong)
	}
}
