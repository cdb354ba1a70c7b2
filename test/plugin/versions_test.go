package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/test/environment"
)

// Servers of other versions are those of this one whose answers are changed on their way to the
// plugin, because a second build of everything would take minutes, and what has changed so far
// is little: the dumps are as in the first version that had them.

// page is what the server says on one of its two listeners.
func (r *server) page(t testing.TB, path string) (status int, body string) {
	t.Helper()
	port := "9090"
	if strings.HasPrefix(path, "/debug/") {
		port = "6060"
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: r.ns.DialContext}}
	response, err := client.Get("http://127.0.0.1:" + port + path)
	if err != nil {
		t.Error(err)
		return http.StatusBadGateway, ""
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Error(err)
	}
	return response.StatusCode, string(text)
}

// asVersion changes what the plugin gets of all servers until the test ends. A body that becomes
// empty is a path that the version does not have.
func (s *setup) asVersion(t *testing.T, change func(path, body string) string) {
	t.Helper()
	for _, r := range s.servers {
		changed := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
			status, body := r.page(t, request.URL.Path)
			if body = change(request.URL.Path, body); body == "" {
				status = http.StatusNotFound
			}
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}))
		t.Cleanup(changed.Close)
		s.kubelet.run(r.pod, func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, changed.Listener.Addr().String())
		})
		t.Cleanup(func() { s.kubelet.run(r.pod, r.ns.DialContext) })
	}
}

// otherVersion is what build_info says.
func otherVersion(path, body string) string {
	if path != "/metrics" {
		return body
	}
	before, rest, _ := strings.Cut(body, `,version="`)
	_, after, _ := strings.Cut(rest, `"`)
	return before + `,version="v0.9.0"` + after
}

// without takes series of these metrics away.
func without(body string, names ...string) string {
	var kept strings.Builder
	for line := range strings.Lines(body) {
		if !slices.ContainsFunc(names, func(name string) bool { return strings.HasPrefix(line, name) }) {
			kept.WriteString(line)
		}
	}
	return kept.String()
}

// versions are others, with what `check` and `why` cannot see of them, by the line, and what that
// line says. Everything else is well.
var versions = []struct {
	name       string
	change     func(path, body string) string
	check, why map[string]string
}{
	{name: "one behind", change: func(_, body string) string {
		// What servers have since the first version of the debug listener.
		return without(body, "iam4kube_audit_", "iam4kube_imds_requests_total", "iam4kube_issuer_")
	}},
	{name: "one ahead", change: func(path, body string) string {
		switch path {
		case "/debug/roles", "/debug/pods":
			return strings.ReplaceAll(body, `"Namespace":`, `"Shard": {"Of": 3}, "Namespace":`)
		}
		return body + "iam4kube_shards{of=\"3\"} 1\n"
	}},
	{name: "a metric has another name", change: func(_, body string) string {
		return strings.ReplaceAll(body, "iam4kube_cut_off", "iam4kube_apart")
	}, check: map[string]string{"lists and watches": "has no metric iam4kube_cut_off: use the plugin of its version"}},
	{name: "a role is in a state of another name", change: func(path, body string) string {
		if path == "/debug/roles" {
			return strings.ReplaceAll(body, `"State": "valid"`, `"State": "resting"`)
		}
		return body
	}, why: map[string]string{"STS": `by which the role is "resting": use the plugin of its version`}},
	{
		name: "a dump has another form", change: func(path, body string) string {
			if path == "/debug/roles" {
				return `{"roles": ` + body + `}`
			}
			return body
		},
		check: map[string]string{"roles": "/debug/roles is not what this plugin reads: is the plugin of the servers' version?"},
		why:   map[string]string{"address": "/debug/roles is not what this plugin reads"}, // the rest is by events
	},
	{
		name: "a dump is gone", change: func(path, body string) string {
			if path == "/debug/pods" {
				return ""
			}
			return body
		},
		check: map[string]string{"roles": "/debug/pods: status 404: is the plugin of the servers' version?"},
		why:   map[string]string{"address": "/debug/pods: status 404"},
	},
}

