package observability

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/internal/auxserver"
	"github.com/iam4kube/iam4kube/internal/logging"
	"github.com/iam4kube/iam4kube/internal/server/imdstoken"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/docs"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/fakests"
	"github.com/iam4kube/iam4kube/test/netns"
)

// busy is a server that has served, refused, waited and failed in every way.
type busy struct {
	*environment.Server
	ns string
	// bodies are all its answers but those that are credentials, which are the control:
	// the secrets that are looked for are in them.
	bodies, credentials strings.Builder
	token               string
	good                workload
	accessKeyID         string
	auditLog            string
}

// TestBusyServer looks at one busy server in every way that operators and users have.
func TestBusyServer(t *testing.T) {
	b := startBusy(t)
	b.serve(t)
	b.refuse(t)
	b.fail(t)
	b.abuse(t, 0)
	t.Run("metrics are named and typed as Prometheus wants it", b.promlint)
	t.Run("metrics are those of the documentation", b.documentedMetrics)
	t.Run("metrics have each stage", b.stages)
	t.Run("buckets", b.buckets)
	t.Run("series do not grow with what others send", b.bounded)
	t.Run("log lines are those of the documentation", b.logLines)
	t.Run("each outcome has its log line", b.outcomes)
	t.Run("debug listens on loopback alone", b.debugListener)
	t.Run("no secret anywhere", b.noSecret)
}

func startBusy(t *testing.T) *busy {
	t.Helper()
	b := &busy{ns: newNamespace(t, "busy"), auditLog: filepath.Join(t.TempDir(), "audit.log")}
	b.Server, _ = env.StartProcess(t, "--debug", "--drain", "0s", "--max-wait", "1s", "--sts-rate-limit", "200", "--sts-rate-burst", "200", "--audit-log", b.auditLog)
	b.WaitReady(t)
	return b
}

// ask sends a request and keeps the answer for noSecret.
func (b *busy) ask(t *testing.T, from netip.Addr, method, path string, header http.Header) (status int, body string) {
	t.Helper()
	response, body, err := b.Do(t.Context(), b.Client(t, from), method, path, header)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(body, `"SecretAccessKey"`) {
		b.credentials.WriteString(body)
	} else {
		fmt.Fprintln(&b.bodies, response.StatusCode, response.Header, body)
	}
	return response.StatusCode, body
}

func (b *busy) want(t *testing.T, w workload, status int) {
	t.Helper()
	if got, body := b.ask(t, w.from, http.MethodGet, w.path(), nil); got != status {
		t.Errorf("%s: %d, want %d: %s", w.Name, got, status, body)
	}
}

// serve is what succeeds.
func (b *busy) serve(t *testing.T) {
	t.Helper()
	if err := env.CreateNode(t.Context(), controlplane.Node{Name: "busy", Zone: "eu-west-1a", Region: "eu-west-1"}); err != nil {
		t.Fatal(err)
	}
	b.good = newWorkload(b.ns, "good", env.NewRole())
	b.good.Node = "busy"
	b.good.create(t)
	for range 3 {
		b.accessKeyID = b.good.getCredentials(t, b.Server)
		b.want(t, b.good, http.StatusOK)
	}
	ttl := http.Header{"X-Aws-Ec2-Metadata-Token-Ttl-Seconds": {"300"}}
	response, token, err := b.Do(t.Context(), b.Client(t, b.good.from), http.MethodPut, "/latest/api/token", ttl)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatal(err, token)
	}
	b.token = token
	withToken := http.Header{"X-Aws-Ec2-Metadata-Token": {token}}
	for path, status := range map[string]int{
		rolesPath: http.StatusOK, b.good.path(): http.StatusOK, zonePath: http.StatusOK,
		"/latest/meta-data/placement/region":          http.StatusOK,
		"/latest/dynamic/instance-identity/document":  http.StatusOK,
		"/iam4kube/ready":                             http.StatusNoContent,
		rolesPath + "other":                           http.StatusNotFound,
		"/latest/user-data":                           http.StatusNotFound,
		"/latest/meta-data/iam/security-credentials?": http.StatusNotFound,
	} {
		if got, body := b.ask(t, b.good.from, http.MethodGet, path, withToken); got != status {
			t.Errorf("%s: %d, want %d: %s", path, got, status, body)
		}
	}
}

