package sts

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials/processcreds"
	"github.com/aws/aws-sdk-go-v2/service/sts/types"
	smithy "github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/iam4kube/iam4kube/internal/server/role"
)

// Kind sorts failed attempts by what has to happen next. It is a metric label.
type Kind string

const (
	// Denied: STS refused this role to this server. Somebody has to change the
	// role's trust policy, the annotation or the server's own permissions.
	Denied Kind = "denied"
	// Throttled: STS asks to slow down.
	Throttled Kind = "throttled"
	// Identity: STS refused the server's own credentials, or there are none, so no
	// role can work until an operator has repaired them.
	Identity Kind = "identity"
	// Unavailable: STS cannot be reached, is slow, fails, or answers nonsense.
	Unavailable Kind = "unavailable"
)

// Kinds lists every Kind.
var Kinds = []Kind{Denied, Throttled, Identity, Unavailable}

// Error is a failed attempt to assume a role.
type Error struct {
	Kind Kind
	// Code is STS's error code, empty if the failure is not an answer of STS.
	Code string
	// Message says why. It holds no secret: STS repeats the signed request, session
	// token included, in some messages about the server's own credentials, so
	// those are replaced.
	Message string
	// Cause is why the server's own credentials could not be had: for operators,
	// not for pods. It is nil for every other failure.
	Cause error
	// Retry is when the next attempt for the role is due. Whoever repeats attempts sets it.
	Retry time.Time
}

// Error joins code and message.
func (e *Error) Error() string {
	if e.Code == "" {
		return e.Message
	}
	return e.Code + ": " + e.Message
}

// Error codes of the Query protocol, from
// https://docs.aws.amazon.com/STS/latest/APIReference/CommonErrors.html and
// https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html
var kindOfCode = map[string]Kind{
	"AccessDenied":                Denied,
	"AccessDeniedException":       Denied,
	"ValidationError":             Denied,
	"MalformedPolicyDocument":     Denied,
	"PackedPolicyTooLarge":        Denied,
	"InvalidParameterValue":       Denied,
	"Throttling":                  Throttled,
	"ThrottlingException":         Throttled,
	"ThrottledException":          Throttled,
	"RequestLimitExceeded":        Throttled,
	"RequestThrottled":            Throttled,
	"TooManyRequestsException":    Throttled,
	"LimitExceededException":      Throttled,
	"ExpiredToken":                Identity,
	"ExpiredTokenException":       Identity,
	"IncompleteSignature":         Identity,
	"InvalidAccessKeyId":          Identity,
	"InvalidClientTokenId":        Identity,
	"InvalidSecurity":             Identity,
	"InvalidToken":                Identity,
	"MissingAuthenticationToken":  Identity,
	"NotAuthorized":               Identity,
	"OptInRequired":               Identity,
	"RegionDisabledException":     Identity,
	"RequestExpired":              Identity,
	"SignatureDoesNotMatch":       Identity,
	"UnrecognizedClientException": Identity,
}

// unreadable is the SDK's code for an error without one, such as that of a proxy.
const unreadable = "UnknownError"

// classify turns whatever the SDK returned into an *Error.
func classify(err error) *Error {
	var api smithy.APIError
	var response *smithyhttp.ResponseError
	var unsent *smithyhttp.RequestSendError
	switch {
	case errors.As(err, &api) && api.ErrorCode() != unreadable:
		return classifyAPI(api, err)
	case errors.Is(err, context.DeadlineExceeded):
		return &Error{Kind: Unavailable, Message: "STS did not answer in time"}
	case errors.As(err, &unsent):
		return &Error{Kind: Unavailable, Message: "STS cannot be reached: " + unsent.Err.Error()}
	case errors.As(err, &response):
		if response.HTTPStatusCode() == http.StatusTooManyRequests {
			return &Error{Kind: Throttled, Message: "STS answered HTTP status 429"}
		}
		return &Error{Kind: Unavailable, Message: fmt.Sprintf("STS gave no readable answer, HTTP status %d", response.HTTPStatusCode())}
	}
	return &Error{Kind: Unavailable, Message: "STS cannot be asked: " + err.Error()}
}

// noIdentity is the failure of whatever needs the server's own credentials, when those
// could not be had.
func (c *Client) noIdentity(err error) *Error {
	if c.tokens != nil {
		return &Error{Kind: Identity, Message: "the server has no key yet to sign its tokens with", Cause: err}
	}
	return &Error{Kind: Identity, Message: "the server has no AWS credentials of its own", Cause: identityCause(err)}
}

// identityCause is err without what may hold a secret: messages of STS (see
// Error.Message), and what a credential_process has printed.
func identityCause(err error) error {
	var api smithy.APIError
	var process *processcreds.ProviderError
	switch {
	case errors.As(err, &api):
		return classifyAPI(api, err)
	case errors.As(err, &process) && errors.Unwrap(process.Err) != nil:
		return fmt.Errorf("credential_process: %w", errors.Unwrap(process.Err))
	}
	return err
}

func classifyAPI(api smithy.APIError, err error) *Error {
	kind, known := kindOfCode[api.ErrorCode()]
	var response *smithyhttp.ResponseError
	if !known {
		kind = Unavailable
		if errors.As(err, &response) && response.HTTPStatusCode() == http.StatusTooManyRequests {
			kind = Throttled
		}
	}
	var regionDisabled *types.RegionDisabledException
	e := &Error{Kind: kind, Code: api.ErrorCode(), Message: messageOf(err)}
	switch {
	case errors.As(err, &regionDisabled):
		e.Message = "STS is not activated in this region for the server's account"
	case kind == Identity:
		e.Message = "STS refuses the server's own AWS credentials"
	}
	return e
}

// ofAccount sorts what is said of an account in which STS is not activated for the region: that of the
// role, whose credentials are asked for. AWS's documents have named either account, so what counts is
// the one in the message, if there is one.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/id_credentials_temp_enable-regions.html
func ofAccount(e *Error, err error, r role.Role) *Error {
	if _, ok := errors.AsType[*types.RegionDisabledException](err); !ok {
		return e
	}
	message := messageOf(err)
	if accounts := accountID.FindAllString(message, -1); len(accounts) > 0 && !slices.Contains(accounts, r.AccountID()) {
		return e
	}
	return &Error{Kind: Denied, Code: e.Code, Message: message}
}

var accountID = regexp.MustCompile(`\b\d{12}\b`)

// messageOf is the first line of AWS's message: where it repeats what was signed, it does so
// below.
func messageOf(err error) string {
	var api smithy.APIError
	if !errors.As(err, &api) {
		return ""
	}
	message, _, _ := strings.Cut(api.ErrorMessage(), "\n")
	return message
}
