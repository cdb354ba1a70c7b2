package fakests

import (
	"errors"
	"regexp"
	"slices"
	"strings"
)

// Role is an IAM role with what decides over AssumeRole.
type Role struct {
	ARN string `json:"arn"`

	// MaxSessionDuration in seconds as in IAM: 3600 (default) to 43200.
	MaxSessionDuration int `json:"maxSessionDuration"`

	Trust Trust `json:"trust"`
}

// Trust is a trust policy with one Allow statement. All its conditions must hold.
// The zero value trusts nobody.
type Trust struct {
	// Principals that may call AssumeRole: the ARN of a user, of a role (all its
	// sessions) or of one role session; arn:aws:iam::ACCOUNT:root for everybody
	// in an account; "*" for everybody.
	Principals []string `json:"principals"`

	// ExternalID, if not empty, is required: StringEquals on sts:ExternalId.
	// Without the condition an external ID in the request changes nothing.
	ExternalID string `json:"externalID"`

	// SessionNames, if not empty: StringLike on sts:RoleSessionName.
	SessionNames []string `json:"sessionNames"`

	// TagSession and SetSourceIdentity are these actions beside sts:AssumeRole.
	TagSession        bool `json:"tagSession"`
	SetSourceIdentity bool `json:"setSourceIdentity"`

	// RequestTags, if not empty: StringEquals on aws:RequestTag/KEY.
	RequestTags map[string]string `json:"requestTags"`

	// WebIdentities that may call AssumeRoleWithWebIdentity: StringLike on the
	// token's subject, for example system:serviceaccount:iam4kube:*.
	WebIdentities []string `json:"webIdentities"`

	// Federated is the ARN of the OIDC provider whose tokens may call
	// AssumeRoleWithWebIdentity; StringEquals and StringLike are conditions on their claims,
	// by keys such as HOST/PATH:sub, HOST/PATH:aud and aws:RequestTag/KEY, each with the values
	// of which one has to match. This is the form of trust policies for IRSA.
	Federated    string              `json:"federated"`
	StringEquals map[string][]string `json:"stringEquals"`
	StringLike   map[string][]string `json:"stringLike"`
}

// allows is the verdict of the trust policy on AssumeRole.
func (t Trust) allows(caller identity, sessionName string, externalID *string) bool {
	if t.ExternalID != "" && (externalID == nil || *externalID != t.ExternalID) {
		return false
	}
	return t.allowsSessionName(sessionName) && slices.ContainsFunc(t.Principals, caller.is)
}

// allowsWebIdentity is the verdict on AssumeRoleWithWebIdentity.
func (t Trust) allowsWebIdentity(subject, sessionName string) bool {
	return t.allowsSessionName(sessionName) && stringLike(t.WebIdentities, subject)
}

// allowsToken is the verdict on a token of that provider.
func (t Trust) allowsToken(providerARN, sessionName string, claims map[string]string) bool {
	for operator, conditions := range map[string]map[string][]string{"StringEquals": t.StringEquals, "StringLike": t.StringLike} {
		for key, values := range conditions {
			value, known := claims[key]
			if !known || !slices.Contains(values, value) && (operator != "StringLike" || !stringLike(values, value)) {
				return false
			}
		}
	}
	return t.Federated == providerARN && t.allowsSessionName(sessionName)
}

func (t Trust) allowsSessionName(name string) bool {
	return len(t.SessionNames) == 0 || stringLike(t.SessionNames, name)
}

// stringLike is IAM's StringLike: case-sensitive, * for any characters and ? for one.
func stringLike(patterns []string, value string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		expr := regexp.QuoteMeta(pattern)
		expr = strings.ReplaceAll(expr, `\*`, `.*`)
		expr = strings.ReplaceAll(expr, `\?`, `.`)
		return regexp.MustCompile(`(?s)\A` + expr + `\z`).MatchString(value)
	})
}

// identity is who signed a request.
type identity struct {
	arn         string // of the user, or of the role session
	accessKeyID string
	secret      string
	session     *Issued // nil for a long-term key
}

// is tells whether a principal of a trust policy means this identity.
func (id identity) is(principal string) bool {
	account := strings.Split(id.arn, ":")
	root := strings.Join([]string{"arn", account[1], "iam", "", account[4], "root"}, ":")
	switch principal {
	case "*", id.arn, root, account[4]:
		return true
	}
	return id.session != nil && principal == id.session.RoleARN
}

// account is the 12 digits of the identity's AWS account.
func (id identity) account() string { return strings.Split(id.arn, ":")[4] }

// userID is GetCallerIdentity's UserId: AIDA… for a user, AROA…:SESSION for a role session.
func (id identity) userID() string {
	if id.session != nil {
		return uniqueID("AROA", id.session.RoleARN) + ":" + id.session.SessionName
	}
	if strings.HasSuffix(id.arn, ":root") {
		return id.account()
	}
	return uniqueID("AIDA", id.arn)
}

// roleARN is the parsed ARN of a role. The path is not part of a session's ARN.
type roleARN struct {
	partition, account, name string
}

// A role's path is empty or between slashes, its name has up to 64 characters
// (IAM API reference, CreateRole).
var (
	roleARNPattern   = regexp.MustCompile(`\Aarn:(aws(?:-[a-z]+)*):iam::(\d{12}):role/(?:[!-~]{1,510}/)?([\w+=,.@-]{1,64})\z`)
	principalPattern = regexp.MustCompile(`\Aarn:aws(?:-[a-z]+)*:iam::\d{12}:(?:root|user/[!-~]+)\z`)
)

var errNotRoleARN = errors.New("not the ARN of a role")

func parseRoleARN(arn string) (roleARN, error) {
	m := roleARNPattern.FindStringSubmatch(arn)
	if m == nil {
		return roleARN{}, errNotRoleARN
	}
	return roleARN{partition: m[1], account: m[2], name: m[3]}, nil
}

func (a roleARN) session(name string) string {
	return "arn:" + a.partition + ":sts::" + a.account + ":assumed-role/" + a.name + "/" + name
}

func isPrincipalARN(arn string) bool { return principalPattern.MatchString(arn) }

// partitionOf is the partition of a region (aws-sdk-go-v2, partitions.json).
func partitionOf(region string) string {
	for _, p := range []struct{ prefix, partition string }{
		{"cn-", "aws-cn"},
		{"us-gov-", "aws-us-gov"},
		{"us-isob-", "aws-iso-b"},
		{"us-isof-", "aws-iso-f"},
		{"us-iso-", "aws-iso"},
		{"eu-isoe-", "aws-iso-e"},
		{"eusc-", "aws-eusc"},
	} {
		if strings.HasPrefix(region, p.prefix) {
			return p.partition
		}
	}
	return "aws"
}
