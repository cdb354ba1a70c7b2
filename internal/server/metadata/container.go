package metadata

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/iam4kube/iam4kube/internal/server/credentials"
	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
	"github.com/iam4kube/iam4kube/internal/server/identity"
	"github.com/iam4kube/iam4kube/internal/server/podtoken"
	"github.com/iam4kube/iam4kube/internal/server/role"
	"github.com/iam4kube/iam4kube/internal/server/sts"
)

// pathContainer is that of EKS Pod Identity's agent.
const pathContainer = "/v1/credentials"

// containerCredentials answers GET /v1/credentials, the protocol that AWS's SDKs speak to
// the agents of ECS and of EKS Pod Identity,
// https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html
// The caller is whom the token in the header Authorization proves, or without one whom his
// address shows. The request is held for as long as it may be: several SDKs give up for good
// at the first 503.
func (s *Server) containerCredentials(ctx context.Context, claim identity.Claim, tokens []string) answer {
	since := time.Now()
	switch {
	case len(tokens) > 1:
		return badToken(claim, "the header is there more than once")
	case len(tokens) == 1 && tokens[0] == "":
		return badToken(claim, "it is empty; is the file with the token?")
	case len(tokens) == 0:
		return s.await(ctx, s.cfg.MaxWait, func() view { return s.containerView(claim) })
	}
	return s.await(ctx, s.cfg.MaxWait, func() view {
		proven, err := s.cfg.PodTokens.Verify(tokens[0], since)
		switch {
		case errors.Is(err, podtoken.ErrNoKeys), errors.Is(err, podtoken.ErrUnknownKey):
			return waitForKeys(claim, err)
		case err != nil:
			return done(badToken(claim, err.Error()))
		}
		return s.containerView(identity.Claim{Address: claim.Address, Token: &proven})
	})
}

func (s *Server) containerView(claim identity.Claim) view {
	return s.viewCredentials(claim, "", true, func(c identity.Caller, issued *credentials.Issued) answer {
		return answer{status: http.StatusOK, json: true, note: s.served(c, issued, protocolContainer), body: issued.Document(credentials.FormContainer, func(cr *sts.Credentials) []byte {
			return containerDocument(cr, c.Role)
		})}
	}, denied)
}

// containerDocument has the secrets in clear text.
func containerDocument(c *sts.Credentials, r *role.Role) []byte {
	document, err := json.Marshal(struct {
		AccessKeyId, SecretAccessKey, Token, Expiration, AccountId string
		RoleARN                                                    string `json:"RoleArn"`
	}{
		c.AccessKeyID, c.SecretAccessKey.Reveal(), c.SessionToken.Reveal(),
		c.Expiration.UTC().Format(expirationFormat), r.AccountID(), r.ARN,
	})
	if err != nil {
		panic(err) // strings always marshal
	}
	return bytes.Clone(document)
}

func badToken(claim identity.Claim, why string) answer {
	d := diagnosis.Subject{Address: claim.Address, Why: why}.Refused(diagnosis.BadToken)
	return refuse(http.StatusUnauthorized, "iam4kube: "+d.Text, refusedPodToken, "")
}

// waitForKeys waits until the API server was asked for the keys of tokens.
func waitForKeys(claim identity.Claim, err error) view {
	c := identity.Caller{Claim: claim, Missing: diagnosis.TokenKeys}
	return view{
		missing: c.Missing, keys: []any{podtoken.Keys}, who: claim.Who(),
		giveUp: func() answer {
			subject := c.Subject()
			subject.Why = err.Error()
			return failed(c, subject.Missing(c.Missing))
		},
	}
}

// asContainerError is an answer that is no credentials in the form that both old and new
// SDKs take a message from: some look for a JSON's message, others show the body.
func (a answer) asContainerError() answer {
	if a.status == http.StatusOK {
		return a
	}
	code := ""
	switch {
	case a.failure != nil:
		code = cmp.Or(string(a.failure.diagnosis.Missing), string(a.failure.diagnosis.Refusal))
	case a.refusal != nil:
		code = string(a.refusal.kind)
	}
	body, err := json.Marshal(struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}{cmp.Or(code, strings.ToLower(strings.ReplaceAll(http.StatusText(int(a.status)), " ", "-"))), string(a.body)})
	if err != nil {
		panic(err) // strings always marshal
	}
	a.body, a.json = body, true
	return a
}
