package server

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/fakests"
)

// placed is a pod on a node. Its ServiceAccount does not exist: zone, region and
// document wait for the pod alone.
func placed(t *testing.T, namespace, name, node string) workload {
	t.Helper()
	w := newWorkload(namespace, name)
	w.Node = node
	w.createPod(t)
	return w
}

func expect(t *testing.T, s *environment.Server, w workload, path string, status int, body string) {
	t.Helper()
	gotStatus, gotBody := s.Get(t, w.from, path)
	if gotStatus != status || gotBody != body && (status == http.StatusOK || !strings.Contains(gotBody, body)) {
		t.Errorf("%s %s: %d %q, want %d %q", w.Name, path, gotStatus, gotBody, status, body)
	}
}

// identityDocument is the pod's, as any JSON, so that no field goes unseen.
func identityDocument(t *testing.T, s *environment.Server, w workload) map[string]string {
	t.Helper()
	status, body := s.Get(t, w.from, docPath)
	if status != http.StatusOK {
		t.Fatalf("%d %s", status, body)
	}
	// As EC2 writes it: scripts without a JSON parser look for this.
	if !strings.Contains(body, "\n  \"version\" : \"2017-09-30\"\n}") || strings.Contains(body, `":`) {
		t.Errorf("not EC2's blanks: %s", body)
	}
	var document map[string]string
	if err := json.Unmarshal([]byte(body), &document); err != nil {
		t.Fatal(err)
	}
	return document
}

func TestPlacement(t *testing.T) {
	t.Parallel()
	namespace := newNamespace(t, "placement")
	for _, node := range []controlplane.Node{
		{Name: "placement-labelled", Zone: "eu-west-1a", Region: "eu-west-1"},
		{Name: "placement-bare"},
		{Name: "placement-other", Zone: "fsn1-dc14", Region: "fsn1", ProviderID: "hcloud://4711"},
	} {
		if err := env.CreateNode(t.Context(), node); err != nil {
			t.Fatal(err)
		}
	}
	labelled := placed(t, namespace, "labelled", "placement-labelled")
	bare := placed(t, namespace, "bare", "placement-bare")
	other := placed(t, namespace, "other", "placement-other")
	lost := placed(t, namespace, "lost", "placement-no-such-node")
	withRole := newWorkload(namespace, "with-role").create(t)

	t.Run("labels alone", func(t *testing.T) {
		t.Parallel()
		s := env.Start(t, env.Config(t))
		s.WaitReady(t)
		for _, version := range []string{"/latest", "/2009-04-04", "/2014-02-25", "/2021-03-23"} {
			expect(t, s, labelled, version+"/meta-data/placement/availability-zone", 200, "eu-west-1a")
			expect(t, s, labelled, version+"/meta-data/placement/availability-zone/", 200, "eu-west-1a")
			expect(t, s, labelled, version+"/meta-data/placement/region", 200, "eu-west-1")
			expect(t, s, labelled, version+"/meta-data/placement/region/", 200, "eu-west-1")
		}
		for _, w := range []workload{bare, other, lost} {
			expect(t, s, w, zonePath, 404, "topology.kubernetes.io/zone")
			expect(t, s, w, zonePath+"/", 404, "--availability-zone")
			expect(t, s, w, regionPath, 404, "topology.kubernetes.io/region")
		}
		checkDocument(t, s, labelled, map[string]string{"availabilityZone": "eu-west-1a", "region": "eu-west-1"})
		checkDocument(t, s, bare, map[string]string{})
		checkDocument(t, s, withRole, map[string]string{"accountId": environment.Account})
	})
	t.Run("with fallbacks", func(t *testing.T) {
		t.Parallel()
		cfg := env.Config(t)
		cfg.Region, cfg.AvailabilityZone = "dc", "dc-rack-7"
		s := env.Start(t, cfg)
		s.WaitReady(t)
		expect(t, s, labelled, zonePath, 200, "eu-west-1a")
		expect(t, s, labelled, regionPath, 200, "eu-west-1")
		for _, w := range []workload{bare, other, lost, withRole} {
			expect(t, s, w, zonePath, 200, "dc-rack-7")
			expect(t, s, w, regionPath, 200, "dc")
		}
		checkDocument(t, s, labelled, map[string]string{"availabilityZone": "eu-west-1a", "region": "eu-west-1"})
		checkDocument(t, s, bare, map[string]string{"availabilityZone": "dc-rack-7", "region": "dc"})
	})
}

