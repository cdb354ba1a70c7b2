package why

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/cmd/kubectl-iam4kube/cluster"
	"github.com/iam4kube/iam4kube/cmd/kubectl-iam4kube/finding"
	"github.com/iam4kube/iam4kube/internal/server/role"
)

// What is asked of the API is tested in test/plugin, with a real one. Here it is what
// several servers say that do not say the same.

const (
	arn = "arn:aws:iam::123456789012:role/orders"
	key = "ASIA1"
)

var ends = time.Date(2026, 11, 30, 5, 0, 0, 0, time.UTC)

// seen is a pod with its role.
func seen(replicas ...cluster.Replica) *look {
	return &look{
		namespaceName: "shop", name: "orders-0", chain: &Chain{Role: &Role{ARN: arn, SessionName: "shop@orders"}}, replicas: replicas,
		pod: &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "orders-0", UID: "1"},
			Spec:       corev1.PodSpec{ServiceAccountName: "orders"}, Status: corev1.PodStatus{PodIP: "10.0.0.1"},
		},
		role: &role.Role{ARN: arn, SessionName: "shop@orders", Namespace: "shop", ServiceAccount: "orders", Duration: time.Hour},
	}
}

// server is a replica that has a role in this state.
func server(name, state string) cluster.Replica {
	r := cluster.Replica{Pod: corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}}}
	r.Roles = []cluster.RoleState{{Namespace: "shop", ServiceAccount: "orders", ARN: arn, SessionName: "shop@orders", State: state, Duration: "15m0s", Failure: "AccessDenied: no", NextAttempt: ends}}
	if state == stateValid || state == stateFailing {
		r.Roles[0].AccessKeyID, r.Roles[0].Expiration = key, &ends
	}
	r.Pods = []cluster.PodState{{Namespace: "shop", Name: "orders-0", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}}
	return r
}

func hidden(name string) cluster.Replica {
	return cluster.Replica{Pod: corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}}, DebugErr: errors.New("gone")}
}

// One server is enough to break it, and one that was not seen keeps it from being well.
func TestServersThatDiffer(t *testing.T) {
	for name, tc := range map[string]struct {
		replicas []cluster.Replica
		state    finding.State
		piece    string
		says     string
	}{
		"both":          {[]cluster.Replica{server("a", "valid"), server("b", "valid")}, finding.OK, "", "2 of 2"},
		"one denied":    {[]cluster.Replica{server("a", "valid"), server("b", "denied")}, finding.Broken, "denied", "Server b"},
		"its duration":  {[]cluster.Replica{server("a", "denied")}, finding.Broken, "denied", "900 s"},
		"one pending":   {[]cluster.Replica{server("a", "pending"), server("b", "valid")}, finding.Broken, "credentials", "Server a"},
		"one unseen":    {[]cluster.Replica{server("a", "valid"), hidden("b")}, finding.Unseen, "", "gone"},
		"denied beside": {[]cluster.Replica{hidden("a"), server("b", "denied")}, finding.Broken, "denied", "Server b"},
		"refresh fails": {[]cluster.Replica{server("a", "valid"), server("b", "valid-failing")}, finding.Warning, "denied", "still valid"},
		"all unseen":    {[]cluster.Replica{hidden("a")}, finding.Unseen, "", "no event tells"},
		"none":          {nil, finding.Unseen, "", "no server runs"},
		"unknown":       {[]cluster.Replica{server("a", "resting"), server("b", "valid")}, finding.Unseen, "", `what STS says to a, by which the role is "resting"`},
		"known beside":  {[]cluster.Replica{server("a", "resting"), server("b", "denied")}, finding.Broken, "denied", "Server b"},
		"not heard of":  {[]cluster.Replica{{}}, finding.Broken, "credentials", "not heard of the annotation"},
	} {
		f, err := seen(tc.replicas...).stsLink(t.Context())
		if err != nil || f.State != tc.state || f.Piece != tc.piece || !strings.Contains(f.Text, tc.says) {
			t.Errorf("%s: %+v, %v", name, f, err)
		}
	}
}

func TestAddress(t *testing.T) {
	other := func(change func(*cluster.PodState)) cluster.Replica {
		r := server("a", "valid")
		p := r.Pods[0]
		p.Name = "orders-1"
		change(&p)
		r.Pods = append(r.Pods, p)
		return r
	}
	for name, tc := range map[string]struct {
		replicas []cluster.Replica
		state    finding.State
		piece    string
	}{
		"known":                {[]cluster.Replica{server("a", "valid")}, finding.OK, ""},
		"unknown to one":       {[]cluster.Replica{server("a", "valid"), {}}, finding.Broken, "pod"},
		"one unseen":           {[]cluster.Replica{server("a", "valid"), hidden("b")}, finding.Unseen, ""},
		"claimed by another":   {[]cluster.Replica{other(func(*cluster.PodState) {})}, finding.Broken, "single-pod"},
		"the other terminates": {[]cluster.Replica{other(func(p *cluster.PodState) { p.Terminating = true })}, finding.OK, ""},
		"the other has ended":  {[]cluster.Replica{other(func(p *cluster.PodState) { p.Ended = true })}, finding.OK, ""},
		"a hostNetwork pod":    {[]cluster.Replica{other(func(p *cluster.PodState) { p.HostNetwork = true })}, finding.OK, ""},
	} {
		f, err := seen(tc.replicas...).addressLink(t.Context())
		if err != nil || f.State != tc.state || f.Piece != tc.piece {
			t.Errorf("%s: %+v, %v", name, f, err)
		}
	}
}