// Of servers of another version the plugin says what it sees and what not, and which plugin to
// use. It never calls well what it could not read, and nothing makes it fail.
func TestOtherVersions(t *testing.T) {
	s := install(t)
	w := healthy()
	w.create(t, s)
	w.ready(t, s, http.StatusNoContent)
	arn := w.account[role.AnnotationARN]
	for _, r := range s.servers {
		r.ask(t, w.address, rolesPath+arn[strings.LastIndex(arn, "/")+1:])
	}
	t.Run("plugin one behind", func(t *testing.T) { stillThere(t, s.servers[0]) })
	for _, tc := range versions {
		t.Run(tc.name, func(t *testing.T) {
			s.asVersion(t, func(path, body string) string { return tc.change(path, otherVersion(path, body)) })
			environment.Eventually(t, within, func() error { // a moment until nothing else is amiss
				a := check(t)
				status := 0
				if len(tc.check) > 0 {
					status = 3
				}
				if bad := a.bad("warning"); a.status != status || len(bad) != 1 || bad[0].Piece != "version-skew" || !strings.Contains(bad[0].Text, "the servers are v0.9.0") || bad[0].Remedy == "" {
					return fmt.Errorf("status %d: %s", a.status, a.text)
				}
				return unseen(tc.check, a.bad("cannot-see", "broken"))
			})
			environment.Eventually(t, within, func() error { // until the event is there
				a := w.why(t)
				var bad []link
				for _, l := range a.Links {
					if l.State != "ok" {
						bad = append(bad, l)
					}
				}
				if a.Broken != "" || (a.status == 3) != (len(tc.why) > 0) {
					return fmt.Errorf("status %d: %s", a.status, a.text)
				}
				return unseen(tc.why, bad)
			})
		})
	}
}

// unseen wants these lines, and no others, to be those that could not be seen.
func unseen(want map[string]string, have []link) error {
	var all []error
	for _, l := range have {
		if says, found := want[l.Link]; !found || l.State != "cannot-see" || !strings.Contains(l.Text, says) {
			all = append(all, fmt.Errorf("%+v", l))
		}
	}
	if len(have) != len(want) {
		all = append(all, fmt.Errorf("%d lines, want %d", len(have), len(want)))
	}
	return errors.Join(all...)
}

// stillThere looks for what the first version of the plugin reads, which says nothing of what is
// missing.
func stillThere(t *testing.T, r *server) {
	t.Helper()
	_, metrics := r.page(t, "/metrics")
	for _, name := range []string{
		"iam4kube_ambiguous_addresses", "iam4kube_build_info", "iam4kube_cut_off", "iam4kube_informer_synced", "iam4kube_roles", "iam4kube_service_accounts",
		"iam4kube_stale", "iam4kube_sts_identity_refused", "iam4kube_token_key_refused_total",
	} {
		if !strings.Contains(metrics, "\n"+name+"{") && !strings.Contains(metrics, "\n"+name+" ") {
			t.Errorf("no metric %s", name)
		}
	}
	for path, fields := range map[string][]string{
		"/debug/roles": {"Namespace", "ServiceAccount", "ARN", "SessionName", "Duration", "State", "AccessKeyID", "Expiration", "NextAttempt"},
		"/debug/pods":  {"Namespace", "Name", "ServiceAccount", "Node", "Addresses", "Terminating", "HostNetwork", "Static", "Ended", "AccessKeyID"},
	} {
		_, body := r.page(t, path)
		var all []map[string]any
		if err := json.Unmarshal([]byte(body), &all); err != nil {
			t.Fatalf("%s: %v: %s", path, err, body)
		}
		for _, field := range fields {
			if !slices.ContainsFunc(all, func(one map[string]any) bool { return one[field] != nil }) {
				t.Errorf("%s has no %s: %s", path, field, body)
			}
		}
		if path == "/debug/roles" && (len(all) == 0 || all[0]["State"] != "valid") {
			t.Errorf("no role is called valid: %s", body)
		}
	}
}