// refuse is what somebody has to repair.
func (b *busy) refuse(t *testing.T) {
	t.Helper()
	b.want(t, newWorkload(b.ns, "denied", unknownRole).create(t), http.StatusOK)
	b.want(t, newWorkload(b.ns, "bad-annotation", "nonsense").create(t), http.StatusNotFound)
	noRole, noAccount := newWorkload(b.ns, "no-role", "").create(t), newWorkload(b.ns, "no-account", "").createPod(t)
	for _, w := range []workload{noRole, noAccount} {
		b.ask(t, w.from, http.MethodGet, zonePath, nil) // once the pod is known, so that it is not what is missing first
	}
	b.want(t, noRole, http.StatusNotFound)
	b.want(t, noAccount, http.StatusServiceUnavailable)
	b.want(t, newWorkload(b.ns, "no-pod", ""), http.StatusServiceUnavailable)
	one, two := newWorkload(b.ns, "one", ""), newWorkload(b.ns, "two", "")
	two.IPs = one.IPs
	one.create(t)
	two.create(t)
	environment.Eventually(t, within, func() error {
		if b.Metric(t, "iam4kube_ambiguous_addresses") == 0 {
			return errors.New("no ambiguous address")
		}
		return nil
	})
	b.want(t, one, http.StatusServiceUnavailable)
	host := newWorkload(b.ns, "host", "")
	host.HostIPs, host.HostNetwork = host.IPs, true
	host.create(t)
	environment.Eventually(t, within, func() error {
		if status, body := b.ask(t, host.from, http.MethodGet, rolesPath, nil); status != http.StatusForbidden {
			return fmt.Errorf("%d %s", status, body)
		}
		return nil
	})
	for name, c := range map[string]struct {
		header http.Header
		status int
	}{
		"garbled token": {http.Header{"X-Aws-Ec2-Metadata-Token": {b.token[1:]}}, http.StatusUnauthorized},
		"other's token": {http.Header{"X-Aws-Ec2-Metadata-Token": {b.token}}, http.StatusUnauthorized},
		"proxy":         {http.Header{"X-Forwarded-For": {"127.0.0.1"}}, http.StatusForbidden},
	} {
		if status, body := b.ask(t, one.from, http.MethodGet, rolesPath, c.header); status != c.status {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
}

// fail is what is STS's fault: each of the ways in which its answer can be of no use.
func (b *busy) fail(t *testing.T) {
	t.Helper()
	var clients sync.WaitGroup
	for _, effect := range []fakests.Effect{
		fakests.Throttling, fakests.InternalFailure, fakests.NotXML, fakests.TruncatedXML, fakests.EmptyBody, fakests.NoCredentials,
		fakests.PartialCredentials, fakests.ExpiresIn, fakests.IssueThenReset, fakests.Hang, fakests.InvalidClientTokenID, fakests.ExpiredToken,
	} {
		arn := env.NewRole()
		fault := fakests.Fault{Effect: effect}
		if effect == fakests.Throttling {
			fault.Times = 2 // each halves the rate for all
		}
		env.STS.SetFault(arn, fault)
		w := newWorkload(b.ns, "fault-"+strings.ToLower(string(effect)), arn).create(t)
		client := b.Client(t, w.from)
		clients.Go(func() {
			response, body, err := b.Do(t.Context(), client, http.MethodGet, w.path(), nil)
			if err != nil || response.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, "missing credentials") {
				t.Errorf("%s: %v %s", effect, err, body)
			}
		})
	}
	clients.Wait()
	gone, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, _, err := b.Do(gone, b.Client(t, env.Address()), http.MethodGet, rolesPath, nil); err == nil {
		t.Error("answered at once")
	}
	// Too many of one address.
	var statuses sync.Map
	from := env.Address()
	for i := range 70 {
		client := b.Client(t, from)
		clients.Go(func() {
			response, body, err := b.Do(t.Context(), client, http.MethodGet, rolesPath, nil)
			if err != nil {
				t.Error(i, err, body)
				return
			}
			statuses.Store(response.StatusCode, true)
		})
	}
	clients.Wait()
	if _, refused := statuses.Load(http.StatusTooManyRequests); !refused {
		t.Error("nobody was refused")
	}
}

// abuse is what a hostile pod can vary: paths, methods, headers, role names, addresses, and
// with rights in a namespace, names and annotations. Every n is another variation.
func (b *busy) abuse(t *testing.T, n int) {
	t.Helper()
	for _, path := range []string{
		fmt.Sprintf("/random-%d", n), fmt.Sprintf("%srole-%d", rolesPath, n), fmt.Sprintf("/2009-04-%02d/meta-data/iam/security-credentials/%d", n%28+1, n),
		fmt.Sprintf("/iam4kube/ready?wait=%dns", n), fmt.Sprintf("/latest/api/token?%d", n), fmt.Sprintf("/%%%02x", n%256),
	} {
		b.ask(t, b.good.from, http.MethodGet, path, nil)
		b.ask(t, b.good.from, fmt.Sprintf("METHOD%d", n), path, nil)
		b.ask(t, env.Address(), http.MethodPut, path, http.Header{fmt.Sprintf("X-%d", n): {"x"}})
	}
	b.ask(t, b.good.from, http.MethodPost, rolesPath, nil)
	b.ask(t, b.good.from, http.MethodPut, "/latest/api/token", http.Header{"X-Aws-Ec2-Metadata-Token-Ttl-Seconds": {fmt.Sprint(30000 + n)}})
	b.ask(t, b.good.from, http.MethodGet, rolesPath, http.Header{"X-Aws-Ec2-Metadata-Token": {fmt.Sprint(n)}})
	b.ask(t, env.Address(), http.MethodGet, "/iam4kube/ready", nil)
	ns := b.ns
	if n > 0 {
		ns = newNamespace(t, fmt.Sprintf("busy-%d", n))
	}
	w := newWorkload(ns, fmt.Sprintf("abuse-%d", n), fmt.Sprintf("%s-%d", unknownRole, n)).create(t)
	b.want(t, w, http.StatusOK)
	b.want(t, newWorkload(ns, fmt.Sprintf("nonsense-%d", n), fmt.Sprintf("nonsense-%d", n)).create(t), http.StatusNotFound)
}

func (b *busy) promlint(t *testing.T) {
	problems, err := promlint.New(strings.NewReader(b.metrics(t))).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, prefix) {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	// So it would find something.
	problems, err = promlint.New(strings.NewReader("# TYPE iam4kube_bad_total gauge\niam4kube_bad_total 1\n")).Lint()
	if err != nil || len(problems) == 0 {
		t.Error("promlint finds nothing")
	}
}

const prefix = "iam4kube_"

func (b *busy) metrics(t *testing.T) string {
	t.Helper()
	return fetch(t, b.Aux, "/metrics")
}

func fetch(t *testing.T, address, path string) string {
	t.Helper()
	response, err := http.Get("http://" + address + path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatal(path, response.Status, err)
	}
	return string(body)
}

// webIdentity begins the meaning of metrics that the busy server does not have.
const webIdentity = "With `AssumeRoleWithWebIdentity` alone: "

// documentedMetrics: the table has each metric with its type and labels, and nothing else
// in the text is named like a metric.
func (b *busy) documentedMetrics(t *testing.T) {
	table, families := docs.Rows(t, page, "Metrics"), b.Metrics(t)
	names := map[string]bool{}
	for name, family := range families {
		if !strings.HasPrefix(name, prefix) {
			continue
		}
		names[name] = true
		row := table[name]
		if row == nil {
			t.Errorf("%s is not documented", name)
			continue
		}
		labels := map[string]bool{}
		for _, m := range family.GetMetric() {
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = true
			}
		}
		if kind := strings.ToLower(family.GetType().String()); row[0] != kind {
			t.Errorf("%s is a %s, not a %s", name, kind, row[0])
		}
		if documented := docs.InBackquotes(row[1]); !slices.Equal(slices.Sorted(maps.Keys(labels)), slices.Sorted(slices.Values(documented))) {
			t.Errorf("%s has labels %v, not %v", name, labels, documented)
		}
	}
	for _, name := range regexp.MustCompile(`iam4kube_[a-z0-9_]+`).FindAllString(docs.Text(t, page), -1) {
		if row := table[name]; row != nil && strings.HasPrefix(row[3], webIdentity) {
			continue // of test/server's, which sees them
		}
		if !names[name] && !names[strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_count")] {
			t.Errorf("%s is documented and not exported", name)
		}
	}
}

