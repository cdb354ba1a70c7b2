// Package who finds whom an IAM role is meant for in a cluster, and who has it now.
package who

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/cmd/kubectl-iam4kube/cluster"
	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
	"github.com/iam4kube/iam4kube/internal/server/role"
)

// Answer is what was seen.
type Answer struct {
	Role     string    `json:"role"`
	Accounts []Account `json:"serviceAccounts"`
	// Unseen is what could not be seen: there may be others.
	Unseen []string `json:"cannotSee,omitempty"`
}

// Account is a ServiceAccount that names the role.
type Account struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	ARN       string `json:"arn"`
	// State is that of iam4kube_roles in the servers, the worst of them; empty if it was not seen.
	State string `json:"state,omitempty"`
	Pods  []Pod  `json:"pods"`
}

// Pod is one of a ServiceAccount's that runs.
type Pod struct {
	Name string `json:"name"`
	// AccessKeyID of what it got last, empty if it got nothing or that was not seen.
	AccessKeyID string     `json:"accessKeyId,omitempty"`
	Since       *time.Time `json:"since,omitempty"`
	Until       *time.Time `json:"until,omitempty"`
}

// Names looks for a role by its ARN, or by its name, which may be that of roles in several
// accounts. Where the user may not see all namespaces it is this one.
func Names(ctx context.Context, c *cluster.Cluster, wanted, namespace string) (*Answer, error) {
	a := &Answer{Role: wanted, Accounts: []Account{}}
	accounts, err := c.CoreV1().ServiceAccounts(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	where := metav1.NamespaceAll
	if cluster.Hidden(err) {
		a.hide("ServiceAccounts of namespaces other than "+namespace, err)
		where = namespace
		accounts, err = c.CoreV1().ServiceAccounts(namespace).List(ctx, metav1.ListOptions{})
	}
	if err != nil {
		return nil, err
	}
	for _, account := range accounts.Items {
		arn := account.Annotations[role.AnnotationARN]
		if arn != "" && (arn == wanted || arn[strings.LastIndexByte(arn, '/')+1:] == wanted) {
			a.Accounts = append(a.Accounts, Account{Namespace: account.Namespace, Name: account.Name, ARN: arn, Pods: []Pod{}})
		}
	}
	if len(a.Accounts) == 0 {
		return a, nil
	}
	err = a.fill(ctx, c, where)
	return a, err
}

func (a *Answer) hide(what string, err error) {
	a.Unseen = append(a.Unseen, what+": "+cluster.Reason(err))
}

func (a *Answer) fill(ctx context.Context, c *cluster.Cluster, where string) error {
	pods, err := c.CoreV1().Pods(where).List(ctx, metav1.ListOptions{FieldSelector: "status.phase!=Succeeded,status.phase!=Failed"})
	switch {
	case cluster.Hidden(err):
		a.hide("pods", err)
		pods = &corev1.PodList{}
	case err != nil:
		return err
	}
	since := a.served(ctx, c, where)
	replicas, err := c.Replicas(ctx, true)
	if err != nil {
		a.hide("what the servers have handed out", err)
	}
	for _, r := range replicas {
		if r.DebugErr != nil {
			a.hide("what the server "+r.Pod.Name+" has handed out, and perhaps others", r.DebugErr)
			break
		}
	}
	for n := range a.Accounts {
		account := &a.Accounts[n]
		account.State = worst(replicas, account)
		for _, p := range pods.Items {
			if p.Namespace == account.Namespace && cmp.Or(p.Spec.ServiceAccountName, "default") == account.Name {
				pod := handOut(replicas, account, p.Name)
				if at, found := since[string(p.UID)]; found {
					pod.Since = &at
				}
				account.Pods = append(account.Pods, pod)
			}
		}
	}
	return nil
}

// served is when pods got their first credentials, by their UIDs: events tell of it, for as
// long as they are kept.
func (a *Answer) served(ctx context.Context, c *cluster.Cluster, where string) map[string]time.Time {
	events, err := c.CoreV1().Events(where).List(ctx, metav1.ListOptions{FieldSelector: "source=iam4kube,reason=" + string(diagnosis.Serving)})
	if err != nil {
		a.hide("events", err)
		return nil
	}
	since := map[string]time.Time{}
	for _, e := range events.Items {
		at := e.CreationTimestamp.Time
		if first := e.FirstTimestamp.Time; !first.IsZero() {
			at = first
		}
		uid := string(e.InvolvedObject.UID)
		if before, found := since[uid]; !found || at.Before(before) {
			since[uid] = at
		}
	}
	return since
}

// worst is the state of the role in the servers: valid is in all of them.
func worst(replicas []cluster.Replica, account *Account) (state string) {
	for _, r := range replicas {
		for _, s := range r.Roles {
			if s.Namespace == account.Namespace && s.ServiceAccount == account.Name && s.ARN == account.ARN && (state == "" || state == "valid") {
				state = s.State
			}
		}
	}
	return state
}

// handOut is what a pod got last, of the replica whose credentials end last.
func handOut(replicas []cluster.Replica, account *Account, name string) Pod {
	pod := Pod{Name: name}
	for _, r := range replicas {
		at := slices.IndexFunc(r.Pods, func(p cluster.PodState) bool { return p.Namespace == account.Namespace && p.Name == name })
		if at < 0 || r.Pods[at].AccessKeyID == "" {
			continue
		}
		key := r.Pods[at].AccessKeyID
		if pod.AccessKeyID == "" {
			pod.AccessKeyID = key
		}
		for _, s := range r.Roles {
			if s.AccessKeyID == key && s.Expiration != nil && (pod.Until == nil || s.Expiration.After(*pod.Until)) {
				pod.AccessKeyID, pod.Until = key, s.Expiration
			}
		}
	}
	return pod
}

// Text is the answer for people, a line for each pod.
func (a *Answer) Text() string {
	var b strings.Builder
	if len(a.Accounts) == 0 {
		_, _ = fmt.Fprintf(&b, "No ServiceAccount names the role %s.\n", a.Role)
	}
	for _, account := range a.Accounts {
		_, _ = fmt.Fprintf(&b, "%s/%s: %s, in the servers: %s\n", account.Namespace, account.Name, account.ARN, cmp.Or(account.State, "cannot see"))
		if len(account.Pods) == 0 {
			_, _ = fmt.Fprintln(&b, "    no pod was seen")
		}
		for _, p := range account.Pods {
			switch {
			case p.AccessKeyID != "":
				_, _ = fmt.Fprintf(&b, "    pod %s has it: key %s, since %s, until %s\n", p.Name, p.AccessKeyID, stamp(p.Since), stamp(p.Until))
			case p.Since != nil:
				_, _ = fmt.Fprintf(&b, "    pod %s got it at %s\n", p.Name, stamp(p.Since))
			case len(a.Unseen) > 0:
				_, _ = fmt.Fprintf(&b, "    pod %s: cannot see whether it has it\n", p.Name)
			default:
				_, _ = fmt.Fprintf(&b, "    pod %s has not asked for it\n", p.Name)
			}
		}
	}
	for _, unseen := range a.Unseen {
		_, _ = fmt.Fprintf(&b, "? cannot see %s\n", unseen)
	}
	return b.String()
}

func stamp(t *time.Time) string {
	if t == nil {
		return "an unknown time"
	}
	return t.UTC().Format(time.RFC3339)
}
