package metadata

import (
	"cmp"

	"github.com/iam4kube/iam4kube/internal/server/audit"
	"github.com/iam4kube/iam4kube/internal/server/credentials"
	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
	"github.com/iam4kube/iam4kube/internal/server/identity"
)

// mostSourcePods are named of those that claim an address.
const mostSourcePods = 8

// auditServed records that a pod got credentials that it had not had.
func (s *Server) auditServed(c identity.Caller, issued *credentials.Issued, protocol string) {
	if s.cfg.Audit == nil {
		return
	}
	r := s.record(audit.HandedOut, c.Claim)
	about(&r, c)
	r.Protocol, r.AccessKeyID, r.Expiration = protocol, issued.AccessKeyID, issued.Expiration.UTC()
	s.cfg.Audit.Record(r)
}

// auditDenied records that a caller gets nothing. What is only missing yet is no denial; that
// two pods claim an address is one, because it may be somebody's doing, and so may be a token
// that comes from another pod than its own.
func (s *Server) auditDenied(c identity.Caller, d diagnosis.Diagnosis, status int) {
	if s.cfg.Audit == nil || d.Refusal == "" && d.Missing != diagnosis.SinglePod {
		return
	}
	event := audit.Denied
	if d.Refusal == diagnosis.OtherPod {
		event = audit.Refused
	}
	r := s.record(event, c.Claim)
	about(&r, c)
	r.Kind, r.Status, r.Cause = cmp.Or(string(d.Refusal), string(d.Missing)), status, d.Text
	s.cfg.Audit.Record(r)
}

// auditRefused records a request that a client which is in order does not send.
func (s *Server) auditRefused(claim identity.Claim, a answer) {
	if s.cfg.Audit == nil {
		return
	}
	r := s.record(audit.Refused, claim)
	r.Kind, r.Status, r.Cause = string(a.refusal.kind), int(a.status), string(a.body)
	if a.refusal.value != "" {
		r.Value = quoted(a.refusal.value)
	}
	s.cfg.Audit.Record(r)
}

// record says where a claim came from: an address, and whose pods' it is.
func (s *Server) record(event audit.Event, claim identity.Claim) audit.Record {
	r := audit.Record{Event: event, SourceIP: claim.Address}
	owner := s.cfg.Identity.Lookup(identity.Claim{Address: claim.Address})
	pods := owner.Claimants
	if owner.Pod != nil {
		pods = []*identity.Pod{owner.Pod}
	}
	for _, p := range pods[:min(len(pods), mostSourcePods)] {
		r.SourcePods = append(r.SourcePods, p.Namespace+"/"+p.Name)
	}
	return r
}

// about says for whom a caller asks, as far as that is known.
func about(r *audit.Record, c identity.Caller) {
	switch t := c.Claim.Token; {
	case c.Pod != nil:
		r.Namespace, r.Pod, r.PodUID, r.ServiceAccount = c.Pod.Namespace, c.Pod.Name, string(c.Pod.UID), c.Pod.ServiceAccount
	case t != nil:
		r.Namespace, r.Pod, r.PodUID, r.ServiceAccount = t.Namespace, t.Pod, string(t.PodUID), t.ServiceAccount
	default:
		return
	}
	r.Proof = c.Proof()
	if role := cmp.Or(c.Role, c.Denied); role != nil {
		r.RoleARN, r.SessionName = role.ARN, role.SessionName
	}
}
