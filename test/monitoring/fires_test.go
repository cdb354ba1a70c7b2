package monitoring

import (
	"fmt"
	"io"
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

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/iam4kube/iam4kube/internal/server/imdstoken"
	"github.com/iam4kube/iam4kube/internal/server/issuer"
	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/test/controlplane"
	"github.com/iam4kube/iam4kube/test/environment"
	"github.com/iam4kube/iam4kube/test/fakests"
	"github.com/iam4kube/iam4kube/test/node"
)

// TestRealPrometheus lets one scrape programs as the PodMonitors make it do. While all is well,
// each panel shows something, there is what each alert looks at, and no alert's expression is
// true. Then the cause of each alert is made, and it fires.
func TestRealPrometheus(t *testing.T) {
	s := newScene(t)
	nothingFires(t, 10)
	t.Run("panels show something", panelsShow)
	t.Run("alerts look at what there is", alertsLook)
	nothingFires(t, 10)
	s.eachFires(t)
}

func panelsShow(t *testing.T) {
	var panels []string
	for _, row := range Dashboard {
		for _, p := range row.Panels {
			for _, q := range p.Queries {
				// What there is only while something ends is there all the same.
				panels = append(panels, strings.ReplaceAll(strings.TrimSuffix(q.Expr, " > 0"), "$__rate_interval", "30s"))
			}
		}
	}
	if len(panels) < 30 {
		t.Errorf("%d queries", len(panels))
	}
	for _, expr := range panels {
		environment.Eventually(t, within, func() error { return isThere(t, expr) })
	}
}

func alertsLook(t *testing.T) {
	for _, a := range Alerts {
		for _, selector := range selectors(a.Expr) {
			if err := isThere(t, selector); err != nil {
				t.Errorf("%s: %v", a.Name, err)
			}
		}
	}
	// The label of requests is not pushed aside by the operator's of the same name.
	if err := isThere(t, `iam4kube_http_requests_total{endpoint="credentials"}`); err != nil {
		t.Error(err)
	}
	if err := isThere(t, `iam4kube_no_such_metric`); err == nil {
		t.Error("everything is there")
	}
}

var selector = regexp.MustCompile(`(iam4kube_[a-z0-9_]+)(\{([a-z]+)(=~?)"([^"]*)"\})?`)

// selectors are what an expression looks at, one for each value of a label that it names.
// Statuses are only there once an answer had them.
func selectors(expr string) (all []string) {
	for _, m := range selector.FindAllStringSubmatch(expr, -1) {
		name, label, values := m[1], m[3], m[5]
		if label == "" || label == "code" {
			all = append(all, name)
			continue
		}
		for value := range strings.SplitSeq(values, "|") {
			all = append(all, fmt.Sprintf("%s{%s=%q}", name, label, value))
		}
	}
	return all
}

// of are those of an alert about one pod, as its PodMonitor gives them.
func of(pod string, more ...string) labels {
	l := labels{"pod": pod, "namespace": environment.Namespace}
	for i := 0; i < len(more); i += 2 {
		l[more[i]] = more[i+1]
	}
	return l
}

// whole are the labels of an alert whose expression keeps all of them.
func whole(pod string, more ...string) labels {
	program := strings.Join(strings.Split(pod, "-")[:2], "-")
	return of(pod, append(more, "job", environment.Namespace+"/"+program)...)
}