// A pod's key is told also where its ServiceAccount is hidden, and a key that nobody has any
// more is told apart.
func TestHandOut(t *testing.T) {
	has := server("a", "valid")
	has.Pods[0].AccessKeyID = key
	l := seen(hidden("b"), has)
	l.role, l.chain.Role = nil, nil
	if f, err := l.handOutLink(t.Context()); err != nil || f.State != finding.OK || l.chain.Role == nil || l.chain.Role.AccessKeyID != key || !strings.Contains(f.Text, "2026-11-30T05:00:00Z") {
		t.Errorf("%+v, %v", f, err)
	}
	old := server("a", "valid")
	old.Pods[0].AccessKeyID = "ASIA0"
	if f, err := seen(old).handOutLink(t.Context()); err != nil || f.State != finding.OK || !strings.Contains(f.Text, "refreshed") {
		t.Errorf("%+v, %v", f, err)
	}
	if f, err := seen(server("a", "valid")).handOutLink(t.Context()); err != nil || f.Piece != "not-asked" {
		t.Errorf("%+v, %v", f, err)
	}
	if f, err := seen(server("a", "valid"), hidden("b")).handOutLink(t.Context()); err != nil || f.State != finding.Unseen {
		t.Errorf("%+v, %v", f, err)
	}
}

// event is one of the server's.
func event(uid, reason, message string, at time.Time) corev1.Event {
	e := corev1.Event{Reason: reason, Message: message, LastTimestamp: metav1.NewTime(at)}
	e.InvolvedObject.UID = "1"
	if uid != "" {
		e.InvolvedObject.UID = "2"
	}
	return e
}

// Without the servers' memory the newest event counts, that of the pod before that of its
// ServiceAccount.
func TestEvents(t *testing.T) {
	l := seen(hidden("a"))
	l.events = []corev1.Event{
		event("", "IAMRoleServing", "The pod gets credentials", ends),
		event("", "IAMRoleDenied", "STS refuses the role", ends.Add(time.Minute)),
		event("account", "IAMRoleAnnotationInvalid", "wrong", ends.Add(time.Hour)),
	}
	if f, err := l.stsLink(t.Context()); err != nil || f.State != finding.Broken || f.Piece != "denied" || !strings.HasPrefix(f.Text, "STS refuses the role (Event of 2026-11-30T05:01:00Z") {
		t.Errorf("%+v, %v", f, err)
	}
	l.events = l.events[:1]
	if f, err := l.stsLink(t.Context()); err != nil || f.State != finding.OK {
		t.Errorf("%+v, %v", f, err)
	}
	if f, err := l.handOutLink(t.Context()); err != nil || f.State != finding.OK {
		t.Errorf("%+v, %v", f, err)
	}
	l.events = []corev1.Event{event("account", "IAMRoleDenied", "STS refuses the role", ends)}
	if f, err := l.stsLink(t.Context()); err != nil || f.State != finding.Broken {
		t.Errorf("%+v, %v", f, err)
	}
}

// An external ID means nothing to servers without AWS credentials, which refuse it.
func TestExternalIDWithoutAWSCredentials(t *testing.T) {
	for flag, want := range map[string]finding.State{"--sts-operation=AssumeRoleWithWebIdentity": finding.Broken, "--sts-operation=AssumeRole": finding.OK} {
		r := server("a", "valid")
		r.Pod.Spec.Containers = []corev1.Container{{Args: []string{flag}}}
		l := seen(r)
		l.account = &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "orders", Annotations: map[string]string{role.AnnotationARN: arn, role.AnnotationExternalID: "7Qx"}}}
		if f, err := l.annotationLink(t.Context()); err != nil || f.State != want {
			t.Errorf("%s: %+v, %v", flag, f, err)
		}
	}
}

// By default, roles are what the servers' flag says, and it has to be seen.
func TestAllowedByDefault(t *testing.T) {
	for flag, want := range map[string]finding.State{"--roles-by-default=deny": finding.Broken, "--roles-by-default=allow": finding.OK, "--drain=1s": finding.OK} {
		r := server("a", "valid")
		r.Pod.Spec.Containers = []corev1.Container{{Args: []string{flag}}}
		l := seen(r)
		l.namespace = &corev1.Namespace{}
		if f, err := l.allowedLink(t.Context()); err != nil || f.State != want {
			t.Errorf("%s: %+v, %v", flag, f, err)
		}
		l.replicas = nil
		if f, err := l.allowedLink(t.Context()); err != nil || f.State != finding.Unseen {
			t.Errorf("%+v, %v", f, err)
		}
	}
}
