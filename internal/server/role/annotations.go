package role

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Annotations of a ServiceAccount. An empty value counts as absent.
const (
	AnnotationARN        = "iam.amazonaws.com/roleArn"
	AnnotationExternalID = "iam.amazonaws.com/roleExternalId"
	AnnotationDuration   = "iam.amazonaws.com/roleSessionDuration"
	AnnotationPolicyARNs = "iam.amazonaws.com/roleSessionPolicyArns"
)

// PodAnnotation is how kube2iam and kiam name a role, on the pod. It is not read.
const PodAnnotation = "iam.amazonaws.com/role"

// lookalikes are annotations that other systems read, and slips of the pen.
var lookalikes = []string{PodAnnotation, "iam.amazonaws.com/role-arn", "iam.amazonaws.com/role_arn", "eks.amazonaws.com/role-arn"}

// Lookalike is the key of an annotation which somebody may have taken for AnnotationARN,
// empty if there is none. It is no longer than the longest of those, whoever wrote it.
func Lookalike(annotations map[string]string) string {
	for _, key := range lookalikes {
		if _, ok := annotations[key]; ok {
			return key
		}
	}
	for key := range annotations {
		// In other capitals, or with a prefix or slash of one's own.
		if len(key) <= len(AnnotationARN) && key != AnnotationARN && strings.EqualFold(key[strings.LastIndexByte(key, '/')+1:], "roleArn") {
			return strings.Clone(key)
		}
	}
	return ""
}

// Bounds of DurationSeconds,
// https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html
const (
	MinDuration = 15 * time.Minute
	MaxDuration = 12 * time.Hour
)

// Patterns from the IAM and STS API references. AWS adds partitions, so any aws-... is one.
// The path is made of printable ASCII and is at most 512 characters long with its slashes,
// the name at most 64.
var (
	arnPattern        = regexp.MustCompile(`^arn:(aws(?:-[a-z0-9]+)*):iam::[0-9]{12}:role(/(?:[!-.0-~]+/)*)([A-Za-z0-9_+=,.@-]{1,64})$`)
	externalIDPattern = regexp.MustCompile(`^[A-Za-z0-9_+=,.@:/-]{2,}$`)
)

const (
	maxARN        = len("arn::iam::123456789012:role") + maxPartition + maxPath + maxName
	maxPartition  = 32 // of the kind aws-us-gov
	maxPath       = 512
	maxName       = 64
	maxExternalID = 1224
)

// AnnotationError says which annotation is wrong and what it has to look like.
type AnnotationError struct {
	Annotation string
	Value      string
	Want       string
}

// Error names the annotation, what it holds (cut, because whoever annotates
// chooses its length) and what is accepted. It is shorter than 1 KB, and holds on to
// nothing of the annotation.
func (e *AnnotationError) Error() string {
	const most = 128
	value := strconv.Quote(e.Value)
	if len(e.Value) > most {
		value = fmt.Sprintf("%q... (%d bytes)", e.Value[:most], len(e.Value))
	}
	return fmt.Sprintf("annotation %s has the value %s, want %s", e.Annotation, value, e.Want)
}

// FromAnnotations reads the role of a ServiceAccount. The result is nil if there
// is no role annotation; a wrong annotation, whichever it is, is an
// *AnnotationError and leaves no role. Without AnnotationDuration, sessions are
// as long as Sessions says. Annotations can be 256 KiB long together; of the result, no
// string is longer than is valid.
func FromAnnotations(namespace, serviceAccount string, annotations map[string]string, sessions Sessions) (*Role, error) {
	arn := annotations[AnnotationARN]
	if arn == "" {
		return nil, nil
	}
	if !isARN(arn) {
		return nil, &AnnotationError{AnnotationARN, arn, "the ARN of an IAM role, such as arn:aws:iam::123456789012:role/NAME"}
	}
	r := &Role{
		ARN:            arn,
		ExternalID:     annotations[AnnotationExternalID],
		SessionName:    SessionName(namespace, serviceAccount),
		Duration:       sessions.Duration,
		Tags:           sessions.tags(namespace, serviceAccount),
		Namespace:      namespace,
		ServiceAccount: serviceAccount,
	}
	if id := r.ExternalID; id != "" && (len(id) > maxExternalID || !externalIDPattern.MatchString(id)) {
		return nil, &AnnotationError{AnnotationExternalID, r.ExternalID, "2 to 1224 letters, digits or any of _+=,.@:/-"}
	}
	if r.ExternalID != "" && sessions.WebIdentity {
		return nil, &AnnotationError{AnnotationExternalID, r.ExternalID, "none: the server calls AssumeRoleWithWebIdentity, which has no external IDs; the trust policy tells ServiceAccounts apart by the token's sub"}
	}
	if v := annotations[AnnotationDuration]; v != "" {
		seconds, err := strconv.Atoi(v)
		r.Duration = time.Duration(seconds) * time.Second
		if err != nil || r.Duration < MinDuration || r.Duration > MaxDuration {
			return nil, &AnnotationError{AnnotationDuration, v, "whole seconds from 900 to 43200"}
		}
	}
	if sessions.SourceIdentity {
		r.SourceIdentity = r.SessionName
	}
	var err error
	r.PolicyARNs, err = policyARNs(annotations[AnnotationPolicyARNs])
	if err != nil {
		return nil, err
	}
	return r, nil
}

// isARN looks at the length first, because a pattern takes a millisecond for 256 KiB.
func isARN(s string) bool {
	if len(s) > maxARN {
		return false
	}
	m := arnPattern.FindStringSubmatch(s)
	return m != nil && len(m[1]) <= maxPartition && len(m[2]) <= maxPath
}
