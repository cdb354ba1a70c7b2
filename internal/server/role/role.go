// Package role turns the annotations of a ServiceAccount into the IAM role that
// its pods get: a validated ARN with everything that an AssumeRole call for it
// needs. It owns the names and rules of the annotations and of the session name.
// It does not know clusters, requests or STS.
package role

import (
	"strings"
	"time"
)

// Role is one way to call sts:AssumeRole. Two Roles that differ in any field never
// share credentials. It is comparable.
type Role struct {
	// ARN of the IAM role, arn:PARTITION:iam::ACCOUNT:role/[PATH/]NAME.
	ARN string
	// ExternalID is the ExternalId parameter; empty means that none is sent.
	ExternalID string
	// SessionName is the RoleSessionName parameter, see SessionName.
	SessionName string
	// Duration is the DurationSeconds parameter, 15 min to 12 h in whole seconds.
	Duration time.Duration
	// Tags are the session's, each KEY=VALUE with a line feed between; none if empty.
	Tags string
	// SourceIdentity is the parameter of that name, empty means that none is sent.
	SourceIdentity string
	// PolicyARNs are managed policies that narrow the session, with commas between.
	PolicyARNs string
	// Namespace and ServiceAccount say whose role it is.
	Namespace, ServiceAccount string
}

// Name is the role's name without its path, as EC2's metadata service lists it.
func (r Role) Name() string {
	return r.ARN[strings.LastIndexByte(r.ARN, '/')+1:]
}

// AccountID is the twelve-digit account of the role.
func (r Role) AccountID() string {
	return strings.Split(r.ARN, ":")[4]
}
