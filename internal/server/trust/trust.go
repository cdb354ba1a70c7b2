// Package trust writes the trust policy that a ServiceAccount's role needs, for review and for
// tools that set roles up. It owns the policy's form. It asks nobody: who the server is, and
// what its flags are, it is told.
package trust

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/iam4kube/iam4kube/internal/server/role"
)

// Policy is an IAM policy document,
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_grammar.html
type Policy struct {
	Version   string
	Statement []Statement
}

// Statement allows one action to one principal.
type Statement struct {
	Effect    string
	Principal map[string]string
	Action    string
	// Condition is operator, key, value.
	Condition map[string]map[string]string
}

// version is that of the policy language.
const version = "2012-10-17"

// ForRole is what lets the server, whose ARN principal is, call AssumeRole for this ServiceAccount
// alone. Tags and source identity have statements of their own: the keys of one action's
// condition are not there when another is decided.
func ForRole(r *role.Role, principal string) Policy {
	conditions := map[string]string{"sts:RoleSessionName": r.SessionName}
	if r.ExternalID != "" {
		conditions["sts:ExternalId"] = r.ExternalID
	}
	return policy(r, map[string]string{"AWS": principal}, "sts:AssumeRole", conditions)
}

// audience is that of the tokens with which the server calls AssumeRoleWithWebIdentity.
const audience = "sts.amazonaws.com"

// ForWebIdentity is the same for tokens that the issuer at this URL signs, in the form of IAM
// roles for service accounts. The provider is one of the role's own account.
func ForWebIdentity(r *role.Role, issuer string) (Policy, error) {
	name, isHTTPS := strings.CutPrefix(issuer, "https://")
	if !isHTTPS || name == "" || strings.HasSuffix(name, "/") {
		return Policy{}, fmt.Errorf("issuer %q: want https://HOST/PATH without a final slash, as IAM's identity provider has it", issuer)
	}
	if r.ExternalID != "" {
		return Policy{}, fmt.Errorf("the annotation %s is set: AssumeRoleWithWebIdentity has no external IDs", role.AnnotationExternalID)
	}
	partition := strings.Split(r.ARN, ":")[1]
	provider := "arn:" + partition + ":iam::" + r.AccountID() + ":oidc-provider/" + name
	return policy(r, map[string]string{"Federated": provider}, "sts:AssumeRoleWithWebIdentity", map[string]string{
		name + ":sub": "system:serviceaccount:" + r.Namespace + ":" + r.ServiceAccount, name + ":aud": audience,
	}), nil
}

func policy(r *role.Role, principal map[string]string, action string, conditions map[string]string) Policy {
	allow := func(action string, equals map[string]string) Statement {
		return Statement{"Allow", principal, action, map[string]map[string]string{"StringEquals": equals}}
	}
	p := Policy{Version: version, Statement: []Statement{allow(action, conditions)}}
	if tags := r.SessionTags(); len(tags) > 0 {
		equals := map[string]string{}
		for _, t := range tags {
			equals["aws:RequestTag/"+t.Key] = t.Value
		}
		p.Statement = append(p.Statement, allow("sts:TagSession", equals))
	}
	if r.SourceIdentity != "" {
		p.Statement = append(p.Statement, allow("sts:SetSourceIdentity", map[string]string{"sts:SourceIdentity": r.SourceIdentity}))
	}
	return p
}

// JSON is the policy as IAM takes it, with a line feed at the end.
func (p Policy) JSON() ([]byte, error) {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(p); err != nil {
		return nil, err
	}
	return text.Bytes(), nil
}

// ErrNoPrincipal says that no policy can name the caller's identity.
var ErrNoPrincipal = errors.New("want the ARN of an IAM role or user, such as arn:aws:iam::123456789012:role/iam4kube-server")

// Principal is the role or user behind the ARN that GetCallerIdentity tells. A role's path
// is not in that ARN: uncertain says that it may be missing from the result.
func Principal(caller string) (arn string, uncertain bool, err error) {
	const parts = 6
	p := strings.SplitN(caller, ":", parts)
	if len(p) != parts || p[0] != "arn" {
		return "", false, fmt.Errorf("%q: %w", caller, ErrNoPrincipal)
	}
	kind, rest, _ := strings.Cut(p[5], "/")
	switch {
	case p[2] == "iam" && (kind == "role" || kind == "user") && rest != "":
		return caller, false, nil
	case p[2] == "sts" && kind == "assumed-role":
		name, _, _ := strings.Cut(rest, "/")
		return "arn:" + p[1] + ":iam::" + p[4] + ":role/" + name, true, nil
	}
	return "", false, fmt.Errorf("%q: %w", caller, ErrNoPrincipal)
}
