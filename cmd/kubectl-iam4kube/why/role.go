package why

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/cmd/kubectl-iam4kube/cluster"
	"github.com/iam4kube/iam4kube/cmd/kubectl-iam4kube/finding"
	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
	"github.com/iam4kube/iam4kube/internal/server/role"
)

func (l *look) accountLink(ctx context.Context) (finding.Finding, error) {
	name := l.pod.Spec.ServiceAccountName
	account, err := l.CoreV1().ServiceAccounts(l.namespaceName).Get(ctx, name, metav1.GetOptions{})
	switch {
	case cluster.Absent(err):
		return finding.Of(l.subject().Missing(diagnosis.ServiceAccount)), nil
	case err != nil:
		return unseen("the ServiceAccount "+name, err)
	}
	l.account = account
	return finding.Good("%s exists", name), nil
}

func (l *look) annotationLink(context.Context) (finding.Finding, error) {
	if l.account == nil {
		return finding.Hidden("the ServiceAccount was not seen"), nil
	}
	return l.annotated(), nil
}

// annotated is what the ServiceAccount's annotations say.
func (l *look) annotated() finding.Finding {
	sessions := role.Sessions{Duration: time.Hour}
	if len(l.replicas) > 0 {
		sessions.WebIdentity = cluster.WebIdentity(cluster.Flags(l.replicas[0].Pod.Spec))
	}
	r, err := role.FromAnnotations(l.namespaceName, l.account.Name, l.account.Annotations, sessions)
	subject := l.subject()
	switch {
	case err != nil:
		subject.Why = err.Error()
		return finding.Of(subject.Refused(diagnosis.BadAnnotation))
	case r == nil:
		subject.Lookalike = role.Lookalike(l.account.Annotations)
		return finding.Of(subject.Missing(diagnosis.RoleAnnotation))
	}
	l.role = r
	l.chain.Role = &Role{ARN: r.ARN, SessionName: r.SessionName}
	return finding.Good("%s, session name %s", r.ARN, r.SessionName)
}

func (l *look) allowedLink(context.Context) (finding.Finding, error) {
	if l.role == nil {
		return finding.Hidden("the role was not seen"), nil
	}
	if l.namespace == nil {
		return finding.Hidden("the namespace's annotation %s", role.AnnotationAllowed), nil
	}
	subject := l.subject()
	list, listed := l.namespace.Annotations[role.AnnotationAllowed]
	if listed {
		allowed := role.ParseAllowed(list)
		if !allowed.Allows(l.role.ARN) {
			subject.Why = fmt.Sprintf("no pattern of its annotation %s matches", role.AnnotationAllowed)
			if wrong := allowed.Wrong(); wrong != "" {
				subject.Why += "; " + wrong
			}
			return finding.Of(subject.Refused(diagnosis.NotAllowed)), nil
		}
		return finding.Good("the namespace's annotation %s has the role", role.AnnotationAllowed), nil
	}
	switch {
	case len(l.replicas) == 0:
		return finding.Hidden("whether a namespace without the annotation %s has every role, which --roles-by-default of the servers says", role.AnnotationAllowed), nil
	case cluster.Value(cluster.Flags(l.replicas[0].Pod.Spec), "roles-by-default") == "deny":
		subject.Why = fmt.Sprintf("it has no annotation %s, and the servers run with --roles-by-default deny", role.AnnotationAllowed)
		return finding.Of(subject.Refused(diagnosis.NotAllowed)), nil
	}
	return finding.Good("namespaces without the annotation %s have every role", role.AnnotationAllowed), nil
}

// unread is why what the servers have in memory was not seen, of one of them at least: that
// one may differ from the others. It is empty if all was.
func (l *look) unread() (why string) {
	if l.replicasErr != nil {
		return cluster.Reason(l.replicasErr)
	}
	if len(l.replicas) == 0 {
		return "no server runs"
	}
	for _, r := range l.replicas {
		if r.DebugErr != nil {
			return cluster.Reason(r.DebugErr)
		}
	}
	return ""
}

// dumped are the replicas whose memory was seen.
func (l *look) dumped() (seen []cluster.Replica) {
	for _, r := range l.replicas {
		if r.DebugErr == nil {
			seen = append(seen, r)
		}
	}
	return seen
}

// states are those of iam4kube_roles in which a pod is served.
const (
	stateValid   = "valid"
	stateFailing = "valid-failing"
	stateDenied  = "denied"
)

// unserved are the others.
var unserved = []string{stateDenied, "pending", "throttled", "identity", "unavailable"}

