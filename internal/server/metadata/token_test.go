package metadata

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// A bad token is 401 whatever is asked, and so is none where tokens are required: clients
// probe paths that are not served for that. The two exceptions are how one comes to a
// token, and the init container, which has none.
func TestTokenOnEveryPath(t *testing.T) {
	for name, v1 := range map[string]bool{"v1": true, "no v1": false} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, 0)
			s.cfg.IMDSv1 = v1
			without := func(status int) int {
				if v1 {
					return status
				}
				return http.StatusUnauthorized
			}
			for _, c := range []struct {
				method, path       string
				good, without, bad int
			}{
				{"GET", "/latest" + pathRoles + "/" + roleName, 200, without(200), 401},
				{"GET", "/latest" + pathRoles, 200, without(200), 401},
				{"GET", "/latest/meta-data/placement/region", 200, without(200), 401},
				{"GET", "/", 404, without(404), 401}, // Fluent Bit
				{"GET", "/latest/user-data", 404, without(404), 401},
				{"GET", "/latest/meta-data/instance-id", 404, without(404), 401},
				{"POST", "/x", 404, without(404), 401},
				{"POST", "/latest" + pathRoles, 405, without(405), 401},
				{"GET", pathToken, 405, without(405), 401},
				{"PUT", "/latest/api/other", 404, without(404), 401},
				{"GET", "*", 404, without(404), 401},
				{"PUT", pathToken, 200, 200, 200},
				{"GET", pathReady, 204, 204, 401},
				{"POST", pathReady, 405, 405, 401},
			} {
				for _, sent := range []struct {
					status int
					tokens [][]string
				}{
					{c.good, [][]string{{s.token(t)}}},
					{c.without, [][]string{nil}},
					{c.bad, [][]string{{""}, {"forged"}, {s.token(t) + "x"}, {s.token(t), s.token(t)}}},
				} {
					for _, token := range sent.tokens {
						request := httptest.NewRequestWithContext(t.Context(), c.method, "http://169.254.169.254/", http.NoBody)
						request.RequestURI, request.RemoteAddr = c.path, podAddress+":40000"
						request.Header[headerTokenTTL] = []string{"60"}
						if token != nil {
							request.Header[headerToken] = token
						}
						recorder := httptest.NewRecorder()
						s.ServeHTTP(recorder, request)
						if recorder.Code != sent.status || recorder.Header().Get("Server") != "iam4kube" || strings.Contains(recorder.Body.String(), secretKey) && sent.status != 200 {
							t.Errorf("%s %s with %q: %d, want %d: %s", c.method, c.path, token, recorder.Code, sent.status, recorder.Body)
						}
					}
				}
			}
		})
	}
}
