package page

import (
	"errors"
	"fmt"
	"html"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/iam4kube/iam4kube/internal/server/credentials"
	"github.com/iam4kube/iam4kube/internal/server/identity"
)

// source has this many roles, a few of them in each state but valid, in 50 namespaces.
func source(roles int) Source {
	registry := prometheus.NewRegistry()
	waiting := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "iam4kube_waiting_requests", Help: "x"}, []string{"missing"})
	waiting.WithLabelValues("pod").Set(7)
	synced := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "iam4kube_informer_synced", Help: "x"}, []string{"resource"})
	synced.WithLabelValues("pods").Set(1)
	synced.WithLabelValues("nodes").Set(0)
	heard := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "iam4kube_watch_last_event_timestamp_seconds", Help: "x"}, []string{"resource"})
	heard.WithLabelValues("pods").Set(float64(time.Now().Add(-3 * time.Hour).Unix()))
	heard.WithLabelValues("nodes").Set(0)
	cutOff := prometheus.NewGauge(prometheus.GaugeOpts{Name: "iam4kube_cut_off", Help: "x"})
	cutOff.Set(1)
	registry.MustRegister(waiting, synced, heard, cutOff)
	return Source{
		Roles: func() (all []credentials.RoleState) {
			for i := range roles {
				expires := time.Now().Add(40 * time.Minute)
				r := credentials.RoleState{
					Namespace: fmt.Sprint("team-", i%50), ServiceAccount: fmt.Sprint("app-", i), ARN: fmt.Sprint("arn:aws:iam::123456789012:role/app-", i),
					State: "valid", AccessKeyID: fmt.Sprintf("ASIA%016d", i), Expiration: &expires, NextAttempt: expires.Add(-25 * time.Minute),
				}
				if i > 0 && i < 3*len(states) && states[i%len(states)] != "valid" {
					r.State, r.AccessKeyID, r.Expiration, r.Failures = states[i%len(states)], "", nil, 3
					r.Failure = fmt.Sprintf("AccessDenied: <script>alert(%d)</script>", i)
				}
				all = append(all, r)
			}
			return all
		},
		Namespaces: func() (all []identity.NamespaceState) {
			for i := range 50 {
				all = append(all, identity.NamespaceState{Name: fmt.Sprint("team-", i), Pods: i, May: "any"})
			}
			return all
		},
		Replicas: func() []netip.Addr { return []netip.Addr{netip.MustParseAddr("10.1.2.3")} },
		Ready:    func() error { return errors.New("no key") },
		Metrics:  registry,
	}
}

func get(t *testing.T, s Source, path string) string {
	t.Helper()
	answer := httptest.NewRecorder()
	New(s).ServeHTTP(answer, httptest.NewRequest(http.MethodGet, path, http.NoBody))
	if answer.Code != http.StatusOK {
		t.Fatalf("%s: %d", path, answer.Code)
	}
	if policy := answer.Header().Get("Content-Security-Policy"); !strings.Contains(policy, "default-src 'none'") {
		t.Errorf("%s: %q", path, policy)
	}
	return answer.Body.String()
}

// rows are the cells of a table's body, without markup.
func rows(t *testing.T, text, table string) (all [][]string) {
	t.Helper()
	_, text, found := strings.Cut(text, `<table id="`+table+`">`)
	if !found {
		t.Fatalf("no table %s", table)
	}
	text, _, _ = strings.Cut(text, "</table>")
	if _, body, found := strings.Cut(text, "<tbody>"); found {
		text = body
	}
	for _, row := range regexp.MustCompile(`(?s)<tr.*?</tr>`).FindAllString(text, -1) {
		var cells []string
		for _, cell := range regexp.MustCompile(`(?s)<t[dh].*?</t[dh]>`).FindAllString(row, -1) {
			cells = append(cells, html.UnescapeString(regexp.MustCompile(`<[^>]*>`).ReplaceAllString(cell, "")))
		}
		all = append(all, cells)
	}
	return all
}

