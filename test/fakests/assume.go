package fakests

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"slices"
	"strings"
	"time"
)

// chainedMax caps a role session whose caller is itself a role session, whatever
// the role allows (IAM user guide, "role chaining"). Seconds.
const chainedMax = 3600

// assumeRole decides over AssumeRole. Authorization comes before the checks of
// the duration, so that nobody learns the settings of a role he may not assume.
func (f *Fake) assumeRole(caller identity, req *assumeRequest) (Issued, *apiError) {
	if strings.HasSuffix(caller.arn, ":root") {
		return Issued{}, errRootAccount
	}
	role, exists := f.role(req.role)
	if !exists || !role.Trust.allows(caller, req.sessionName, req.externalID) {
		return Issued{}, errNotAuthorized(caller.arn, req.role)
	}
	if len(req.tags) > 0 && !role.Trust.TagSession {
		return Issued{}, errNotAuthorizedTo("sts:TagSession", caller.arn, req.role)
	}
	if req.sourceIdentity != "" && !role.Trust.SetSourceIdentity {
		return Issued{}, errNotAuthorizedTo("sts:SetSourceIdentity", caller.arn, req.role)
	}
	for key, value := range role.Trust.RequestTags {
		if !slices.Contains(req.tags, Tag{key, value}) {
			return Issued{}, errNotAuthorized(caller.arn, req.role)
		}
	}
	if caller.session != nil && req.duration > chainedMax {
		return Issued{}, errRoleChaining
	}
	if req.duration > role.MaxSessionDuration {
		return Issued{}, errMaxSessionDuration
	}
	return req.issued(caller.arn), nil
}

// assumeRoleWithWebIdentity needs no signature: the token is the proof.
func (f *Fake) assumeRoleWithWebIdentity(ctx context.Context, req *assumeRequest) (Issued, WebIdentity, *apiError) {
	now := f.now()
	f.mu.Lock()
	bearer, known := f.tokens[req.token]
	f.mu.Unlock()
	if !known {
		return f.assumeRoleWithToken(ctx, req)
	}
	if !now.Before(bearer.Expires) {
		return Issued{}, bearer, errExpiredIdentityToken(now, bearer.Expires)
	}
	role, exists := f.role(req.role)
	if !exists || !role.Trust.allowsWebIdentity(bearer.Subject, req.sessionName) {
		return Issued{}, bearer, errWebIdentityDenied
	}
	if req.duration > role.MaxSessionDuration {
		return Issued{}, bearer, errMaxSessionDuration
	}
	return req.issued(bearer.Provider + ":" + bearer.Subject), bearer, nil
}

// assumeRoleWithToken is the same for a token that has to be verified.
func (f *Fake) assumeRoleWithToken(ctx context.Context, req *assumeRequest) (Issued, WebIdentity, *apiError) {
	f.mu.Lock()
	f.keepSecret(req.token)
	f.mu.Unlock()
	arn, _ := parseRoleARN(req.role) // parseAssumeRequest has looked at it
	t, provider, err := f.verifyToken(ctx, req.token, arn.account)
	if err != nil {
		return Issued{}, WebIdentity{}, err
	}
	if err := req.readClaims(t.claims); err != nil {
		return Issued{}, WebIdentity{}, err
	}
	bearer := WebIdentity{Provider: provider.arn(f.partition), Subject: t.claims.Subject, Audience: t.claims.Audience[0]}
	conditions := map[string]string{provider.name() + ":sub": bearer.Subject, provider.name() + ":aud": bearer.Audience}
	for _, tag := range req.tags {
		conditions["aws:RequestTag/"+tag.Key] = tag.Value
	}
	role, exists := f.role(req.role)
	if !exists || !role.Trust.allowsToken(bearer.Provider, req.sessionName, conditions) || !role.Trust.allowsSession(req) {
		return Issued{}, bearer, errWebIdentityDenied
	}
	if req.duration > role.MaxSessionDuration {
		return Issued{}, bearer, errMaxSessionDuration
	}
	issued := req.issued(bearer.Provider + ":" + bearer.Subject)
	issued.KeyID = t.header.Key
	return issued, bearer, nil
}

// allowsSession says whether the further actions are allowed that the session takes.
func (t Trust) allowsSession(req *assumeRequest) bool {
	for key, value := range t.RequestTags {
		if !slices.Contains(req.tags, Tag{key, value}) {
			return false
		}
	}
	return (len(req.tags) == 0 || t.TagSession) && (req.sourceIdentity == "" || t.SetSourceIdentity)
}

func (f *Fake) role(arn string) (Role, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	role, ok := f.roles[arn]
	return role, ok
}

// issued is the session that the request asks for, still without keys.
func (req *assumeRequest) issued(callerARN string) Issued {
	i := Issued{
		RoleARN:     req.role,
		SessionName: req.sessionName,
		CallerARN:   callerARN,
		Expiration:  time.Now().Add(time.Duration(req.duration) * time.Second),

		Tags: req.tags, Transitive: req.transitive, SourceIdentity: req.sourceIdentity, PolicyARNs: req.policies,
	}
	if req.externalID != nil {
		i.ExternalID = *req.externalID
	}
	return i
}

// issue makes keys for a session and remembers them: from now on they sign requests.
func (f *Fake) issue(i Issued) Issued {
	i.AccessKeyID = "ASIA" + base32.StdEncoding.EncodeToString(randomBytes(10))
	i.SecretAccessKey = base64.StdEncoding.EncodeToString(randomBytes(30))
	i.SessionToken = "IQoJb3JpZ2luX2Vj" + base64.StdEncoding.EncodeToString(randomBytes(639))
	i.Expiration = i.Expiration.Truncate(f.precision())
	f.mu.Lock()
	defer f.mu.Unlock()
	f.issued[i.AccessKeyID] = i
	f.identities[i.AccessKeyID] = identity{arn: i.ARN(), accessKeyID: i.AccessKeyID, secret: i.SecretAccessKey, session: &i}
	f.keepSecret(i.SecretAccessKey)
	f.keepSecret(i.SessionToken)
	return i
}

// uniqueID is IAM's stable ID of a user (AIDA) or role (AROA).
func uniqueID(prefix, arn string) string {
	sum := sha256.Sum256([]byte(arn))
	return prefix + base32.StdEncoding.EncodeToString(sum[:])[:17]
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails (crypto/rand)
	return b
}
