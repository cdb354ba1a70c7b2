package role

import (
	"fmt"
	"regexp"
	"strings"
	"time"
)

// Tag is a session tag.
type Tag struct{ Key, Value string }

// Sessions is what an admin says of all sessions. Nothing of it can be set by an annotation.
type Sessions struct {
	// Duration of a session whose ServiceAccount does not say.
	Duration time.Duration
	// Tagged sessions have the tags of EKS Pod Identity that there are here, with Cluster and
	// Tags besides: policies that are written for those fit.
	Tagged  bool
	Cluster string
	Tags    []Tag
	// WebIdentity: sessions come from AssumeRoleWithWebIdentity, which knows no external IDs.
	WebIdentity bool
	// SourceIdentity: the session's name is its source identity, too, which chains of roles
	// keep.
	SourceIdentity bool
}

// Keys of tags, as EKS Pod Identity names them,
// https://docs.aws.amazon.com/eks/latest/userguide/pod-id-abac.html
const (
	TagNamespace      = "kubernetes-namespace"
	TagServiceAccount = "kubernetes-service-account"
	TagCluster        = "kubernetes-cluster"
)

// Bounds of session tags,
// https://docs.aws.amazon.com/STS/latest/APIReference/API_Tag.html
const (
	maxTags     = 50
	maxTagKey   = 128
	maxTagValue = 256
)

var tagPattern = regexp.MustCompile(`^[\p{L}\p{Z}\p{N}_.:/=+\-@]*$`)

// Validate says which of the tags STS would refuse, or would be another than it seems.
func (s Sessions) Validate() error {
	all := s.all("namespace", "account")
	if len(all) > maxTags {
		return fmt.Errorf("%d session tags, want at most %d", len(all), maxTags)
	}
	keys := map[string]bool{}
	for _, t := range all {
		switch key := strings.ToLower(t.Key); {
		case key == "" || len(t.Key) > maxTagKey || !tagPattern.MatchString(t.Key) || strings.Contains(t.Key, "="), strings.HasPrefix(key, "aws:"):
			return fmt.Errorf("session tag %q: want a key of 1 to %d letters, digits, blanks or any of _.:/+-@, and none of AWS's (aws:...)", t.Key, maxTagKey)
		case len(t.Value) > maxTagValue || !tagPattern.MatchString(t.Value):
			return fmt.Errorf("session tag %q: want a value of up to %d letters, digits, blanks or any of _.:/=+-@", t.Key, maxTagValue)
		case keys[key]: // STS does not tell capitals apart
			return fmt.Errorf("session tag %q is there twice", t.Key)
		default:
			keys[key] = true
		}
	}
	return nil
}

func (s Sessions) all(namespace, serviceAccount string) []Tag {
	if !s.Tagged {
		return nil
	}
	all := []Tag{{TagNamespace, namespace}, {TagServiceAccount, serviceAccount}}
	if s.Cluster != "" {
		all = append(all, Tag{TagCluster, s.Cluster})
	}
	return append(all, s.Tags...)
}

func (s Sessions) tags(namespace, serviceAccount string) string {
	var lines []string
	for _, t := range s.all(namespace, serviceAccount) {
		lines = append(lines, t.Key+"="+t.Value)
	}
	return strings.Join(lines, "\n")
}

// SessionTags are those of the role's sessions.
func (r Role) SessionTags() []Tag {
	var all []Tag
	for line := range strings.SplitSeq(r.Tags, "\n") {
		if key, value, found := strings.Cut(line, "="); found {
			all = append(all, Tag{key, value})
		}
	}
	return all
}

// SessionPolicies are the ARNs of the policies that narrow the role's sessions.
func (r Role) SessionPolicies() []string {
	if r.PolicyARNs == "" {
		return nil
	}
	return strings.Split(r.PolicyARNs, ",")
}

// maxPolicies is STS's, of managed policies for a session.
const maxPolicies = 10

// A managed policy's path and name are as a role's, its name up to 128 characters.
var policyPattern = regexp.MustCompile(`^arn:aws(?:-[a-z0-9]+)*:iam::(?:aws|[0-9]{12}):policy/(?:[!-.0-~]+/)*[A-Za-z0-9_+=,.@-]{1,128}$`)

// policyARNs reads the annotation: ARNs with commas or white space between.
func policyARNs(annotation string) (string, error) {
	wrong := &AnnotationError{AnnotationPolicyARNs, annotation, "up to 10 ARNs of managed policies with commas between, such as arn:aws:iam::aws:policy/ReadOnlyAccess"}
	if len(annotation) > maxPolicies*(maxARN+maxTagKey) {
		return "", wrong
	}
	// A comma may be in a policy's name, and is then not told from one between two: the part
	// behind it is no ARN.
	all := strings.FieldsFunc(annotation, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' || r == '\n' || r == '\r' })
	if len(all) > maxPolicies {
		return "", wrong
	}
	for _, arn := range all {
		if len(arn) > maxARN+maxTagKey || !policyPattern.MatchString(arn) {
			return "", wrong
		}
	}
	return strings.Join(all, ","), nil
}
