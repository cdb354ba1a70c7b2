package fakests

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"time"
)

// maxBody bounds a request's body; the longest valid one has a token of 20,000 characters.
const maxBody = 128 << 10

// ServeHTTP answers one request of the Query protocol.
func (f *Fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	arrival := time.Now()
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		attempt := f.begin(Attempt{Time: arrival})
		f.finish(attempt, OutcomeUnreadable, 0)
		return
	}
	query, refused := parseQuery(r, body)
	c := &call{
		fake:      f,
		request:   r,
		body:      body,
		query:     query,
		requestID: newRequestID(),
		attempt:   f.begin(newAttempt(arrival, query)),
	}
	var a answer
	if refused == nil {
		a, refused = c.answer(r.Context())
	}
	if refused != nil {
		a = errorAnswer(refused, c.requestID)
	}
	if r.Context().Err() != nil {
		f.finish(c.attempt, OutcomeClientGone, 0)
		return
	}
	a = c.fault.spoilAnswer(a)
	switch {
	case a.reset:
		f.finish(c.attempt, OutcomeReset, 0)
	case refused != nil:
		f.finish(c.attempt, refused.code, a.status)
	default:
		f.finish(c.attempt, OutcomeSuccess, a.status)
	}
	w.Header().Set("Date", f.now().UTC().Format(http.TimeFormat))
	a.write(w, c.requestID)
}

func newAttempt(arrival time.Time, query url.Values) Attempt {
	a := Attempt{
		Time:        arrival,
		Action:      query.Get("Action"),
		RoleARN:     query.Get("RoleArn"),
		SessionName: query.Get("RoleSessionName"),
		Duration:    query.Get("DurationSeconds"),
	}
	if query.Has("ExternalId") {
		id := query.Get("ExternalId")
		a.ExternalID = &id
	}
	return a
}

// finish records the outcome before the answer is sent, so that whoever has the
// answer also finds the outcome.
func (f *Fake) finish(a *Attempt, outcome string, status int) {
	var done Attempt
	f.update(a, func(a *Attempt) {
		a.Outcome, a.Status = outcome, status
		done = *a
	})
	if f.cfg.OnAnswer != nil {
		f.cfg.OnAnswer(done)
	}
}

// call is one request that is well formed.
type call struct {
	fake      *Fake
	request   *http.Request
	body      []byte
	query     url.Values
	requestID string
	attempt   *Attempt
	fault     Fault
}

// answer takes the call through the gates that follow the protocol's.
func (c *call) answer(ctx context.Context) (answer, *apiError) {
	var caller identity
	action := c.query.Get("Action")
	if action != actionAssumeRoleWithWebIdentity {
		var err *apiError
		if caller, err = c.authenticate(); err != nil {
			return answer{}, err
		}
	}
	var req *assumeRequest
	if action != actionGetCallerIdentity {
		var err *apiError
		if req, err = parseAssumeRequest(c.query); err != nil {
			return answer{}, err
		}
	}
	if err := c.suffer(ctx, caller); err != nil {
		return answer{}, err
	}
	switch action {
	case actionAssumeRole:
		issued, err := c.fake.assumeRole(caller, req)
		if err != nil || c.over(ctx) {
			return answer{}, err
		}
		return xmlAnswer(http.StatusOK, assumeRoleResponse{
			Namespace: namespace, Result: c.issue(issued), RequestID: c.requestID,
		}), nil
	case actionAssumeRoleWithWebIdentity:
		issued, bearer, err := c.fake.assumeRoleWithWebIdentity(ctx, req)
		if err != nil || c.over(ctx) {
			return answer{}, err
		}
		result := c.issue(issued)
		result.Subject, result.Audience, result.Provider = bearer.Subject, bearer.Audience, bearer.Provider
		return xmlAnswer(http.StatusOK, webIdentityResponse{
			Namespace: namespace, Result: result, RequestID: c.requestID,
		}), nil
	default:
		return xmlAnswer(http.StatusOK, callerIdentityResponse{
			Namespace: namespace, ARN: caller.arn, UserID: caller.userID(), Account: caller.account(), RequestID: c.requestID,
		}), nil
	}
}

func (c *call) authenticate() (identity, *apiError) {
	caller, err := c.fake.authenticate(stsRequest(c.request, c.body, c.fake.cfg.Region), time.Now())
	if err == nil {
		c.fake.update(c.attempt, func(a *Attempt) { a.AccessKeyID = caller.accessKeyID })
	}
	return caller, err
}

// stsRequest: the path is / and there is no query (see [Fake.ServeHTTP]).
func stsRequest(r *http.Request, body []byte, region string) signable {
	return signable{Request: r, service: "sts", region: region, path: "/", payload: hexSHA256(body)}
}

// suffer makes the fault of this request happen, as far as it comes before the verdict.
func (c *call) suffer(ctx context.Context, caller identity) *apiError {
	c.fault = c.fake.takeFault(c.attempt.RoleARN)
	c.fake.update(c.attempt, func(a *Attempt) { a.Fault = c.fault.Effect })
	c.fault.wait(ctx)
	return c.fault.err(caller.arn, c.attempt.RoleARN)
}

// over tells that nobody waits for credentials any more, or that they are not to be issued.
func (c *call) over(ctx context.Context) bool {
	return ctx.Err() != nil || c.fault.Effect == Reset
}

// issue makes the credentials and what the client is told of them.
func (c *call) issue(session Issued) assumeResult {
	session = c.fake.issue(c.fault.spoilSession(session))
	c.fake.update(c.attempt, func(a *Attempt) { a.IssuedAccessKeyID = session.AccessKeyID })
	result := c.fake.assumeResult(session)
	c.fault.spoilResult(&result)
	return result
}