// stages: every part of the busy run has left its trace.
func (b *busy) stages(t *testing.T) {
	for _, c := range []struct {
		name   string
		labels []string
		least  float64
	}{
		{"iam4kube_http_requests_total", []string{"endpoint", "credentials", "code", "200"}, 5},
		{"iam4kube_http_requests_total", []string{"endpoint", "credentials", "code", "503"}, 5},
		{"iam4kube_http_requests_total", []string{"endpoint", "role", "code", "401"}, 2},
		{"iam4kube_http_requests_total", []string{"endpoint", "role", "code", "429"}, 1},
		{"iam4kube_http_requests_total", []string{"endpoint", "role", "code", "499"}, 1},
		{"iam4kube_http_requests_total", []string{"endpoint", "none", "code", "404"}, 5},
		{"iam4kube_http_request_duration_seconds", []string{"endpoint", "credentials"}, 10},
		{"iam4kube_wait_duration_seconds", []string{"missing", "pod", "outcome", "timeout"}, 1},
		{"iam4kube_wait_duration_seconds", []string{"missing", "pod", "outcome", "client-gone"}, 1},
		{"iam4kube_wait_duration_seconds", []string{"missing", "pod", "outcome", "too-many"}, 1},
		{"iam4kube_wait_duration_seconds", []string{"missing", "single-pod", "outcome", "timeout"}, 1},
		{"iam4kube_wait_duration_seconds", []string{"missing", "service-account", "outcome", "timeout"}, 1},
		{"iam4kube_wait_duration_seconds", []string{"missing", "role-annotation", "outcome", "timeout"}, 1},
		{"iam4kube_sts_attempts_total", []string{"outcome", "success"}, 1},
		{"iam4kube_sts_attempts_total", []string{"outcome", "denied"}, 1},
		{"iam4kube_sts_attempts_total", []string{"outcome", "throttled"}, 1},
		{"iam4kube_sts_attempts_total", []string{"outcome", "identity"}, 2},
		{"iam4kube_sts_attempts_total", []string{"outcome", "unavailable"}, 5},
		{"iam4kube_sts_attempt_duration_seconds", nil, 10},
		{"iam4kube_sts_rate_limit", nil, 0.1},
		{"iam4kube_roles", []string{"state", "valid"}, 1},
		{"iam4kube_roles", []string{"state", "denied"}, 1},
		{"iam4kube_roles", []string{"state", "identity"}, 1},
		{"iam4kube_roles", []string{"state", "unavailable"}, 1},
		{"iam4kube_credentials_soonest_expiration_timestamp_seconds", nil, float64(time.Now().Add(30 * time.Minute).Unix())},
		{"iam4kube_informer_synced", []string{"resource", "pods"}, 1},
		{"iam4kube_informer_synced", []string{"resource", "secrets"}, 1},
		{"iam4kube_watch_last_event_timestamp_seconds", []string{"resource", "pods"}, float64(time.Now().Add(-2 * time.Minute).Unix())},
		{"iam4kube_pods", []string{"served", "yes"}, 10},
		{"iam4kube_pods", []string{"served", "no"}, 1},
		{"iam4kube_service_accounts", []string{"role", "valid"}, 10},
		{"iam4kube_service_accounts", []string{"role", "invalid"}, 1},
		{"iam4kube_service_accounts", []string{"role", "none"}, 1},
		{"iam4kube_ambiguous_addresses", nil, 1},
		{"iam4kube_events_total", []string{"outcome", "written"}, 5},
		{"iam4kube_audit_records_total", []string{"outcome", "written"}, 10},
		{"iam4kube_imds_requests_total", []string{"version", "v1"}, 10},
		{"iam4kube_imds_requests_total", []string{"version", "v2"}, 3},
	} {
		if v := b.Metric(t, c.name, c.labels...); v < c.least {
			t.Errorf("%s%v is %v, want at least %v", c.name, c.labels, v, c.least)
		}
	}
	for _, f := range b.Metrics(t)["iam4kube_sts_queue_length"].GetMetric() {
		if len(f.GetLabel()) != 1 {
			t.Errorf("queue: %v", f)
		}
	}
}

