// Package audit writes who got credentials and who tried to, one JSON object a line, for those
// who have to tell later. It owns the records' form, how many there are of one source, and the
// file. It does not decide what is refused, and nobody who hands it a record waits for it.
package audit

import (
	"net/netip"
	"time"
)

// Schema is what every record says of its form. A field that is added leaves it as it is; one
// that changes its meaning or goes makes it a new one.
const Schema = "iam4kube.io/audit/v1"

// Event is what a record is about.
type Event string

// Events.
const (
	// HandedOut: a pod got credentials, the first time for this pod and these credentials.
	HandedOut Event = "handed-out"
	// Denied: a caller that is in order gets nothing.
	Denied Event = "denied"
	// Refused: a request that a client which is in order does not send.
	Refused Event = "refused"
	// LeftOut: records of one source and kind that were not written, of a source that has
	// been quiet since.
	LeftOut Event = "left-out"
	// Lost: records that were to be written, and could not be.
	Lost Event = "lost"
)

// Events lists every Event.
var Events = []Event{HandedOut, Denied, Refused, LeftOut, Lost}

// Record is one line. Fields that do not apply are left out of it. None is a secret.
type Record struct {
	// Schema, Time (UTC) and Replica, the host's name, are set by Log.
	Schema  string    `json:"schema"`
	Time    time.Time `json:"time"`
	Replica string    `json:"replica"`
	Event   Event     `json:"event"`
	// Kind is why something was denied or refused.
	Kind   string `json:"kind,omitempty"`
	Status int    `json:"status,omitempty"`
	// SourceIP is where the request came from, and SourcePods whose address that is, each
	// NAMESPACE/NAME: none if nobody's is known, and several if more than one pod claims it.
	SourceIP   netip.Addr `json:"source_ip,omitzero"`
	SourcePods []string   `json:"source_pods,omitempty"`
	// The pod for which credentials were asked. A verified token's if there is one: it
	// differs from SourcePods where one pod has another's token.
	Namespace      string `json:"namespace,omitempty"`
	Pod            string `json:"pod,omitempty"`
	PodUID         string `json:"pod_uid,omitempty"`
	ServiceAccount string `json:"service_account,omitempty"`
	// Proof is how that pod is known, "address" or "token".
	Proof       string `json:"proof,omitempty"`
	RoleARN     string `json:"role_arn,omitempty"`
	SessionName string `json:"session_name,omitempty"`
	// Protocol is "imdsv1", "imdsv2" or "container", of HandedOut.
	Protocol    string    `json:"protocol,omitempty"`
	AccessKeyID string    `json:"access_key_id,omitempty"`
	Expiration  time.Time `json:"expiration,omitzero"`
	// Cause is the text that the client was answered, or would have been had it waited.
	Cause string `json:"cause,omitempty"`
	// Value is what the client sent, quoted and cut, where that is no secret.
	Value string `json:"value,omitempty"`
	// LeftOut counts the records of the same source and kind that were not written since the
	// last that was; of Lost, all that were lost.
	LeftOut int `json:"left_out,omitempty"`
}
