package server

import (
	"bufio"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/iam4kube/iam4kube/test/environment"
)

// imdsPaths reads testdata/imds-paths.txt.
func imdsPaths(t *testing.T) []string {
	t.Helper()
	file, err := os.Open("testdata/imds-paths.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	var paths []string
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if line := lines.Text(); line != "" && !strings.HasPrefix(line, "#") {
			paths = append(paths, line)
		}
	}
	if len(paths) < 200 {
		t.Fatalf("only %d paths", len(paths))
	}
	return paths
}

// checkClosed checks one answer that must open nothing.
func checkClosed(t *testing.T, what string, a answered, statuses ...int) {
	t.Helper()
	allowed := false
	for _, status := range statuses {
		allowed = allowed || a.StatusCode == status
	}
	if !allowed {
		t.Errorf("%.200q: status %d, want %v: %s", what, a.StatusCode, statuses, a.body)
	}
	if a.Header.Get("Location") != "" || a.Header.Get("Server") != "iam4kube" {
		t.Errorf("%.200q: header %v", what, a.Header)
	}
	if a.StatusCode == http.StatusMethodNotAllowed && a.Header.Get("Allow") == "" {
		t.Errorf("%.200q: 405 without Allow", what)
	}
	checkNoSecret(t, what, a.body)
}

func checkNoSecret(t *testing.T, what, answer string) {
	t.Helper()
	if secret := env.Leak(answer); secret != "" {
		t.Errorf("%.200q opens credentials: %s", what, secret)
	}
}

// The pod has a role, and its credentials are warm: whatever is open, shows.
func TestClosedByDefault(t *testing.T) {
	t.Parallel()
	s, w := startWarm(t, "closed")
	t.Run("paths of EC2", func(t *testing.T) {
		t.Parallel()
		token := newToken(t, s, w.from, "600")
		for _, path := range imdsPaths(t) {
			checkClosed(t, path, send(t, s, w.from, http.MethodGet, path), http.StatusNotFound)
			checkClosed(t, path, send(t, s, w.from, http.MethodGet, path, tokenLine+token), http.StatusNotFound)
		}
		for _, path := range []string{"/latest/user-data", "/latest/meta-data/iam", "/"} {
			for _, method := range methods {
				checkClosed(t, method+path, send(t, s, w.from, method, path), http.StatusNotFound)
			}
		}
	})
	t.Run("targets", func(t *testing.T) {
		t.Parallel()
		closedTargets(t, s, w)
	})
	t.Run("methods", func(t *testing.T) {
		t.Parallel()
		closedMethods(t, s, w)
	})
	t.Run("not HTTP", func(t *testing.T) {
		t.Parallel()
		closedGarbage(t, s, w)
	})
}