// buckets resolve a warm answer as well as the longest wait.
func (b *busy) buckets(t *testing.T) {
	for _, name := range []string{"iam4kube_http_request_duration_seconds", "iam4kube_wait_duration_seconds"} {
		var bounds []float64
		for _, bucket := range b.Metrics(t)[name].GetMetric()[0].GetHistogram().GetBucket() {
			bounds = append(bounds, bucket.GetUpperBound())
		}
		if bounds[0] > 0.0001 || !slices.Contains(bounds, 15) {
			t.Errorf("%s: %v", name, bounds)
		}
		for i := 1; i < len(bounds)-1; i++ { // the last one is +Inf
			if bounds[i]/bounds[i-1] > 2.5+1e-9 {
				t.Errorf("%s: from %v to %v", name, bounds[i-1], bounds[i])
			}
		}
	}
}

func (b *busy) series(t *testing.T) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	for name, family := range b.Metrics(t) {
		for _, m := range family.GetMetric() {
			if strings.HasPrefix(name, prefix) {
				all[name+labelsOf(m)] = true
			}
		}
	}
	return all
}

func labelsOf(m *dto.Metric) string {
	var labels []string
	for _, l := range m.GetLabel() {
		labels = append(labels, l.GetName()+"="+l.GetValue())
	}
	return fmt.Sprint(labels)
}