func TestPage(t *testing.T) {
	text := get(t, source(100), "/")
	for _, want := range []string{
		"✗ not ready: no key", "✗ cut off: 1", `<meta http-equiv="refresh" content="5">`, "100 of 100 roles", "10.1.2.3", "50 namespaces",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in %s", want, text)
		}
	}
	for table, want := range map[string]string{
		"waiting": "[pod 7]", "watches": "[nodes not listed yet] [pods heard 3h0m ago]",
		"states": "[identity 2] [denied 3] [unavailable 3] [throttled 3] [valid-failing 3] [pending 3] [valid 83] [all 100]",
	} {
		var got []string
		for _, row := range rows(t, text, table) {
			got = append(got, fmt.Sprint(row))
		}
		if all := strings.Join(got, " "); all != want {
			t.Errorf("%s: %s, want %s", table, all, want)
		}
	}
	first := rows(t, text, "roles")[0]
	if first[0] != "identity" || first[5] != "" || !strings.HasPrefix(first[6], "in 15m") || first[7] != "3×: AccessDenied: <script>alert(7)</script>" {
		t.Errorf("%q", first)
	}
	if namespaces := rows(t, text, "namespaces"); namespaces[0][3] != "1" || namespaces[49][3] != "0" {
		t.Errorf("failing namespaces are not first: %q", namespaces)
	}
}

// What others have chosen is text, wherever it is shown; and the page has no script of its own.
func TestNothingRuns(t *testing.T) {
	for _, query := range []string{"", "?q=" + url.QueryEscape(`"><script>alert(1)</script>`), "?namespace=" + url.QueryEscape(`"onfocus="alert(1)`), "?state=" + url.QueryEscape(`javascript:alert(1)`)} {
		text := get(t, source(100), "/"+query)
		if strings.Contains(text, "<script") || regexp.MustCompile(`(href|src|action)="javascript:`).MatchString(text) || regexp.MustCompile(`<[^>]* on[a-z]+="`).MatchString(text) {
			t.Errorf("%s: %s", query, text)
		}
	}
}

func TestFilters(t *testing.T) {
	for query, want := range map[string]int{
		"": 100, "q=APP-99": 1, "q=accessdenied": 17, "state=denied": 3, "namespace=team-7": 2, "namespace=team-7&state=valid": 1,
		"q=ASIA0000000000000099": 1, "q=nothing": 0, "q=role/app-1": 11, "follow=no&q=app-99": 1,
	} {
		text := get(t, source(100), "/?"+query)
		all := rows(t, text, "roles")
		if n := len(all); n != want && (want > 0 || n != 1 || all[0][0] != "none") {
			t.Errorf("%s: %d roles, want %d", query, n, want)
		}
		if follows := strings.Contains(text, "refresh"); follows == strings.Contains(query, "follow=no") {
			t.Errorf("%s: follows: %v", query, follows)
		}
	}
	// The links keep the filter.
	if text := html.UnescapeString(get(t, source(100), "/?q=app&namespace=team-7&follow=no")); !strings.Contains(text, `href="/?follow=no&namespace=team-7&q=app&state=denied"`) || !strings.Contains(text, `href="/?namespace=team-7&q=app"`) {
		t.Errorf("%s", text)
	}
}

// With many roles the page stays one that a browser shows at once, and the worst are on it.
func TestFiveThousandRoles(t *testing.T) {
	s := source(5000)
	start := time.Now()
	text := get(t, s, "/")
	t.Logf("%d KiB in %v", len(text)>>10, time.Since(start))
	if len(text) > 1<<20 {
		t.Errorf("%d bytes", len(text))
	}
	all := rows(t, text, "roles")
	if len(all) != mostRows || all[0][0] != "identity" || !strings.Contains(text, "5000 of 5000 roles, the first 500") {
		t.Errorf("%d rows, the first: %q", len(all), all[0])
	}
	if found := rows(t, get(t, s, "/?q=app-4999"), "roles"); len(found) != 1 || found[0][2] != "app-4999" {
		t.Errorf("%q", found)
	}
}

func TestTimes(t *testing.T) {
	now := time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
	for offset, want := range map[time.Duration]string{
		-time.Hour: "now", 0: "now", 61 * time.Second: "in 1m1s", 40 * time.Minute: "in 40m", 65*time.Minute + 20*time.Second: "in 1h5m",
	} {
		if got := until(now, now.Add(offset)); got != want {
			t.Errorf("%v: %s, want %s", offset, got, want)
		}
	}
	for offset, want := range map[time.Duration]string{-time.Second: "0s ago", 40 * time.Second: "40s ago", 3 * time.Minute: "3m ago"} {
		if got := ago(now, now.Add(-offset)); got != want {
			t.Errorf("%v: %s, want %s", offset, got, want)
		}
	}
	if got := ago(now, time.Unix(0, 0)); got != "never" {
		t.Error(got)
	}
}
