package metadata

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/iam4kube/iam4kube/internal/server/identity"
	"github.com/iam4kube/iam4kube/internal/server/podevents"
	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/internal/server/sts"
	"github.com/iam4kube/iam4kube/internal/server/waiting"
)

// answer is a response that is not written yet.
type answer struct {
	status int
	body   []byte
	// retry sets Retry-After.
	retry bool
	// failure says what to tell on the pod and in the log; nil if nothing.
	failure *failure
}

// failure is an answer that a user has to learn of.
type failure struct {
	caller identity.Caller
	reason podevents.Reason
	// missing is empty if nothing is.
	missing waiting.Piece
	text    string
}

// statusClientClosed is what nginx logs for a client that went away; nobody
// receives it.
const statusClientClosed = 499

func text(status int, body string) answer {
	return answer{status: status, body: []byte(body)}
}

func failed(status int, c identity.Caller, reason podevents.Reason, missing waiting.Piece, message string) answer {
	a := text(status, "iam4kube: "+message)
	a.failure = &failure{caller: c, reason: reason, missing: missing, text: message}
	return a
}

func notFound() answer {
	return text(http.StatusNotFound, "iam4kube: not found; of the metadata API only credentials, placement and the instance identity document are served")
}

func tooMany() answer {
	a := text(http.StatusTooManyRequests, "iam4kube: too many requests are waiting; try again in a second")
	a.retry = true
	return a
}

// refused answers what waiting does not change.
func refused(c identity.Caller) answer {
	if c.Refusal == identity.BadAnnotation {
		return failed(http.StatusNotFound, c, podevents.BadAnnotation, "", fmt.Sprintf(
			"ServiceAccount %s of pod %s gives no IAM role: %s. Correct the annotation; no restart is needed.", c.Pod.ServiceAccount, podName(c.Pod), c.Wrong))
	}
	return failed(http.StatusForbidden, c, "", "", fmt.Sprintf(
		"source address %s is a node's, so no pod can be told from it. Pods with hostNetwork cannot be served; for others, traffic to the metadata address is masqueraded (SNAT) on its way: exclude it.", c.Claim.Address))
}

// missing answers when the wait for a piece has ended.
func missing(c identity.Caller, lastFailure *sts.Error) answer {
	switch c.Missing {
	case waiting.Pod:
		return failed(http.StatusServiceUnavailable, c, "", c.Missing, fmt.Sprintf(
			"missing pod: no running pod is known on source address %s. If that is not the pod's address (status.podIPs), its traffic is masqueraded (SNAT) on its way: exclude the metadata address from that.", c.Claim.Address))
	case waiting.SinglePod:
		return failed(http.StatusServiceUnavailable, c, podevents.Ambiguous, c.Missing, fmt.Sprintf(
			"missing single-pod: more than one live pod claims source address %s, so the request is nobody's. It is served as soon as one of them is left.", c.Claim.Address))
	case waiting.ServiceAccount:
		return failed(http.StatusServiceUnavailable, c, podevents.NoAccount, c.Missing, fmt.Sprintf(
			"missing service-account: ServiceAccount %s of pod %s (source address %s) does not exist. Create it with the annotation %s.", c.Pod.ServiceAccount, podName(c.Pod), c.Claim.Address, role.AnnotationARN))
	case waiting.RoleAnnotation:
		return failed(http.StatusNotFound, c, podevents.NoRole, c.Missing, fmt.Sprintf(
			"missing role-annotation: ServiceAccount %s of pod %s (source address %s) has no annotation %s. Add it if the pod needs an IAM role; no restart is needed.", c.Pod.ServiceAccount, podName(c.Pod), c.Claim.Address, role.AnnotationARN))
	}
	why := "STS has not answered yet"
	if lastFailure != nil {
		why = lastFailure.Error()
	}
	return failed(http.StatusServiceUnavailable, c, podevents.Unavailable, waiting.Credentials, fmt.Sprintf(
		"missing credentials: no credentials yet for %s of pod %s (source address %s): %s. The server keeps trying.", c.Role.ARN, podName(c.Pod), c.Claim.Address, why))
}

// otherRole answers a request for a role that is not the pod's.
func otherRole(c identity.Caller) answer {
	return text(http.StatusNotFound, "iam4kube: that is not the role of this pod, which is "+c.Role.Name())
}

func deniedText(c identity.Caller, denial *sts.Error) string {
	return fmt.Sprintf("STS refuses the role %s to ServiceAccount %s of pod %s (session name %s): %v. Check the role's trust policy and the annotations; the server tries again by itself.",
		c.Role.ARN, c.Pod.ServiceAccount, podName(c.Pod), c.Role.SessionName, denial)
}

// denied answers as EC2 does for a role that cannot be assumed: status 200, and a
// Code that is not Success.
func denied(c identity.Caller, denial *sts.Error) answer {
	message := deniedText(c, denial)
	body, err := json.MarshalIndent(struct{ Code, Message, LastUpdated string }{
		"AssumeRoleUnauthorizedAccess", message, time.Now().UTC().Format(time.RFC3339),
	}, "", "  ")
	if err != nil {
		panic(err) // strings always marshal
	}
	a := failed(http.StatusOK, c, podevents.Denied, "", message)
	a.body = body
	return a
}

func podName(p *identity.Pod) string { return p.Namespace + "/" + p.Name }
