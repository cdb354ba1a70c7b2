package metadata

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
	"github.com/iam4kube/iam4kube/internal/server/identity"
	"github.com/iam4kube/iam4kube/internal/server/sts"
)

// answer is a response that is not written yet. It is held several times on the stack of a request that waits: its size counts.
type answer struct {
	status int16
	// json is the body's Content-Type, which else is text/plain.
	json bool
	// retry sets Retry-After.
	retry bool
	body  []byte
	// failure says what to tell on the pod and in the log, and refusal what to tell in the
	// log alone; nil if nothing.
	failure *failure
	refusal *refusal
	// note is called when the client has the answer, unless it is nil.
	note func()
}

// failure is an answer that a user has to learn of.
type failure struct {
	caller    identity.Caller
	diagnosis diagnosis.Diagnosis
}

// statusClientClosed is what nginx logs for a client that went away; nobody
// receives it.
const statusClientClosed = 499

// refuse answers a request that a client which is in order does not send.
func refuse(status int, body string, kind refusalKind, value string) answer {
	a := text(status, body)
	a.refusal = &refusal{kind, value}
	return a
}

func text(status int, body string) answer {
	return answer{status: int16(status), body: []byte(body)}
}

// failed answers with a diagnosis.
func failed(c identity.Caller, d diagnosis.Diagnosis) answer {
	a := text(status(d), "iam4kube: "+d.Text)
	a.failure = &failure{c, d}
	return a
}

// status is what a diagnosis is in HTTP.
func status(d diagnosis.Diagnosis) int {
	switch {
	case d.Refusal == diagnosis.BadToken:
		return http.StatusUnauthorized
	case d.Refusal == diagnosis.BadAnnotation, d.Missing == diagnosis.RoleAnnotation:
		return http.StatusNotFound
	case d.Refusal == diagnosis.Stale, d.Missing != "":
		return http.StatusServiceUnavailable
	}
	return http.StatusForbidden
}

func notFound() answer {
	return text(http.StatusNotFound, "iam4kube: not found; of the metadata API only iam, placement and the instance identity document are served")
}

// tooMany answers where there is no place to wait.
func tooMany(full error) answer {
	a := refuse(http.StatusTooManyRequests, "iam4kube: "+full.Error()+"; try again in a second", refusedTooMany, "")
	a.retry = true
	return a
}

// refused answers what waiting does not change. A role that the namespace does not allow is
// one that EC2's list does not have.
func refused(c identity.Caller) answer {
	return failed(c, c.Subject().Refused(c.Refusal))
}

// asEC2 is an answer as a client of the metadata API understands it.
func (a answer) asEC2() answer {
	if a.failure != nil && a.failure.diagnosis.Refusal == diagnosis.NotAllowed {
		a.status = http.StatusNotFound
	}
	return a
}

// missing answers when the wait for a piece has ended. A pod is older than its token: if the
// token is old and the pod still not there, it will not come.
func missing(c identity.Caller, lastFailure *sts.Error) answer {
	if t := c.Claim.Token; t != nil && c.Missing == diagnosis.Pod && time.Since(time.Unix(t.Issued, 0)) > annotationWait {
		return failed(c, c.Subject().Refused(diagnosis.PodGone))
	}
	return failed(c, because(c, lastFailure).Missing(c.Missing))
}

// denied answers that STS does not give the role.
func denied(c identity.Caller, denial *sts.Error) answer {
	return failed(c, because(c, denial).Refused(diagnosis.Denied))
}

// because is the subject of a diagnosis of which STS has said why, unless it is nil.
func because(c identity.Caller, failure *sts.Error) diagnosis.Subject {
	s := c.Subject()
	if failure != nil {
		s.Why, s.Retry = failure.Error(), failure.Retry
	}
	return s
}

// otherRole answers a request for a role that is not the pod's.
func otherRole(c identity.Caller, name string) answer {
	return refuse(http.StatusNotFound, "iam4kube: that is not the role of this pod, which is "+c.Role.Name(), refusedOtherRole, name)
}

// deniedAsEC2 answers as EC2 does for a role that cannot be assumed: status 200, and a
// Code that is not Success.
func deniedAsEC2(c identity.Caller, denial *sts.Error) answer {
	a := denied(c, denial)
	body, err := json.MarshalIndent(struct{ Code, Message, LastUpdated string }{
		"AssumeRoleUnauthorizedAccess", a.failure.diagnosis.Text, time.Now().UTC().Format(time.RFC3339),
	}, "", "  ")
	if err != nil {
		panic(err) // strings always marshal
	}
	a.status, a.body = http.StatusOK, body
	return a
}