// causes are those of the alerts, in an order in which each is the only news. The rates are over
// the minutes that the rules say, and what is made is as much as they want of that time.
var causes = []struct {
	alert  string
	labels labels
	make   func(*scene, *testing.T)
}{
	{"IAM4KubeCredentialsExpire", whole(well), (*scene).expire},
	{"IAM4KubeRolesFail", of(well), (*scene).denyRole},
	{"IAM4KubeIdentityRefused", whole(well), (*scene).refuseIdentity},
	{"IAM4KubeSTSRateTooSmall", of(slow), (*scene).shortenSessions},
	{"IAM4KubeAnswersSlow", nil, (*scene).slowSTS},
	{"IAM4KubeClientsGetErrors", labels{"endpoint": "credentials", "code": "503"}, (*scene).noSTS},
	{"IAM4KubeSTSThrottles", of(well), (*scene).throttle},
	{"IAM4KubeRequestsWaitInVain", labels{"missing": "pod"}, (*scene).askFromNowhere},
	{"IAM4KubeAnnotationInvalid", whole(well, "role", "invalid"), (*scene).misspell},
	{"IAM4KubeRoleNotAllowed", whole(well, "role", "not-allowed"), (*scene).forbid},
	{"IAM4KubeTokensRefused", of(well), (*scene).forge},
	{"IAM4KubeTwoPodsOnOneAddress", whole(well), (*scene).shareAddress},
	{"IAM4KubeTokenKeyRefused", whole(well), (*scene).spoilTokenKey},
	{"IAM4KubeIssuerUnpublished", whole(issuing, "outcome", "unpublished"), (*scene).rotateUnpublished},
	{"IAM4KubeIssuerKeyRefused", whole(issuing), (*scene).spoilIssuerKey},
	{"IAM4KubeConnectionsRefused", of(well, "listener", "aux-listen-on", "reason", "source"), (*scene).connectOften},
	{"IAM4KubeAuditRecordsLost", whole(issuing, "outcome", "lost"), (*scene).fillDisk},
	{"IAM4KubeEndpointOnHostNetwork", nil, (*scene).serveOnHost},
	{"IAM4KubeNoServerToRouteTo", whole(routing, "state", "ready"), (*scene).endEndpoints},
	{"IAM4KubeRulesChangedByOthers", whole(routing), (*scene).flush},
	{"IAM4KubeRulesNotInForce", whole(powerless), (*scene).startPowerless},
	{"IAM4KubePodsDenied", labels{"reason": "name-taken"}, (*scene).takeName},
	{"IAM4KubeCertificateExpires", whole(hook), (*scene).shortenCertificate},
	{"IAM4KubeRulesMayBePassedBy", whole(routing), (*scene).addCilium},
	// These come when time has passed since their cause, cut, which is made before all others.
	{"IAM4KubeStale", whole(cutOff), nil},
	{"IAM4KubeReplicaCutOff", whole(cutOff), nil},
	{"IAM4KubeWatchBroken", whole(cutOff, "resource", "pods"), nil},
	// After this nothing is left to see of servers.
	{"IAM4KubeServerAbsent", nil, (*scene).stopServers},
}

// eachFires makes one cause after the other. None makes another alert fire than its own, but for
// those that fire already or wait for their time.
func (s *scene) eachFires(t *testing.T) {
	t.Helper()
	var all []string
	expected := map[string]bool{}
	for _, a := range Alerts {
		all = append(all, a.Name)
	}
	for _, c := range causes {
		all = slices.DeleteFunc(all, func(name string) bool { return name == c.alert })
		expected[c.alert] = c.make == nil
	}
	if len(all) > 0 || len(causes) != len(Alerts) {
		t.Fatalf("no cause is made of %v", all)
	}
	s.cut(t)
	for _, c := range causes {
		t.Run(c.alert, func(t *testing.T) {
			if c.make != nil {
				c.make(s, t)
				expected[c.alert] = true
			}
			waitFiring(t, c.alert, c.labels, expected)
		})
	}
}

// cut takes the API server from one replica.
func (s *scene) cut(t *testing.T) {
	t.Helper()
	if err := s.api.Set(controlplane.Refuse); err != nil {
		t.Fatal(err)
	}
}

// expire lets STS give credentials that have no ten minutes left soon. Their refresh would come
// in time, if it were waited for.
func (s *scene) expire(t *testing.T) {
	t.Helper()
	a := s.newApp(t, "expiring")
	env.STS.SetFault(a.arn(), fakests.Fault{Effect: fakests.ExpiresIn, Lifetime: 10*time.Minute + 3*time.Second})
	a.create(t)
}

func (s *scene) denyRole(t *testing.T) {
	t.Helper()
	a := s.newApp(t, "denied")
	env.STS.RemoveRole(a.arn())
	a.create(t)
}