// checkDocument checks the fields that differ from pod to pod, and that there is nothing
// else.
func checkDocument(t *testing.T, s *environment.Server, w workload, want map[string]string) {
	t.Helper()
	want["privateIp"], want["version"] = w.from.String(), "2017-09-30"
	got := identityDocument(t, s, w)
	for name := range want {
		if got[name] != want[name] {
			t.Errorf("%s: %s is %q, want %q", w.Name, name, got[name], want[name])
		}
	}
	if len(got) != len(want) {
		t.Errorf("%s: got %v, want %v", w.Name, got, want)
	}
}

// Role names may hold +=,.@-_ and clients send them raw or escaped, in either case of the
// hexadecimal digits. The list names the role without its path.
func TestRoleNames(t *testing.T) {
	t.Parallel()
	namespace := newNamespace(t, "role-names")
	const name = "a+b=c,d.e@f-g_h"
	w := newWorkload(namespace, "signs")
	w.arn = env.NewRole(func(r *fakests.Role) { r.ARN = "arn:aws:iam::" + environment.Account + ":role/team/sub/" + name })
	w.create(t)
	longest := newWorkload(namespace, "longest")
	longest.arn = env.NewRole(func(r *fakests.Role) {
		r.ARN = "arn:aws:iam::" + environment.Account + ":role/" + strings.Repeat("n", 64)
	})
	longest.create(t)
	other := newWorkload(namespace, "other").create(t)
	s := env.Start(t, env.Config(t))
	s.WaitReady(t)

	for _, version := range []string{"/latest", "/2009-04-04", "/2012-01-12"} {
		list := version + "/meta-data/iam/security-credentials"
		expect(t, s, w, list, 200, name)
		expect(t, s, w, list+"/", 200, name)
		for _, spelling := range []string{
			name, url.PathEscape(name), url.QueryEscape(name), "a%2bb%3dc%2cd.e%40f-g_h", "a%2Bb=c,d%2Ee%40f%2Dg%5Fh", "%61+b=c,d.e@f-g_h",
		} {
			a := send(t, s, w.from, http.MethodGet, list+"/"+spelling)
			if a.StatusCode != http.StatusOK {
				t.Errorf("%s/%s: %d %s", list, spelling, a.StatusCode, a.body)
				continue
			}
			if arn, session := owner(t, a.body); arn != w.arn || session != "role-names@signs" {
				t.Errorf("%s/%s: credentials of %s for %s", list, spelling, arn, session)
			}
		}
	}
	expect(t, s, longest, longest.path(), 200, mustGet(t, s, longest, longest.path()))
	expect(t, s, longest, longest.path()+"n", 404, "not the role of this pod")
	expect(t, s, longest, strings.TrimSuffix(longest.path(), "n"), 404, "not the role of this pod")

	// A role that exists and is another pod's, and what might be taken for the pod's own.
	for _, wrong := range []string{
		strings.TrimPrefix(other.path(), rolesPath), "a b=c,d.e@f-g_h", "a%20b=c,d.e@f-g_h", strings.ToUpper(name), "team%2Fsub%2F" + name, "sub%2f" + name,
		url.PathEscape(w.arn), "default", "iam4kube",
	} {
		raw := exchange(t, s, w.from, request(http.MethodGet, rolesPath+wrong))
		checkNoSecret(t, wrong, raw)
		if wrong == "a b=c,d.e@f-g_h" {
			continue // not HTTP
		}
		if a := parse(t, raw, http.MethodGet)[0]; a.StatusCode != http.StatusNotFound || strings.Contains(a.body, other.arn) {
			t.Errorf("%s: %d %s", wrong, a.StatusCode, a.body)
		}
	}
}

func mustGet(t *testing.T, s *environment.Server, w workload, path string) string {
	t.Helper()
	status, body := s.Get(t, w.from, path)
	if status != http.StatusOK {
		t.Fatalf("%s: %d %s", path, status, body)
	}
	return body
}

