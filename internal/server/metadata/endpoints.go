package metadata

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/iam4kube/iam4kube/internal/server/credentials"
	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
	"github.com/iam4kube/iam4kube/internal/server/identity"
	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/internal/server/sts"
)

// annotationWait is how young a pod is for which a role annotation may still come.
// An old pod without a role gets its answer at once, so that SDKs which merely
// probe do not hang.
const annotationWait = time.Minute

// view is what a request finds when it looks once: an answer, or what is missing
// for one.
type view struct {
	answer *answer
	// missing, keys, who, namespace and giveUp are set if answer is nil: what to wait for,
	// what to watch meanwhile, who waits and in whose places, and what to answer when the
	// wait has ended.
	missing   diagnosis.Piece
	keys      []any
	who       any
	namespace string
	giveUp    func() answer
	// role is set while its credentials are missing.
	role *role.Role
	// until ends the wait early, unless it is zero.
	until time.Time
}

func done(a answer) view { return view{answer: &a} }

func wait(c identity.Caller, lastFailure *sts.Error) view {
	v := view{
		missing: c.Missing,
		keys:    c.Keys(),
		who:     c.Claim.Who(),
		giveUp:  func() answer { return missing(c, lastFailure) },
	}
	if c.Pod != nil {
		v.namespace = c.Pod.Namespace
	}
	return v
}

// viewPod is for what needs just the pod.
func (s *Server) viewPod(claim identity.Claim, answer func(identity.Caller) answer) view {
	c := s.cfg.Identity.Lookup(claim)
	switch {
	case c.Pod != nil:
		return done(answer(c))
	case c.Refusal != "":
		return done(refused(c))
	}
	return wait(c, nil)
}

// viewRole is for what needs the pod's role; it returns a Caller with a role, or
// the view of why there is none.
func (s *Server) viewRole(claim identity.Claim, waitForAnnotation bool) (identity.Caller, *view) {
	c := s.cfg.Identity.Lookup(claim)
	if c.Role != nil {
		return c, nil
	}
	if c.Refusal != "" {
		v := done(refused(c))
		return c, &v
	}
	v := wait(c, nil)
	if c.Missing == diagnosis.RoleAnnotation {
		v.until = time.Unix(c.Pod.Created, 0).Add(annotationWait)
		if !waitForAnnotation {
			a := missing(c, nil)
			a.failure = nil // many injected pods need no role; whoever asks for one is told
			v = done(a)
		}
	}
	return c, &v
}

// viewCredentials is for what needs the credentials of the pod's role, which has to
// have the name unless that is empty; found makes the answer.
func (s *Server) viewCredentials(claim identity.Claim, name string, waitForAnnotation bool,
	found func(identity.Caller, *credentials.Issued) answer, denial func(identity.Caller, *sts.Error) answer,
) view {
	for {
		c, v := s.viewRole(claim, waitForAnnotation)
		if v != nil {
			return *v
		}
		if name != "" && name != c.Role.Name() {
			return done(otherRole(c, name))
		}
		issued, failure := s.get(c.Role)
		// The address may have changed hands and the annotation its content since
		// they were looked up, and nobody may get the credentials of another.
		if !s.cfg.Identity.Unchanged(c) {
			if again := s.cfg.Identity.Lookup(claim); again.Pod == nil || again.Pod.UID != c.Pod.UID || again.Role != c.Role {
				continue
			}
		}
		switch {
		case issued != nil:
			return done(found(c, issued))
		case failure != nil && failure.Kind == sts.Denied:
			return done(denial(c, failure))
		}
		c.Missing = diagnosis.Credentials
		waits := wait(c, failure)
		waits.keys, waits.role = append(waits.keys, c.Role), c.Role
		return waits
	}
}

// roleView answers the list of roles, which for a pod has one entry. No newline
// follows it: many clients would make it part of the name.
func (s *Server) roleView(claim identity.Claim) view {
	c, v := s.viewRole(claim, true)
	if v != nil {
		return *v
	}
	return done(text(http.StatusOK, c.Role.Name()))
}

func (s *Server) credentialsView(claim identity.Claim, t target) view {
	return s.viewCredentials(claim, t.role, true, func(c identity.Caller, issued *credentials.Issued) answer {
		return answer{status: http.StatusOK, note: s.served(c, issued, t.protocol), body: issued.Document(credentials.FormMetadata, credentialsDocument)}
	}, deniedAsEC2)
}

// infoView answers what EC2 says of the instance profile that a role comes with. Clients
// ask it to learn that there is a role, .NET's at every refresh.
func (s *Server) infoView(claim identity.Claim) view {
	c, v := s.viewRole(claim, true)
	if v != nil {
		return *v
	}
	return done(answer{status: http.StatusOK, body: infoDocument(c)})
}

// readyView answers an init container that holds the pod back until its
// credentials are there. A denial has a status of its own there, because no AWS
// client reads it.
func (s *Server) readyView(claim identity.Claim) view {
	return s.viewCredentials(claim, "", false, func(identity.Caller, *credentials.Issued) answer {
		return answer{status: http.StatusNoContent}
	}, denied)
}

func (s *Server) zoneView(claim identity.Claim) view {
	return s.viewPod(claim, func(c identity.Caller) answer {
		return place(s.zone(c.Pod), c.Pod, "topology.kubernetes.io/zone", "--availability-zone")
	})
}

func (s *Server) regionView(claim identity.Claim) view {
	return s.viewPod(claim, func(c identity.Caller) answer {
		return place(s.region(c.Pod), c.Pod, "topology.kubernetes.io/region", "--region")
	})
}

func place(name string, pod *identity.Pod, label, flag string) answer {
	if name == "" {
		return text(http.StatusNotFound, fmt.Sprintf("iam4kube: node %q of the pod has no label %s or is another provider's, and the server has no %s", pod.Host.Name(), label, flag))
	}
	return text(http.StatusOK, name)
}

func (s *Server) zone(pod *identity.Pod) string {
	if zone := s.cfg.Identity.NodeOf(pod).Zone; zone != "" {
		return zone
	}
	return s.cfg.AvailabilityZone
}

func (s *Server) region(pod *identity.Pod) string {
	if region := s.cfg.Identity.NodeOf(pod).Region; region != "" {
		return region
	}
	return s.cfg.Region
}

// documentView answers the few fields of the instance identity document that are
// true of a pod,
// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-identity-documents.html
func (s *Server) documentView(claim identity.Claim) view {
	return s.viewPod(claim, func(c identity.Caller) answer {
		document := struct {
			AccountID        string `json:"accountId,omitempty"`
			AvailabilityZone string `json:"availabilityZone,omitempty"`
			PrivateIP        string `json:"privateIp"`
			Region           string `json:"region,omitempty"`
			Version          string `json:"version"`
		}{
			AvailabilityZone: s.zone(c.Pod),
			PrivateIP:        c.Pod.Addresses[0].String(),
			Region:           s.region(c.Pod),
			Version:          "2017-09-30",
		}
		if c.Role != nil {
			document.AccountID = c.Role.AccountID()
		}
		body, err := json.MarshalIndent(document, "", "  ")
		if err != nil {
			panic(err) // strings always marshal
		}
		// As EC2 writes it, because scripts look for "region" : "...". No value has a quote.
		return answer{status: http.StatusOK, body: bytes.ReplaceAll(body, []byte(`": `), []byte(`" : `))}
	})
}
