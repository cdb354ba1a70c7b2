// Package terms finds out under which terms the servers of a cluster assume roles: their flags,
// and whom AWS takes them for.
package terms

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/iam4kube/iam4kube/cmd/kubectl-iam4kube/cluster"
	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/internal/server/trust"
)

// Given is what the user says himself, which comes before what is seen.
type Given struct{ Principal, Issuer string }

// Policy is the trust policy that a ServiceAccount's role needs. Note is what the user should
// know about it, if anything.
func Policy(ctx context.Context, c *cluster.Cluster, namespace, name string, given Given) (policy trust.Policy, note string, err error) {
	account, err := c.CoreV1().ServiceAccounts(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return policy, "", err
	}
	deployment, err := c.AppsV1().Deployments(c.Namespace).Get(ctx, cluster.Server, metav1.GetOptions{})
	flags := map[string][]string{}
	switch {
	case err == nil:
		flags = cluster.Flags(deployment.Spec.Template.Spec)
	case cluster.Hidden(err) && (given.Principal != "" || given.Issuer != ""):
		note = "the servers' flags cannot be seen: session tags and source identity need statements of their own"
	default:
		return policy, "", fmt.Errorf("the servers' flags: %s; --principal or --issuer does without", cluster.Reason(err))
	}
	r, err := role.FromAnnotations(namespace, name, account.Annotations, sessions(flags))
	switch {
	case err != nil:
		return policy, "", err
	case r == nil:
		return policy, "", fmt.Errorf("ServiceAccount %s/%s has no annotation %s", namespace, name, role.AnnotationARN)
	}
	issuer := given.Issuer
	if issuer == "" && given.Principal == "" && cluster.WebIdentity(flags) {
		issuer = cluster.Value(flags, "issuer")
	}
	if issuer != "" {
		policy, err = trust.ForWebIdentity(r, issuer)
		return policy, note, err
	}
	caller := given.Principal
	if caller == "" {
		if caller, err = identity(ctx, c); err != nil {
			return policy, "", fmt.Errorf("whom AWS takes the servers for: %s; say it by --principal", cluster.Reason(err))
		}
	}
	principal, uncertain, err := trust.Principal(caller)
	if err != nil {
		return policy, "", err
	}
	if uncertain {
		note = "a path of the servers' own role is not known here: if it has one, use --principal"
	}
	return trust.ForRole(r, principal), note, nil
}

// sessions is what the flags say of all sessions.
func sessions(flags map[string][]string) role.Sessions {
	s := role.Sessions{
		Duration: time.Hour, // of no concern to a trust policy
		Tagged:   cluster.On(flags, "session-tags"), Cluster: cluster.Value(flags, "cluster"), SourceIdentity: cluster.On(flags, "source-identity"),
	}
	for _, tag := range flags["session-tag"] {
		if key, value, found := strings.Cut(tag, "="); found {
			s.Tags = append(s.Tags, role.Tag{Key: key, Value: value})
		}
	}
	return s
}

// ownIdentity is the line of the server's log that has its field arn.
const ownIdentity = "the server's own AWS identity"

// identity is what a server has logged at its start.
func identity(ctx context.Context, c *cluster.Cluster) (arn string, err error) {
	pods, err := c.PodsOf(ctx, cluster.Server, "status.phase=Running")
	if err != nil {
		return "", err
	}
	for _, pod := range pods {
		logs, err := c.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{}).Stream(ctx)
		if err != nil {
			return "", err
		}
		lines := bufio.NewScanner(logs)
		lines.Buffer(nil, 1<<20)
		for arn == "" && lines.Scan() {
			var line struct{ Msg, ARN string }
			if json.Unmarshal(lines.Bytes(), &line) == nil && line.ARN != "" && line.Msg == ownIdentity {
				arn = line.ARN
			}
		}
		_ = logs.Close()
		if arn != "" {
			return arn, nil
		}
	}
	return "", errors.New("no server has it in its log")
}
