// Package sts calls STS: AssumeRole or AssumeRoleWithWebIdentity, and GetCallerIdentity. It owns everything that touches AWS: the SDK's
// configuration, the limiter that each HTTP attempt passes, and the sorting of
// failures into kinds. It does not know when a role is due, nor does it keep
// credentials or repeat an attempt.
package sts

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/aws-sdk-go-v2/service/sts/types"
	"github.com/aws/smithy-go/middleware"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/iam4kube/iam4kube/internal/buildinfo"
	"github.com/iam4kube/iam4kube/internal/server/role"
)

// Credentials are temporary security credentials as STS issues them.
type Credentials struct {
	AccessKeyID     string
	SecretAccessKey Secret
	SessionToken    Secret
	// Expiration is STS's word, in UTC.
	Expiration time.Time
	// Issued is when the answer came, by this machine's clock.
	Issued time.Time
}

// attemptTimeout ends an attempt that STS does not answer.
const attemptTimeout = 10 * time.Second

// Client calls STS with the server's own identity.
type Client struct {
	*Limiter
	sts      *sts.Client
	region   string
	identity aws.CredentialsProvider
	// tokens, if not nil, take the place of identity.
	tokens  Tokens
	metrics *metrics
	// failure is the last one of identity, nil if it works.
	failure atomic.Pointer[identityFailure]
}

// New returns a Client for the SDK's own configuration (environment, shared
// files, web identity, container, EC2 role, ...). fallbackRegion is used if that
// names no region. Options come on top of it, for tests: the HTTP client, say.
func New(ctx context.Context, limiter *Limiter, fallbackRegion string, registry prometheus.Registerer, options ...func(*config.LoadOptions) error) (*Client, error) {
	return configure(ctx, limiter, fallbackRegion, nil, registry, options)
}

func configure(ctx context.Context, limiter *Limiter, fallbackRegion string, tokens Tokens, registry prometheus.Registerer, options []func(*config.LoadOptions) error) (*Client, error) {
	// The default is for the calls too by which the SDK gets the server's identity.
	options = append(options, config.WithDefaultRegion(fallbackRegion),
		config.WithAPIOptions([]func(*middleware.Stack) error{
			limiter.addTo,
			awsmiddleware.AddUserAgentKeyValue("iam4kube-server", buildinfo.Version()), // CloudTrail has it
		}))
	cfg, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("load the AWS configuration: %w", err)
	}
	if cfg.Region == "" {
		return nil, errors.New("no AWS region for STS: set AWS_REGION, a profile with a region, or --region")
	}
	client := sts.NewFromConfig(cfg, func(o *sts.Options) {
		// Repeating is the cache's work: it knows what is more urgent.
		o.Retryer = aws.NopRetryer{}
	})
	return &Client{Limiter: limiter, sts: client, region: cfg.Region, identity: cfg.Credentials, tokens: tokens, metrics: newMetrics(registry, limiter)}, nil
}

type identityErrorKey struct{}

// identityFailure is why the server had no credentials of its own at that time.
type identityFailure struct {
	err error
	at  time.Time
}

// identityPause is how long such a failure holds for every role. Each would fail the
// same way, after as long a wait and as many requests.
const identityPause = 5 * time.Second

// Admit is the Limiter's, once the server has credentials of its own: those may
// come from STS as well, and slowly, and every attempt that was admitted meanwhile
// would then leave at the same moment. AssumeRole reports why it has none.
func (c *Client) Admit(ctx context.Context) (context.Context, error) {
	failure := c.failure.Load()
	if failure == nil || time.Since(failure.at) > identityPause {
		failure = nil
		if err := c.retrieve(ctx); err != nil {
			failure = &identityFailure{err, time.Now()}
		}
		c.failure.Store(failure)
	}
	admitted, err := c.Limiter.Admit(ctx)
	if err != nil {
		return nil, err
	}
	if failure != nil {
		admitted = context.WithValue(admitted, identityErrorKey{}, failure.err)
	}
	return admitted, nil
}

// retrieve lets the SDK have the server's own credentials, which it keeps.
func (c *Client) retrieve(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	if c.tokens != nil {
		return c.tokens.Wait(ctx)
	}
	_, err := c.identity.Retrieve(ctx)
	return err
}

// AssumeRole makes one attempt. The error is an *Error.
func (c *Client) AssumeRole(ctx context.Context, r role.Role) (*Credentials, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	start := time.Now()
	credentials, err := c.assumeRole(ctx, r)
	c.metrics.observe(err, time.Since(start))
	if err == nil {
		return credentials, nil
	}
	if cache, ok := c.identity.(*aws.CredentialsCache); ok && err.Kind == Identity {
		// What is not valid any more is not used until its end.
		cache.Invalidate()
	}
	return nil, err
}

