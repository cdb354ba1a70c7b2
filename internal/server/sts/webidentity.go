package sts

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/iam4kube/iam4kube/internal/server/role"
)

// Tokens makes the tokens of AssumeRoleWithWebIdentity, which are all the identity that the
// server has then.
type Tokens interface {
	// Wait waits until there is something to sign with. Its error says what is missing.
	Wait(ctx context.Context) error
	// Token returns a token whose sub is the role's ServiceAccount.
	Token(r role.Role) (string, error)
	// URL is that of the issuer, which the tokens name.
	URL() string
}

// NewWithWebIdentity is New for a server without AWS credentials: the Client's AssumeRole calls
// AssumeRoleWithWebIdentity, unsigned. The SDK looks nowhere for credentials.
func NewWithWebIdentity(ctx context.Context, limiter *Limiter, fallbackRegion string, tokens Tokens, registry prometheus.Registerer, options ...func(*config.LoadOptions) error) (*Client, error) {
	options = append(options, config.WithCredentialsProvider(aws.AnonymousCredentials{}))
	return configure(ctx, limiter, fallbackRegion, tokens, registry, options)
}

func (c *Client) assumeRoleWithWebIdentity(ctx context.Context, r role.Role) (*Credentials, *Error) {
	token, err := c.tokens.Token(r)
	if err != nil {
		return nil, c.noIdentity(err)
	}
	output, err := c.sts.AssumeRoleWithWebIdentity(ctx, &sts.AssumeRoleWithWebIdentityInput{
		RoleArn:          aws.String(r.ARN),
		RoleSessionName:  aws.String(r.SessionName),
		DurationSeconds:  aws.Int32(int32(r.Duration / time.Second)),
		WebIdentityToken: aws.String(token),
		PolicyArns:       sessionPolicies(r),
	})
	if err != nil {
		return nil, ofAccount(c.explainToken(classify(err), err, r), err, r)
	}
	return validate(output.Credentials, time.Now())
}

// Codes of AssumeRoleWithWebIdentity alone,
// https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html#API_AssumeRoleWithWebIdentity_Errors
const (
	codeInvalidToken   = "InvalidIdentityToken"
	codeExpiredToken   = "ExpiredTokenException"
	codeRejectedClaim  = "IDPRejectedClaim"
	codeCommunications = "IDPCommunicationError"
)

// explainToken sorts what STS says of a token, and adds what it leaves out. Where one account
// lacks the provider, the server's identity is in order: its roles are denied.
func (c *Client) explainToken(e *Error, err error, r role.Role) *Error {
	provider := strings.TrimPrefix(c.tokens.URL(), "https://")
	switch e.Code {
	case codeInvalidToken, codeExpiredToken, codeRejectedClaim:
		// With a message of its own: it is not about credentials.
		e = &Error{Kind: Identity, Code: e.Code, Message: messageOf(err)}
	}
	switch {
	case e.Code == codeInvalidToken && strings.Contains(e.Message, "No OpenIDConnect provider"):
		e.Kind = Denied
		e.Message += fmt.Sprintf(" (account %s needs an IAM identity provider for %s with the audience sts.amazonaws.com)", r.AccountID(), c.tokens.URL())
	case e.Code == codeInvalidToken && strings.Contains(e.Message, "audience"):
		e.Kind = Denied
		e.Message += fmt.Sprintf(" (the IAM identity provider for %s in account %s needs the audience sts.amazonaws.com)", c.tokens.URL(), r.AccountID())
	case e.Code == codeInvalidToken && strings.Contains(e.Message, "thumbprint"):
		e.Kind = Denied
		e.Message += fmt.Sprintf(" (the IAM identity provider for %s in account %s names another certificate than that URL shows)", c.tokens.URL(), r.AccountID())
	case e.Code == codeInvalidToken, e.Code == codeCommunications:
		e.Message += fmt.Sprintf(" (AWS has to reach %s/.well-known/openid-configuration and the keys that it names, with the one that signs: compare them with what server issuer prints)", c.tokens.URL())
	case e.Code == "AccessDenied":
		e.Message += fmt.Sprintf(" (the trust policy has to allow sts:AssumeRoleWithWebIdentity to the identity provider %s in the role's account, with %s:sub system:serviceaccount:%s:%s and %s:aud sts.amazonaws.com)",
			provider, provider, r.Namespace, r.ServiceAccount, provider)
		if r.Tags != "" {
			e.Message += " (the session has tags, so it has to allow sts:TagSession, too)"
		}
		if r.SourceIdentity != "" {
			e.Message += " (the session has a source identity, so it has to allow sts:SetSourceIdentity, too)"
		}
	}
	if e.Kind == Identity {
		e.Message += clockOff(err, time.Now())
		e.Cause = errors.New(e.Message)
	}
	return e
}

// mostOff is how far a clock may be from AWS's before that is worth a word.
const mostOff = time.Minute

// clockOff compares this machine's clock with the answer's header Date, and says so if it is off.
func clockOff(err error, now time.Time) string {
	response, ok := errors.AsType[*smithyhttp.ResponseError](err)
	if !ok || response.Response == nil {
		return ""
	}
	date, failed := http.ParseTime(response.Response.Header.Get("Date"))
	if failed != nil {
		return ""
	}
	switch off := now.Sub(date).Round(time.Second); {
	case off >= mostOff:
		return fmt.Sprintf(" (this machine's clock is ahead of that of STS by %v: set it right, with NTP)", off)
	case off <= -mostOff:
		return fmt.Sprintf(" (this machine's clock is behind that of STS by %v: set it right, with NTP)", -off)
	}
	return ""
}