// A name in Host means a browser that DNS rebinding has led here; what proxies add
// means an open one. Both get nothing, whatever they ask for.
func TestHostsAndProxies(t *testing.T) {
	t.Parallel()
	s, w := startWarm(t, "hosts")
	served := map[string]int{w.path(): 200, rolesPath: 200, docPath: 200, readyPath: 204, "/latest/user-data": 404}
	for _, host := range []string{
		"169.254.169.254", "169.254.169.254:80", "169.254.169.254:8080", "127.0.0.1", s.Address, "[fd00:ec2::254]", "[fd00:ec2::254]:80", "[::1]", "",
	} {
		for path, status := range served {
			a := parse(t, exchange(t, s, w.from, "GET "+path+" HTTP/1.1\r\nHost: "+host+"\r\n\r\n"), http.MethodGet)[0]
			if a.StatusCode != status {
				t.Errorf("Host %q: %s: %d %s", host, path, a.StatusCode, a.body)
			}
		}
	}
	for _, host := range []string{
		"localhost", "localhost:80", "metadata.google.internal", "169.254.169.254.nip.io", "a.169.254.169.254.nip.io:80", "169.254.169.254.", "[::1",
		"iam4kube.iam4kube.svc", "2852039166", "0xa9.0xfe.0xa9.0xfe", "169.254.43518", "169.254.169.254:80:80", "169.254.169.254,localhost", "%31.1.1.1",
	} {
		for path := range served {
			raw := exchange(t, s, w.from, "GET "+path+" HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
			checkNoSecret(t, host, raw)
			a := parse(t, raw, http.MethodGet)[0]
			if a.StatusCode != http.StatusForbidden || a.Header.Get("Server") != "iam4kube" {
				t.Errorf("Host %q: %s: %d %s", host, path, a.StatusCode, a.body)
			}
		}
		a := parse(t, exchange(t, s, w.from, "PUT "+tokenPath+" HTTP/1.1\r\nHost: "+host+"\r\n"+ttlLine+"60\r\n\r\n"), http.MethodPut)[0]
		if a.StatusCode != http.StatusForbidden {
			t.Errorf("Host %q: token: %d %s", host, a.StatusCode, a.body)
		}
	}
	// Old clients, and aws-c-auth of 2023: no Host at all.
	for _, method := range []string{http.MethodGet, http.MethodPut} {
		raw := map[string]string{http.MethodGet: w.path(), http.MethodPut: tokenPath}[method] + " HTTP/1.1\r\n" + ttlLine + "60\r\n\r\n"
		for _, a := range parse(t, exchange(t, s, w.from, strings.Repeat(method+" "+raw, 2)), method, method) {
			if a.StatusCode != http.StatusOK || a.Close {
				t.Errorf("%s %q: %d %s", method, raw, a.StatusCode, a.body)
			}
		}
	}
	// Without keep-alive, too.
	for _, raw := range []string{"GET " + w.path() + " HTTP/1.0\r\n\r\n", "GET " + w.path() + " HTTP/1.0\n\n"} {
		if a := parse(t, exchange(t, s, w.from, raw), http.MethodGet)[0]; a.StatusCode != http.StatusOK || !a.Close {
			t.Errorf("%q: %d %s", raw, a.StatusCode, a.body)
		}
	}
	for _, line := range []string{"X-Forwarded-For: 10.0.0.1", "x-forwarded-for: ", "X-FORWARDED-FOR: 127.0.0.1, 10.0.0.1", "Forwarded: for=10.0.0.1", "forwarded:", "Via: 1.1 proxy", "VIA: "} {
		for path := range served {
			a := send(t, s, w.from, http.MethodGet, path, line)
			checkNoSecret(t, line, a.body)
			if a.StatusCode != http.StatusForbidden || a.Header.Get("Server") != "iam4kube" {
				t.Errorf("%s: %s: %d %s", line, path, a.StatusCode, a.body)
			}
		}
	}
	// Nobody becomes another pod by a header.
	for _, line := range []string{
		"Forwarded: for=127.0.0.1", "X-Real-IP: 127.0.0.1", "X-Client-IP: 127.0.0.1", "Via: 1.1 proxy", "X-Iam4kube-Source-Ip: 127.0.0.1", "True-Client-IP: 127.0.0.1",
	} {
		a := send(t, s, w.from, http.MethodGet, readyPath, line)
		if seen := a.Header.Get("X-Iam4kube-Source-Ip"); seen != w.from.String() {
			t.Errorf("%s: seen as %q", line, seen)
		}
	}
}