func (c *Client) assumeRole(ctx context.Context, r role.Role) (*Credentials, *Error) {
	// Its own error, because in that of the call below it would look like STS's.
	if err, _ := ctx.Value(identityErrorKey{}).(error); err != nil {
		return nil, c.noIdentity(err)
	}
	if c.tokens != nil {
		return c.assumeRoleWithWebIdentity(ctx, r)
	}
	input := &sts.AssumeRoleInput{
		RoleArn:         aws.String(r.ARN),
		RoleSessionName: aws.String(r.SessionName),
		DurationSeconds: aws.Int32(int32(r.Duration / time.Second)),
	}
	if r.ExternalID != "" {
		input.ExternalId = aws.String(r.ExternalID)
	}
	// All are transitive, as those of EKS Pod Identity are: what the pod does not hand on, it
	// could set to another's as it assumes a further role.
	for _, t := range r.SessionTags() {
		input.Tags = append(input.Tags, types.Tag{Key: aws.String(t.Key), Value: aws.String(t.Value)})
		input.TransitiveTagKeys = append(input.TransitiveTagKeys, t.Key)
	}
	input.PolicyArns = sessionPolicies(r)
	if r.SourceIdentity != "" {
		input.SourceIdentity = aws.String(r.SourceIdentity)
	}
	output, err := c.sts.AssumeRole(ctx, input)
	if err != nil {
		return nil, ofAccount(explain(classify(err), r), err, r)
	}
	return validate(output.Credentials, time.Now())
}

func sessionPolicies(r role.Role) (all []types.PolicyDescriptorType) {
	for _, arn := range r.SessionPolicies() {
		all = append(all, types.PolicyDescriptorType{Arn: aws.String(arn)})
	}
	return all
}

// Self is whom STS takes the server for.
type Self struct {
	// ARN is that of an IAM user, or of the session of a role
	// (arn:aws:sts::ACCOUNT:assumed-role/ROLE/SESSION).
	ARN string
	// Account has twelve digits. Region is that of the STS endpoint.
	Account, Region string
}

// GetCallerIdentity asks STS whom it takes the server for, which needs no permission. It
// waits for a place at the limiter, as every request to STS does. The error is an *Error.
func (c *Client) GetCallerIdentity(ctx context.Context) (*Self, error) {
	self, err := c.getCallerIdentity(ctx)
	c.metrics.observeIdentity(err)
	if err != nil {
		return nil, err
	}
	return self, nil
}

func (c *Client) getCallerIdentity(ctx context.Context) (*Self, *Error) {
	if err := c.retrieve(ctx); err != nil {
		return nil, c.noIdentity(err)
	}
	output, err := c.sts.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	if err != nil {
		return nil, classify(err)
	}
	return &Self{ARN: aws.ToString(output.Arn), Account: aws.ToString(output.Account), Region: c.region}, nil
}

// explain adds what AWS's message leaves out.
func explain(e *Error, r role.Role) *Error {
	if strings.Contains(e.Message, "role chaining") {
		e.Message += fmt.Sprintf(" (the server's own identity is an assumed role, so a session may last at most 1 h, but %s asks for %v: shorten it with %s or --session-duration, or run the server as an IAM user)",
			r.SessionName, r.Duration, role.AnnotationDuration)
	}
	if e.Kind != Denied {
		return e
	}
	// A denial goes away without them, or with the permissions that they need.
	if r.Tags != "" {
		e.Message += " (the session has tags, so trust policy and the server's permissions have to allow sts:TagSession beside sts:AssumeRole)"
	}
	if r.SourceIdentity != "" {
		e.Message += " (the session has a source identity, so both have to allow sts:SetSourceIdentity, too)"
	}
	return e
}

// validate refuses an answer that would be of no use to a pod.
func validate(c *types.Credentials, now time.Time) (*Credentials, *Error) {
	if c == nil || aws.ToString(c.AccessKeyId) == "" || aws.ToString(c.SecretAccessKey) == "" || aws.ToString(c.SessionToken) == "" || c.Expiration == nil {
		return nil, &Error{Kind: Unavailable, Message: "STS answered without complete credentials"}
	}
	if !c.Expiration.After(now) {
		return nil, &Error{Kind: Unavailable, Message: fmt.Sprintf("STS answered with credentials that expired at %s; is this machine's clock right?", c.Expiration.UTC().Format(time.RFC3339))}
	}
	return &Credentials{
		AccessKeyID:     *c.AccessKeyId,
		SecretAccessKey: Secret(*c.SecretAccessKey),
		SessionToken:    Secret(*c.SessionToken),
		Expiration:      c.Expiration.UTC(),
		Issued:          now,
	}, nil
}