// bounded: after each kind of abuse was seen once, more of it makes no new series.
func (b *busy) bounded(t *testing.T) {
	before := b.series(t)
	for n := 1; n <= 10; n++ {
		b.abuse(t, n)
	}
	after := b.series(t)
	for s := range after {
		if !before[s] {
			t.Errorf("a new series: %s", s)
		}
	}
	t.Logf("%d series, a histogram counted once", len(after))
	if len(after) > 150 {
		t.Error("the documentation says at most 150")
	}
}

// logLines: each line is one JSON object whose message, level and keys are documented. The
// lines of client-go say so and have messages of their own.
func (b *busy) logLines(t *testing.T) {
	table := docs.Rows(t, page, "Logs")
	seen := map[string]bool{}
	for line := range strings.Lines(b.Logs.String()) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Errorf("%v: %s", err, line)
			continue
		}
		message, _ := fields["msg"].(string)
		seen[message] = true
		if _, err := time.Parse(time.RFC3339Nano, fmt.Sprint(fields["time"])); err != nil {
			t.Errorf("%v: %s", err, line)
		}
		if fields[logging.Library] == logging.ClientGo {
			continue
		}
		row := table[message]
		if row == nil || fields["level"] != row[0] {
			t.Errorf("not documented: %s", line)
			continue
		}
		documented := append(docs.InBackquotes(row[1]), "level", "time", "msg")
		for key := range fields {
			if !slices.Contains(documented, key) {
				t.Errorf("key %q is not documented: %s", key, line)
			}
		}
		if n := len(regexp.MustCompile(`"([a-z_]+)":`).FindAllString(line, -1)); n > len(fields)+strings.Count(line, `\"`) {
			t.Errorf("a key twice: %s", line)
		}
	}
	for _, message := range []string{"serving", "assumed role", "handed out credentials", "could not assume role", "could not serve a request", "refused a request"} {
		if !seen[message] {
			t.Errorf("no line %q", message)
		}
	}
}

// outcomes: one line for an attempt at STS, and one for a pod with its generation of
// credentials, by which CloudTrail leads back to the pod.
func (b *busy) outcomes(t *testing.T) {
	var handedOut []map[string]any
	for _, line := range b.Logs.Lines("handed out credentials") {
		if line[logging.Pod] == b.good.Name {
			handedOut = append(handedOut, line)
		}
	}
	if len(handedOut) != 1 {
		t.Fatalf("%v", handedOut)
	}
	for key, want := range map[string]string{
		logging.Namespace: b.ns, logging.ServiceAccount: "good", logging.RoleARN: b.good.arn,
		logging.SessionName: b.ns + "@good", logging.AccessKeyID: b.accessKeyID,
	} {
		if handedOut[0][key] != want {
			t.Errorf("%s is %v, want %s", key, handedOut[0][key], want)
		}
	}
	attempts := len(b.Logs.Lines("assumed role")) + len(b.Logs.Lines("could not assume role")) + len(b.Logs.Lines("STS refuses the server's own credentials"))
	counted := 0.0
	for _, m := range b.Metrics(t)["iam4kube_sts_attempts_total"].GetMetric() {
		counted += m.GetCounter().GetValue()
	}
	// Roles that fail are tried again meanwhile.
	if d := counted - float64(attempts); d < 0 || d > 20 {
		t.Errorf("%d lines of %v attempts", attempts, counted)
	}
	// The line says which credentials STS issued to whom.
	if issued, known := env.STS.Issued(b.accessKeyID); !known || issued.SessionName != b.ns+"@good" {
		t.Errorf("%+v", issued)
	}
}

