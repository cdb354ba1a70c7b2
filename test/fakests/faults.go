package fakests

import (
	"context"
	"net/http"
	"time"
)

// Effect is what goes wrong with a request.
type Effect string

// Errors of AWS, in the place of its verdict.
const (
	Throttling           Effect = "Throttling"           // 400 Throttling, what STS sends today
	ThrottlingException  Effect = "ThrottlingException"  // 400 ThrottlingException, its name in Common Errors
	TooManyRequests      Effect = "TooManyRequests"      // 429 Throttling
	AccessDenied         Effect = "AccessDenied"         // 403, as from a trust policy
	InvalidClientTokenID Effect = "InvalidClientTokenId" // 403, the caller's key is unknown
	ExpiredToken         Effect = "ExpiredToken"         // 403, the caller's session is over
	RegionDisabled       Effect = "RegionDisabled"       // 403 RegionDisabledException
	InternalFailure      Effect = "InternalFailure"      // 500
	ServiceUnavailable   Effect = "ServiceUnavailable"   // 503
)

// No answer.
const (
	Hang  Effect = "Hang"  // until the client goes away
	Reset Effect = "Reset" // the connection is reset
	// IssueThenReset: the service issues credentials, the client never hears of it.
	IssueThenReset Effect = "IssueThenReset"
)

// Answers that are not what they should be. Credentials are issued.
const (
	NotXML             Effect = "NotXML"             // 200 and a page of HTML, as a proxy sends
	TruncatedXML       Effect = "TruncatedXML"       // the first half of the document
	EmptyBody          Effect = "EmptyBody"          // 200 and nothing
	NoCredentials      Effect = "NoCredentials"      // the element is missing
	PartialCredentials Effect = "PartialCredentials" // without SessionToken and Expiration
	ExpiresIn          Effect = "ExpiresIn"          // Fault.Lifetime instead of what was asked for
)

// Fault is what happens to requests that are well formed and signed.
type Fault struct {
	Effect   Effect          // empty: none, AWS's own verdict
	Until    <-chan struct{} // closed: the effect or the verdict may come; nil: at once
	Delay    time.Duration   // after that; both end when the client goes away
	Lifetime time.Duration   // of ExpiresIn; zero or less: already expired
	Times    int             // requests it happens to; 0: all until faults are set anew
}

// SetFault makes the faults happen one after the other: each for its Times, then
// the next, then none. roleARN narrows them to requests for this role, whether it
// exists or not; "" means every request. A role's own faults come before those
// for all. Without faults what was set is taken back; requests that hang or wait
// at that moment are not released.
func (f *Fake) SetFault(roleARN string, faults ...Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults[roleARN] = append([]Fault(nil), faults...)
}

// takeFault returns the fault of one request and counts it.
func (f *Fake) takeFault(roleARN string) Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, key := range []string{roleARN, ""} {
		queue := f.faults[key]
		if len(queue) == 0 {
			continue
		}
		fault := queue[0]
		if fault.Times > 0 {
			if queue[0].Times--; queue[0].Times == 0 {
				f.faults[key] = queue[1:]
			}
		}
		return fault
	}
	return Fault{}
}

// wait passes the time until the effect, or less when the client goes away.
func (fault Fault) wait(ctx context.Context) {
	if fault.Until != nil {
		select {
		case <-fault.Until:
		case <-ctx.Done():
			return
		}
	}
	if fault.Effect == Hang {
		<-ctx.Done()
		return
	}
	if fault.Delay <= 0 {
		return
	}
	timer := time.NewTimer(fault.Delay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// err is the error that the fault answers with, nil if it is of another kind.
func (fault Fault) err(callerARN, roleARN string) *apiError {
	switch fault.Effect {
	case Throttling:
		return &apiError{status: http.StatusBadRequest, code: "Throttling", message: "Rate exceeded"}
	case ThrottlingException:
		return &apiError{status: http.StatusBadRequest, code: "ThrottlingException", message: "Rate exceeded"}
	case TooManyRequests:
		return &apiError{status: http.StatusTooManyRequests, code: "Throttling", message: "Rate exceeded"}
	case AccessDenied:
		return errNotAuthorized(callerARN, roleARN)
	case InvalidClientTokenID:
		return errInvalidClientTokenID
	case ExpiredToken:
		return errExpiredToken
	case RegionDisabled:
		role, _ := parseRoleARN(roleARN)
		return &apiError{
			status: http.StatusForbidden, code: "RegionDisabledException",
			message: "STS is not activated in this region for account:" + role.account +
				". Your account administrator can activate STS in this region using the IAM Console.",
		}
	case InternalFailure:
		return &apiError{
			status: http.StatusInternalServerError, code: "InternalFailure",
			message: "The request processing has failed because of an unknown error, exception or failure.",
		}
	case ServiceUnavailable:
		return &apiError{
			status: http.StatusServiceUnavailable, code: "ServiceUnavailable",
			message: "The request has failed due to a temporary failure of the server.",
		}
	}
	return nil
}

// spoilSession changes what is issued.
func (fault Fault) spoilSession(i Issued) Issued {
	if fault.Effect == ExpiresIn {
		return i.expiresIn(fault.Lifetime)
	}
	return i
}

// spoilResult changes what is told of the issued credentials.
func (fault Fault) spoilResult(result *assumeResult) {
	switch fault.Effect {
	case NoCredentials:
		result.Credentials = nil
	case PartialCredentials:
		result.Credentials.SessionToken, result.Credentials.Expiration = "", ""
	}
}

// spoilAnswer changes the bytes on the wire.
func (fault Fault) spoilAnswer(a answer) answer {
	switch fault.Effect {
	case NotXML:
		return answer{status: http.StatusOK, body: []byte("<html><body>proxy</p></html>\n")}
	case TruncatedXML:
		return answer{status: a.status, body: a.body[:len(a.body)/2]}
	case EmptyBody:
		return answer{status: http.StatusOK}
	case Reset, IssueThenReset:
		return answer{reset: true}
	}
	return a
}