func (l *look) stsLink(context.Context) (finding.Finding, error) {
	if l.role == nil {
		if f, told := l.lastEvent(); told {
			return f, nil
		}
		return finding.Hidden("the role was not seen"), nil
	}
	if len(l.dumped()) == 0 {
		return l.stsByEvents(), nil
	}
	warning, unknown := finding.Finding{}, finding.Finding{}
	var soonest *time.Time
	for _, replica := range l.dumped() {
		state := stateOf(replica.Roles, l.role)
		switch {
		case state == nil:
			return l.sts(replica, diagnosis.Credentials, "", "the server has not heard of the annotation yet", time.Time{}), nil
		case state.State == stateDenied:
			return l.sts(replica, "", diagnosis.Denied, state.Failure, state.NextAttempt), nil
		case state.State != stateValid && state.State != stateFailing && !slices.Contains(unserved, state.State):
			unknown = finding.Hidden("what STS says to %s, by which the role is %q: use the plugin of its version", replica.Pod.Name, state.State)
			continue
		case state.State != stateValid && state.State != stateFailing:
			return l.sts(replica, diagnosis.Credentials, "", state.Failure, state.NextAttempt), nil
		case state.State == stateFailing:
			warning = l.sts(replica, "", diagnosis.Denied, state.Failure, state.NextAttempt)
			warning.State, warning.Text = finding.Warning, "what is in memory is still valid, and the last refresh failed: "+state.Failure
		}
		if soonest == nil || state.Expiration != nil && state.Expiration.Before(*soonest) {
			soonest = state.Expiration
		}
	}
	if unknown.State != "" {
		return unknown, nil
	}
	l.chain.Role.Expiration = soonest
	if why := l.unread(); why != "" {
		return finding.Hidden("what STS says to all servers, to %d it has given the role: %s", len(l.dumped()), why), nil
	}
	if warning.State != "" {
		return warning, nil
	}
	return finding.Good("has given the role to %d of %d servers, valid until %s", len(l.replicas), len(l.replicas), stamp(soonest)), nil
}

// stsByEvents is what there is to say without the servers' memory.
func (l *look) stsByEvents() finding.Finding {
	if f, told := l.lastEvent(); told {
		return f
	}
	why := l.unread()
	if l.eventsErr != nil {
		why += "; and of events: " + cluster.Reason(l.eventsErr)
	} else {
		why += "; and no event tells of it"
	}
	return finding.Hidden("what STS says to the servers: %s", why)
}

// sts says what one replica lacks, with its name where there are others.
func (l *look) sts(replica cluster.Replica, missing diagnosis.Piece, refusal diagnosis.Refusal, why string, retry time.Time) finding.Finding {
	subject := l.subject()
	subject.Why, subject.Retry = why, retry
	if s := stateOf(replica.Roles, l.role); s != nil {
		if d, err := time.ParseDuration(s.Duration); err == nil {
			r := *l.role
			r.Duration, subject.Role = d, &r
		}
	}
	var f finding.Finding
	if refusal != "" {
		f = finding.Of(subject.Refused(refusal))
	} else {
		f = finding.Of(subject.Missing(missing))
	}
	if len(l.replicas) > 1 {
		f.Text += " (Server " + replica.Pod.Name + ".)"
	}
	return f
}

func stateOf(states []cluster.RoleState, r *role.Role) *cluster.RoleState {
	for i, s := range states {
		if s.Namespace == r.Namespace && s.ServiceAccount == r.ServiceAccount && s.ARN == r.ARN {
			return &states[i]
		}
	}
	return nil
}

// lastEvent is the newest word of the servers about the pod or, if there is none, about its
// ServiceAccount.
func (l *look) lastEvent() (finding.Finding, bool) {
	events := slices.DeleteFunc(slices.Clone(l.events), func(e corev1.Event) bool { return e.InvolvedObject.UID != l.pod.UID })
	if len(events) == 0 {
		events = l.events
	}
	if len(events) == 0 {
		return finding.Finding{}, false
	}
	last := slices.MaxFunc(events, func(a, b corev1.Event) int { return eventTime(a).Compare(eventTime(b)) })
	at := eventTime(last).UTC().Format(time.RFC3339)
	if diagnosis.Reason(last.Reason) == diagnosis.Serving {
		return finding.Good("%s (event of %s)", last.Message, at), true
	}
	f := finding.Told(last.Reason, last.Message)
	f.Text += " (Event of " + at + ".)"
	return f, true
}

func eventTime(e corev1.Event) time.Time {
	if !e.LastTimestamp.IsZero() {
		return e.LastTimestamp.Time
	}
	return e.CreationTimestamp.Time
}

func (l *look) handOutLink(context.Context) (finding.Finding, error) {
	for _, replica := range l.dumped() {
		at := slices.IndexFunc(replica.Pods, func(p cluster.PodState) bool { return p.Namespace == l.namespaceName && p.Name == l.name })
		if at < 0 || replica.Pods[at].AccessKeyID == "" {
			continue
		}
		key := replica.Pods[at].AccessKeyID
		for _, s := range replica.Roles {
			if s.AccessKeyID == key {
				l.chain.Role = &Role{s.ARN, s.SessionName, key, s.Expiration}
				return finding.Good("the pod has %s, session name %s, key %s, until %s", s.ARN, s.SessionName, key, stamp(s.Expiration)), nil
			}
		}
		return finding.Good("the pod got key %s, which was refreshed since: it gets a newer one when it asks", key), nil
	}
	for _, e := range l.events {
		if diagnosis.Reason(e.Reason) == diagnosis.Serving && e.InvolvedObject.UID == l.pod.UID {
			return finding.Good("the pod got credentials at %s", eventTime(e).UTC().Format(time.RFC3339)), nil
		}
	}
	if why := l.unread(); why != "" {
		return finding.Hidden("whether the pod got credentials: %s", why), nil
	}
	return finding.NotAsked.May("the credentials are there, and the pod has not asked for them"), nil
}

func stamp(t *time.Time) string {
	if t == nil {
		return "an unknown time"
	}
	return t.UTC().Format(time.RFC3339)
}
