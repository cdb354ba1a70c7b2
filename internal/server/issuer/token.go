package issuer

import (
	"crypto/rand"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/iam4kube/iam4kube/internal/server/role"
)

// Audience of the tokens: what IAM's providers for Kubernetes clusters have as client ID.
const Audience = "sts.amazonaws.com"

const (
	// lifetime of a token, from iat to exp. It is used at once.
	lifetime = 5 * time.Minute
	// early is by how much iat and nbf lie back, so that a clock that is a little ahead of
	// AWS's makes no token of the future. Behind, AWS allows five minutes beyond exp.
	early = time.Minute
)

// claims are those that STS reads,
// https://docs.aws.amazon.com/IAM/latest/UserGuide/id_session-tags.html#id_session-tags_adding-assume-role-idp
type claims struct {
	jwt.Claims
	Tags           *tags  `json:"https://aws.amazon.com/tags,omitempty"`
	SourceIdentity string `json:"https://aws.amazon.com/source_identity,omitempty"`
}

// tags have lists as values, of which STS wants one each. All are transitive, as those of EKS
// Pod Identity are: roles that the session assumes in turn see them.
type tags struct {
	Principal  map[string][]string `json:"principal_tags"`
	Transitive []string            `json:"transitive_tag_keys"`
}

// signing is the keys that are in use, and what signs with the current one.
type signing struct {
	url    string
	keys   *set
	signer jose.Signer
}

func newSigning(url string, keys *set) (*signing, error) {
	with := jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: keys.current.private, KeyID: keys.current.id}}
	signer, err := jose.NewSigner(with, (&jose.SignerOptions{}).WithType("JWT"))
	return &signing{url, keys, signer}, err
}

// Subject is the claim sub of a ServiceAccount's tokens, as Kubernetes has it in its own.
func Subject(namespace, serviceAccount string) string {
	return "system:serviceaccount:" + namespace + ":" + serviceAccount
}

// Token returns a new token for the role's ServiceAccount. It is a secret for its five minutes.
func (i *Issuer) Token(r role.Role) (string, error) {
	s := i.signing.Load()
	if s == nil {
		return "", errNoKey
	}
	return s.token(r, time.Now())
}

func (s *signing) token(r role.Role, now time.Time) (string, error) {
	issued := now.Add(-early)
	c := claims{
		Claims: jwt.Claims{
			Issuer: s.url, Subject: Subject(r.Namespace, r.ServiceAccount), Audience: jwt.Audience{Audience}, ID: rand.Text(),
			IssuedAt: jwt.NewNumericDate(issued), NotBefore: jwt.NewNumericDate(issued), Expiry: jwt.NewNumericDate(issued.Add(lifetime)),
		},
		SourceIdentity: r.SourceIdentity,
	}
	if all := r.SessionTags(); len(all) > 0 {
		c.Tags = &tags{Principal: map[string][]string{}}
		for _, t := range all {
			c.Tags.Principal[t.Key] = []string{t.Value}
			c.Tags.Transitive = append(c.Tags.Transitive, t.Key)
		}
	}
	return jwt.Signed(s.signer).Claims(c).Serialize()
}