// refuseIdentity is a key of the servers' own that was deleted. A role that STS refuses would
// tell of the contrary now and then.
func (s *scene) refuseIdentity(t *testing.T) {
	t.Helper()
	if err := env.Client.CoreV1().ServiceAccounts("apps").Delete(t.Context(), "denied", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	a := s.newApp(t, "identity")
	env.STS.SetFault(a.arn(), fakests.Fault{Effect: fakests.InvalidClientTokenID})
	a.create(t)
}

// slowSTS holds up those who ask before the role was assumed.
func (s *scene) slowSTS(t *testing.T) {
	t.Helper()
	a := s.newApp(t, "held-up")
	env.STS.SetFault(a.arn(), fakests.Fault{Delay: maxWait * 2 / 3})
	a.create(t)
	if status, body := s.well.Get(t, a.from, a.path()); status != http.StatusOK {
		t.Errorf("%d %s", status, body)
	}
}

// noSTS lets requests wait for a role until they get a 503. Of the first one there is no rate.
func (s *scene) noSTS(t *testing.T) {
	t.Helper()
	a := s.newApp(t, "no-sts")
	env.STS.SetFault(a.arn(), fakests.Fault{Effect: fakests.ServiceUnavailable})
	a.create(t)
	s.askAtOnce(t, a.path(), a.from)
	environment.Eventually(t, within, func() error {
		return isThere(t, `iam4kube_http_requests_total{endpoint="credentials",code="503"}`)
	})
	s.askAtOnce(t, a.path(), slices.Repeat([]netip.Addr{a.from}, 20)...)
}

// askAtOnce wants a 503 for each request, sent from these addresses.
func (s *scene) askAtOnce(t *testing.T, path string, from ...netip.Addr) {
	t.Helper()
	var asking sync.WaitGroup
	for _, address := range from {
		client := s.well.Client(t, address)
		asking.Go(func() {
			response, body, err := s.well.Do(t.Context(), client, http.MethodGet, path, nil)
			if err != nil || response.StatusCode != http.StatusServiceUnavailable {
				t.Errorf("%s from %s: %v %s", path, address, err, body)
			}
		})
	}
	asking.Wait()
}

func (s *scene) throttle(t *testing.T) {
	t.Helper()
	a := s.newApp(t, "throttled")
	env.STS.SetFault(a.arn(), fakests.Fault{Effect: fakests.Throttling})
	a.create(t)
}

// askFromNowhere is what masqueraded traffic is like.
func (s *scene) askFromNowhere(t *testing.T) {
	t.Helper()
	from := make([]netip.Addr, 70)
	for i := range from {
		from[i] = env.Address()
	}
	s.askAtOnce(t, credential, from...)
}

func (s *scene) misspell(t *testing.T) {
	t.Helper()
	a := s.newApp(t, "misspelt")
	a.annotations[role.AnnotationARN] = "orders"
	a.create(t)
}

func (s *scene) forbid(t *testing.T) {
	t.Helper()
	a := s.newApp(t, "forbidden")
	if err := env.CreateNamespace(t.Context(), "narrow"); err != nil {
		t.Fatal(err)
	}
	patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:"arn:aws:iam::%s:role/other"}}}`, role.AnnotationAllowed, environment.Account)
	if _, err := env.Client.CoreV1().Namespaces().Patch(t.Context(), "narrow", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	a.Namespace = "narrow"
	a.create(t)
}

// forge sends what is no token of the API server's.
func (s *scene) forge(t *testing.T) {
	t.Helper()
	client := s.well.Client(t, s.app.from)
	for range 80 {
		wantRefused(t, s.well, client)
	}
}

func wantRefused(t *testing.T, s *environment.Server, client *http.Client) {
	t.Helper()
	response, body, err := s.Do(t.Context(), client, http.MethodGet, "/v1/credentials", http.Header{"Authorization": {"forged"}})
	if err != nil || response.StatusCode != http.StatusUnauthorized && response.StatusCode != http.StatusForbidden {
		t.Fatalf("%v %s", err, body)
	}
}

func (s *scene) shareAddress(t *testing.T) {
	t.Helper()
	for _, name := range []string{"one", "two"} {
		pod := s.app.Pod
		pod.Name, pod.IPs = name, []string{"127.200.0.1"}
		createPod(t, pod)
	}
}

// spoil edits a Secret as somebody would who does not know what it is.
func spoil(t *testing.T, secret, key string) {
	t.Helper()
	patch := fmt.Appendf(nil, `{"data":{%q:"c2hvcnQ="}}`, key)
	if _, err := env.Client.CoreV1().Secrets(environment.Namespace).Patch(t.Context(), secret, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

func (*scene) spoilTokenKey(t *testing.T) {
	t.Helper()
	spoil(t, imdstoken.SecretName, imdstoken.CurrentKey)
}

func (*scene) spoilIssuerKey(t *testing.T) {
	t.Helper()
	spoil(t, issuer.SecretName, issuer.CurrentKey)
}

// rotateUnpublished puts a new key into use and leaves the issuer's documents as they were.
func (s *scene) rotateUnpublished(t *testing.T) {
	t.Helper()
	s.issue(t, "rotate", "--emergency")
}

// connectOften is a client that leaves all its connections open.
func (s *scene) connectOften(t *testing.T) {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: env.Address().AsSlice()}}
	for range 120 {
		if connection, err := dialer.DialContext(t.Context(), "tcp", s.well.Aux); err == nil {
			t.Cleanup(func() { _ = connection.Close() })
		}
	}
}

// fillDisk takes what is left where the audit log is, and lets things happen that belong into it,
// of several sources, because one has few records.
func (s *scene) fillDisk(t *testing.T) {
	t.Helper()
	file, err := os.Create(filepath.Join(s.disk, "other"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(file, strings.NewReader(strings.Repeat("x", 1<<20))); err == nil {
		t.Fatal("the disk is not full")
	}
	_ = file.Close()
	for range 40 {
		wantRefused(t, s.issuing, s.issuing.Client(t, env.Address()))
	}
}

// serveOnHost is a server with hostNetwork.
func (s *scene) serveOnHost(t *testing.T) {
	t.Helper()
	s.service.Set(t, "a", serverEndpoint, node.Ready(nodeAddress))
}

func (s *scene) endEndpoints(t *testing.T) {
	t.Helper()
	s.service.Set(t, "a")
}

func (*scene) flush(t *testing.T) {
	t.Helper()
	node.NFT(t, "flush", "ruleset")
}

// startPowerless starts an ip2service whose container lacks NET_ADMIN.
func (s *scene) startPowerless(t *testing.T) {
	t.Helper()
	node.Through = []string{"setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "--no-new-privs"}
	defer func() { node.Through = nil }()
	s.service.Start(t, "--aux-listen-on", pods[powerless])
}

// takeName creates a pod that has a container of the init container's name.
func (*scene) takeName(t *testing.T) {
	t.Helper()
	_, err := env.Client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "injected", Labels: labels{"iam4kube.io/inject": "enabled"}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	container := corev1.Container{Name: "iam4kube-ip2service", Image: "registry.example/app:v1"}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "taken"}, Spec: corev1.PodSpec{Containers: []corev1.Container{container}}}
	environment.Eventually(t, within, func() error { // a moment until the API server knows of the webhook
		_, err := env.Client.CoreV1().Pods("injected").Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err == nil || !strings.Contains(err.Error(), "iam4kube-ip2service") {
			return fmt.Errorf("the pod was not denied: %w", err)
		}
		return nil
	})
}

func (s *scene) shortenCertificate(t *testing.T) {
	t.Helper()
	s.certify(t, 10*24*time.Hour)
}

// addCilium gives the node an interface of Cilium's, which is seen at the next resync.
func (*scene) addCilium(t *testing.T) {
	t.Helper()
	ip(t, "link", "add", "cilium_host", "type", "veth", "peer", "name", "cilium_net")
}

// shortenSessions lets STS give half a minute, which is more refreshes than the slow server has
// places for once its burst is used up.
func (s *scene) shortenSessions(t *testing.T) {
	t.Helper()
	for i := range 12 {
		a := s.newApp(t, fmt.Sprint("short-", i))
		env.STS.SetFault(a.arn(), fakests.Fault{Effect: fakests.ExpiresIn, Lifetime: 30 * time.Second})
		a.create(t)
	}
}

// stopServers ends all of them, as an upgrade does that fails.
func (s *scene) stopServers(t *testing.T) {
	t.Helper()
	for _, r := range []*environment.Server{s.well, s.cutOff, s.slow, s.issuing} {
		if err := r.Stop(); err != nil {
			t.Error(err)
		}
	}
}