// debugListener: the listener is not where other machines could reach it, and its paths are
// nowhere else.
func (b *busy) debugListener(t *testing.T) {
	if !strings.HasPrefix(auxserver.DebugAddress, "127.0.0.1:") {
		t.Error(auxserver.DebugAddress)
	}
	fetch(t, auxserver.DebugAddress, "/debug/pprof/")
	_, port, _ := net.SplitHostPort(auxserver.DebugAddress)
	netns.AddLocal(t, "192.0.2.1/32")
	for _, host := range []string{"127.0.0.2", "192.0.2.1", "::1"} {
		if conn, err := net.Dial("tcp", net.JoinHostPort(host, port)); err == nil {
			conn.Close()
			t.Errorf("it listens on %s too", host)
		}
	}
	for _, address := range []string{b.Aux, b.Address} {
		response, err := http.Get("http://" + address + "/debug/pods")
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s", address, response.Status)
		}
	}
}

// TestDebugIsOffByDefault: it runs when no other server does.
func TestDebugIsOffByDefault(t *testing.T) {
	s, _ := env.StartProcess(t, "--drain", "0s")
	s.WaitReady(t)
	if conn, err := net.Dial("tcp", auxserver.DebugAddress); err == nil {
		conn.Close()
		t.Errorf("something listens on %s", auxserver.DebugAddress)
	}
}

// noSecret searches everything that left the server, but the credentials themselves. A heap
// profile is left out: it holds addresses and sizes, no contents. The control comes first:
// the search finds the secrets where they have to be.
func (b *busy) noSecret(t *testing.T) {
	key, err := env.Client.CoreV1().Secrets(environment.Namespace).Get(t.Context(), imdstoken.SecretName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	raw := key.Data[imdstoken.CurrentKey]
	own := []string{string(raw), base64.StdEncoding.EncodeToString(raw), hex.EncodeToString(raw), fmt.Sprintf("%d", raw), b.token}
	search := func(text string) string {
		if leak := env.Leak(text); leak != "" {
			return leak
		}
		for _, secret := range own {
			if strings.Contains(text, secret) {
				return secret
			}
		}
		return ""
	}
	if search(b.credentials.String()) == "" || search("x"+b.token+"x") == "" {
		t.Fatal("the search finds nothing")
	}
	events, err := env.Client.CoreV1().Events("").List(t.Context(), metav1.ListOptions{})
	if err != nil || len(events.Items) < 5 {
		t.Fatal(err, len(events.Items))
	}
	var eventText bytes.Buffer
	if err := json.NewEncoder(&eventText).Encode(events); err != nil {
		t.Fatal(err)
	}
	records, err := os.ReadFile(b.auditLog)
	if err != nil {
		t.Fatal(err)
	}
	outputs := map[string]string{
		"audit log": string(records),
		"log":       b.Logs.String(), "answers": b.bodies.String(), "metrics": b.metrics(t), "events": eventText.String(),
	}
	for _, path := range []string{"/", "/debug/pods", "/debug/roles", "/debug/pprof/goroutine?debug=2", "/debug/pprof/cmdline", "/debug/pprof/"} {
		outputs[path] = fetch(t, auxserver.DebugAddress, path)
	}
	for name, text := range outputs {
		if leak := search(text); leak != "" {
			t.Errorf("%s: a secret: %s", name, leak)
		}
		if len(text) < 100 && name != "/debug/pprof/cmdline" {
			t.Errorf("%s is suspiciously short: %q", name, text)
		}
	}
	for _, path := range []string{"/", "/debug/pods", "/debug/roles"} {
		if !strings.Contains(outputs[path], b.accessKeyID) {
			t.Errorf("%s does not show the AccessKeyId", path)
		}
	}
}