// closedTargets asks for the pod's credentials in every way but the right one.
func closedTargets(t *testing.T, s *environment.Server, w workload) {
	t.Helper()
	const m = "/latest/meta-data/iam/security-credentials/"
	role := strings.TrimPrefix(w.path(), m)
	for target, status := range map[string]int{
		// Slashes and dots. net/http's own mux would redirect or clean these.
		"//169.254.169.254" + w.path():         404,
		"/latest/ /" + w.path()[8:]:            400,
		"/." + w.path():                        404,
		w.path() + "/x":                        404,
		w.path() + "//" + role:                 404,
		"/.." + w.path():                       404,
		"/x/.." + w.path():                     404,
		"/latest/./" + w.path()[8:]:            404,
		m + "./" + role:                        404,
		m + "x/../" + role:                     404,
		m + role + "/.":                        404,
		m + role + "/..":                       404,
		m + "..":                               404,
		m + "../../user-data":                  404,
		w.path() + ".":                         404,
		w.path() + "...":                       404,
		"/latest/user-data/../" + w.path()[8:]: 404,

		// Encodings. Only the role's name is decoded, once, and then compared.
		"/%2e%2e" + w.path():                                      404,
		"/x/%2e%2e" + w.path():                                    404,
		"/%2E" + w.path():                                         404,
		"/%2f" + w.path()[1:]:                                     404,
		"/%6catest" + w.path()[7:]:                                404,
		strings.Replace(w.path(), "iam/", "iam%2f", 1):            404,
		strings.Replace(w.path(), "iam", "%69am", 1):              404,
		strings.ReplaceAll(w.path(), "/", "%2F"):                  400, // no path at all
		"/" + strings.ReplaceAll(w.path()[1:], "/", "%2F"):        404,
		m + "%2f" + role:                                          404,
		m + "x%2f" + role:                                         404,
		m + "x%2f..%2f" + role:                                    404,
		m + "team%2F" + role:                                      404,
		m + "%2e%2e%2f" + role:                                    404,
		m + role + "%2f":                                          404,
		m + role + "%00":                                          404,
		m + role + "%0a":                                          404,
		m + role + "%0d%0aLocation:%20x":                          404,
		m + role + "%20":                                          404,
		m + role + "%":                                            400,
		m + role + "%zz":                                          400,
		m + role + "%u002f":                                       400,
		m + strings.Replace(role, "r", "%2572", 1):                404, // encoded twice
		m + "%c0%af" + role:                                       404, // overlong UTF-8 of a slash
		m + strings.Replace(role, "r", "\u0280", 1):               404,
		m + strings.Replace(role, "r", "\uff52", 1):               404, // full-width r
		"/latest\u2215meta-data/iam/security-credentials/" + role: 404, // division slash
		"/latest\xc0\xaf" + w.path()[8:]:                          404,
		"/\xff\xfe" + w.path():                                    404,

		// Case, separators, parameters.
		strings.ToUpper(w.path()):                            404,
		"/LATEST" + w.path()[7:]:                             404,
		m + strings.ToUpper(role):                            404,
		strings.ReplaceAll(w.path(), "/", `\`):               400,
		"/" + strings.ReplaceAll(w.path(), "/", `\`):         404,
		`/latest\meta-data\iam\security-credentials\`:        404,
		`/latest/meta-data\iam/security-credentials/` + role: 404,
		m + role + `\`:                                       404,
		w.path() + "?":                                       404,
		w.path() + "?a=b":                                    404,
		w.path() + "?/iam4kube/ready":                        404,
		"/?" + w.path():                                      404,
		w.path() + ";jsessionid=1":                           404,
		"/latest;a=b" + w.path()[7:]:                         404,
		w.path() + "#":                                       404,
		w.path() + "#a":                                      404,
		"/#" + w.path():                                      404,
		w.path() + "&a=b":                                    404,
		w.path() + ",":                                       404,
		w.path() + ".json":                                   404,
		w.path() + "*":                                       404,
		m + "*":                                              404,
		m + "<script>alert(1)</script>":                      404,
		m + "${jndi:ldap://169.254.169.254/}":                404,
		"/latest/meta-data/iam/security-credentials" + role:  404,
		"/meta-data/iam/security-credentials/" + role:        404,
		"/latest/latest/meta-data/iam/security-credentials/" + role: 404,
		"/1.0/meta-data/iam/security-credentials/" + role:           404,
		"/2009-4-4/meta-data/iam/security-credentials/" + role:      404,
		"/2009-99-99/meta-data/iam/security-credentials/" + role:    404,
		tokenPath + "?":     404,
		tokenPath + "/x":    404,
		readyPath + "//x":   404,
		"/x/.." + readyPath: 404,

		// Absolute form: a proxy's, which this is not.
		"http://169.254.169.254" + w.path():               404,
		"http://169.254.169.254:80" + w.path():            404,
		"http://" + s.Address + w.path():                  404,
		"https://169.254.169.254" + w.path():              404,
		"http://user:password@169.254.169.254" + w.path(): 404,
		"http://[::1]" + w.path():                         404,
		"HTTP://169.254.169.254" + w.path():               404,
		"http://169.254.169.254":                          404,
		"http://" + w.path():                              404,
		"ftp://169.254.169.254" + w.path():                404,
		"file://" + w.path():                              404,
		"http:" + w.path():                                404,
		"http://localhost" + w.path():                     403, // a name as host
		"http://example.com/":                             403,
		"http://sts.amazonaws.com/":                       403,
		"//example.com" + w.path():                        404,
		"gopher://169.254.169.254:80/_GET%20" + w.path():  404,

		// Neither.
		"169.254.169.254:80": 400,
		"latest/meta-data":   400,
		"*":                  404,
		"?":                  400,
		m + role + "/" + strings.Repeat("a", 3<<10): 404,
		m + strings.Repeat("a", 3<<10):              404,
		m + strings.Repeat("../", 1<<10) + role:     404,
		"/" + strings.Repeat("/", 3<<10):            404,
		"/latest/" + strings.Repeat("%2e%2e/", 500): 404,
	} {
		raw := exchange(t, s, w.from, request(http.MethodGet, target))
		checkNoSecret(t, target, raw)
		if a := parse(t, raw, http.MethodGet)[0]; a.StatusCode != http.StatusBadRequest {
			checkClosed(t, target, a, status)
		} else if status != http.StatusBadRequest {
			t.Errorf("%.200q: 400, want %d", target, status)
		}
	}
}

// Slashes count as on EC2: a run of them as one, and a final one as none.
func TestSlashes(t *testing.T) {
	t.Parallel()
	s, w := startWarm(t, "slashes")
	path := func(parts ...string) string { return strings.Join(parts, "/") }
	role := w.path()[len(rolesPath):]
	for target, want := range map[string]string{
		"/" + w.path(): w.path(),
		"/latest//meta-data/iam/security-credentials/" + role: w.path(), // npm mongodb
		rolesPath + "/" + role:                                w.path(), // npm minio
		w.path() + "/":                                        w.path(),
		path("", "", "latest", "", "", "meta-data", "", "iam", "", "security-credentials", "", role, "", ""): w.path(),
		rolesPath + "/":         rolesPath,
		"/" + rolesPath:         rolesPath,
		docPath + "/":           docPath, // Fluent Bit
		infoPath + "/":          infoPath,
		"/" + docPath:           docPath,
		zonePath + "//":         zonePath,
		regionPath + "/":        regionPath,
		readyPath + "/":         readyPath,
		"/" + readyPath + "//?": readyPath,
	} {
		got, exact := send(t, s, w.from, http.MethodGet, target), send(t, s, w.from, http.MethodGet, want)
		if got.StatusCode != exact.StatusCode || got.body != exact.body || got.Header.Get("Location") != "" {
			t.Errorf("%s: %d %s, want what %s gives, %d %s", target, got.StatusCode, got.body, want, exact.StatusCode, exact.body)
		}
	}
	a := send(t, s, w.from, http.MethodPut, "/"+tokenPath+"/", ttlLine+"60")
	if a.StatusCode != http.StatusOK {
		t.Fatalf("%d %s", a.StatusCode, a.body)
	}
	if a := send(t, s, w.from, http.MethodGet, "/"+w.path(), tokenLine+a.body); a.StatusCode != http.StatusOK {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
}

// methods are what is not GET and not PUT: of HTTP, of WebDAV, of others, and of nobody.
var methods = []string{
	"POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "MKCOL", "COPY", "MOVE", "LOCK", "SEARCH", "PURGE",
	"QUERY", "PRI", "BREW", "get", "Get", "GETX", "G", "GET'", "!#$%&'*+-.^_`|~",
}

func closedMethods(t *testing.T, s *environment.Server, w workload) {
	t.Helper()
	paths := []string{
		w.path(), rolesPath, strings.TrimSuffix(rolesPath, "/"), zonePath, zonePath + "/", regionPath, docPath, infoPath, readyPath, readyPath + "?wait=5s",
	}
	for _, path := range paths {
		for _, method := range methods {
			// These make other servers and frameworks take another method or path.
			a := send(t, s, w.from, method, path, "X-HTTP-Method-Override: GET", "X-Original-URL: "+w.path(), "X-Rewrite-URL: "+w.path())
			checkClosed(t, method+" "+path, a, http.StatusMethodNotAllowed)
			if allow := a.Header.Get("Allow"); allow != http.MethodGet {
				t.Errorf("%s %s: Allow %q", method, path, allow)
			}
			if method == http.MethodTrace && strings.Contains(a.body, "X-Original-URL") {
				t.Errorf("TRACE %s is echoed: %s", path, a.body)
			}
		}
	}
	for _, method := range append([]string{http.MethodGet}, methods...) {
		if method == http.MethodPut {
			continue
		}
		a := send(t, s, w.from, method, tokenPath, ttlLine+"60")
		checkClosed(t, method+" "+tokenPath, a, http.StatusMethodNotAllowed)
		if allow := a.Header.Get("Allow"); allow != http.MethodPut {
			t.Errorf("%s %s: Allow %q", method, tokenPath, allow)
		}
	}
	for _, line := range []string{"OPTIONS *", "CONNECT 169.254.169.254:80", "CONNECT example.com:443", "CONNECT /"} {
		method, target, _ := strings.Cut(line, " ")
		status := http.StatusNotFound
		if strings.Contains(target, "example") {
			status = http.StatusForbidden // a name as host
		}
		checkClosed(t, line, send(t, s, w.from, method, target), status)
	}
}

// closedGarbage sends what is not HTTP/1: net/http refuses it before any handler, so
// there is no Server header, and the connection ends.
func closedGarbage(t *testing.T, s *environment.Server, w workload) {
	t.Helper()
	const head = "\r\nHost: 169.254.169.254\r\n\r\n"
	for raw, status := range map[string]int{
		"GET " + w.path() + "\r\n\r\n":                                                                     400, // HTTP/0.9
		"GET " + w.path() + " HTTP/1.1\r\nHost: 169.254.169.254" + head:                                    400, // two
		"GET " + w.path() + " HTTP/1.1\r\nHost: a b\r\n\r\n":                                               400,
		"GET " + w.path() + " http/1.1" + head:                                                             400,
		"GET " + w.path() + " HTTP/1.10" + head:                                                            400,
		"GET " + w.path() + " HTTP/9.9" + head:                                                             505,
		"GET " + w.path() + " HTTP/2.0" + head:                                                             505,
		"GET  " + w.path() + " HTTP/1.1" + head:                                                            400,
		"GET\t" + w.path() + "\tHTTP/1.1" + head:                                                           400,
		"GET " + w.path() + " x HTTP/1.1" + head:                                                           400,
		"GET " + w.path() + "\x00 HTTP/1.1" + head:                                                         400,
		"GET " + w.path() + "\x7f HTTP/1.1" + head:                                                         400,
		"GET " + w.path() + "\t HTTP/1.1" + head:                                                           400,
		"GET /\x00" + w.path() + " HTTP/1.1" + head:                                                        400,
		" GET " + w.path() + " HTTP/1.1" + head:                                                            400,
		"G\x00T " + w.path() + " HTTP/1.1" + head:                                                          400,
		"GET(" + w.path() + ") HTTP/1.1" + head:                                                            400,
		"(GET) " + w.path() + " HTTP/1.1" + head:                                                           400,
		"GET " + w.path() + " HTTP/1.1\r\nHost: 1.1.1.1\r\na b: c\r\n\r\n":                                 400,
		"GET " + w.path() + " HTTP/1.1\r\nHost: 1.1.1.1\r\na: b\x00c\r\n\r\n":                              400,
		"GET " + w.path() + " HTTP/1.1\r\n Host: 1.1.1.1\r\n\r\n":                                          400,
		"GET " + w.path() + " HTTP/1.1\r\nHost: 1.1.1.1\r\nX-Forwarded-For : 1.1.1.1\r\n\r\n":              400,
		"GET " + w.path() + " HTTP/1.1\r\nHost: 1.1.1.1\r\nContent-Length: -1\r\n\r\n":                     400,
		"GET " + w.path() + " HTTP/1.1\r\nHost: 1.1.1.1\r\nContent-Length: 0\r\nContent-Length: 1\r\n\r\n": 400,
		"GET " + w.path() + " HTTP/1.1\r\nHost: 1.1.1.1\r\nTransfer-Encoding: gzip\r\n\r\n":                501,
		"GET " + w.path() + " HTTP/1.1\r\nHost: 1.1.1.1\r\nExpect: 200-ok\r\n\r\n":                         417,
		"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03 TLS" + head:                                          400,
		"SSH-2.0-OpenSSH_9.2\r\n\r\n":                                                                      400,
		"*1\r\n$4\r\nPING\r\n\r\n":                                                                         400,
		strings.Repeat("\x00", 1000) + "\r\n\r\n":                                                          400,
		strings.Repeat("A", 1000) + "\r\n\r\n":                                                             400,
	} {
		answer := exchange(t, s, w.from, raw)
		checkNoSecret(t, raw, answer)
		a := parse(t, answer, http.MethodGet)[0]
		if a.StatusCode != status || a.Header.Get("Location") != "" || a.Header.Get("Server") != "" {
			t.Errorf("%.200q: want %d, got %q", raw, status, answer)
		}
	}
	// Connections that say nothing, or half of something, get nothing.
	for _, raw := range []string{"", "\r\n", "GET", "GET " + w.path(), "GET " + w.path() + " HTTP/1.1\r\nHost: 169.254.169.254\r\n"} {
		if answer := exchange(t, s, w.from, raw); strings.Contains(answer, " 200 ") || env.Leak(answer) != "" {
			t.Errorf("%q: got %q", raw, answer)
		}
	}
}
