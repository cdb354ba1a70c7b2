package fakests

import (
	"fmt"
	"net/http"
	"strings"
	"time"
)

// apiError is an error as AWS puts it into an ErrorResponse.
type apiError struct {
	status    int
	code      string
	message   string
	namespace string // empty: the one of STS
}

// errorType is AWS's word for who is at fault.
func (e *apiError) errorType() string {
	if e.status >= 500 {
		return "Receiver"
	}
	return "Sender"
}

var (
	errMissingAuthenticationToken = &apiError{
		status: http.StatusForbidden, code: "MissingAuthenticationToken",
		message: "Request is missing Authentication Token",
	}
	errInvalidClientTokenID = &apiError{
		status: http.StatusForbidden, code: "InvalidClientTokenId",
		message: "The security token included in the request is invalid.",
	}
	errExpiredToken = &apiError{
		status: http.StatusForbidden, code: "ExpiredToken",
		message: "The security token included in the request is expired",
	}
	errMethodNotAllowed = &apiError{
		status: http.StatusMethodNotAllowed, code: "UnsupportedOperation",
		message: "This fake accepts POST with form parameters only",
	}
	errMissingAction = &apiError{
		status: http.StatusBadRequest, code: "MissingAction",
		message: "The request is missing an action or a required parameter.",
	}
	errMalformedBody = &apiError{
		status: http.StatusBadRequest, code: "MalformedQueryString",
		message: "The query string contains a syntax error.",
	}
	errInvalidARN = &apiError{
		status: http.StatusBadRequest, code: "ValidationError",
		message: "Request ARN is invalid",
	}
	errPackedPolicyTooLarge = &apiError{
		status: http.StatusBadRequest, code: "PackedPolicyTooLarge",
		message: "Packed size of session tags consumes more than 100% of allotted space.",
	}
	errRoleChaining = &apiError{
		status: http.StatusBadRequest, code: "ValidationError",
		message: "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining.",
	}
	errMaxSessionDuration = &apiError{
		status: http.StatusBadRequest, code: "ValidationError",
		message: "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.",
	}
	errRootAccount = &apiError{
		status: http.StatusForbidden, code: "AccessDenied",
		message: "Roles may not be assumed by root accounts.",
	}
	errWebIdentityDenied = &apiError{
		status: http.StatusForbidden, code: "AccessDenied",
		message: "Not authorized to perform sts:AssumeRoleWithWebIdentity",
	}
	errInvalidIdentityToken = &apiError{
		status: http.StatusBadRequest, code: "InvalidIdentityToken",
		message: "The ID Token provided is not a valid JWT. (You may see this error if you sent an Access Token)",
	}
)

// Of tokens that are verified.
var (
	errIDPCommunication = &apiError{
		status: http.StatusBadRequest, code: "IDPCommunicationError",
		message: "The identity provider could not be reached to verify the token",
	}
	errNoVerificationKey = &apiError{
		status: http.StatusBadRequest, code: "InvalidIdentityToken",
		message: "Couldn't retrieve verification key from your identity provider,  please reference AssumeRoleWithWebIdentity documentation for requirements",
	}
	errWrongAudience = &apiError{
		status: http.StatusBadRequest, code: "InvalidIdentityToken",
		message: "Incorrect token audience",
	}
	// errTokenOfTheFuture is in words of the fake's own: AWS's are not known.
	errTokenOfTheFuture = &apiError{
		status: http.StatusBadRequest, code: "InvalidIdentityToken",
		message: "The ID Token provided is not valid yet",
	}
)

func errNoProvider(issuer string) *apiError {
	return &apiError{
		status: http.StatusBadRequest, code: "InvalidIdentityToken",
		message: "No OpenIDConnect provider found in your account for " + issuer,
	}
}

func errIncompleteSignature(message string) *apiError {
	return &apiError{status: http.StatusBadRequest, code: "IncompleteSignature", message: message}
}

func errSignatureDoesNotMatch(message string) *apiError {
	return &apiError{status: http.StatusForbidden, code: "SignatureDoesNotMatch", message: message}
}

// errInvalidAction comes from the layer in front of STS, which has a namespace of its own.
func errInvalidAction(action, version string) *apiError {
	return &apiError{
		status: http.StatusBadRequest, code: "InvalidAction",
		message:   fmt.Sprintf("Could not find operation %s for version %s", action, version),
		namespace: "http://webservices.amazon.com/AWSFault/2005-15-09",
	}
}

func errParameter(name, why string) *apiError {
	return &apiError{
		status: http.StatusBadRequest, code: "InvalidQueryParameter",
		message: fmt.Sprintf("Parameter %q %s", name, why),
	}
}

func errValidation(violations []string) *apiError {
	noun := "error"
	if len(violations) > 1 {
		noun = "errors"
	}
	return &apiError{
		status: http.StatusBadRequest, code: "ValidationError",
		message: fmt.Sprintf("%d validation %s detected: %s", len(violations), noun, strings.Join(violations, "; ")),
	}
}

func errExpiredIdentityToken(now, expires time.Time) *apiError {
	return &apiError{
		status: http.StatusBadRequest, code: "ExpiredTokenException",
		message: fmt.Sprintf("Token expired: current date/time %d must be before the expiration date/time%d", now.Unix(), expires.Unix()),
	}
}

func errNotAuthorized(callerARN, roleARN string) *apiError {
	return errNotAuthorizedTo("sts:AssumeRole", callerARN, roleARN)
}

func errNotAuthorizedTo(action, callerARN, roleARN string) *apiError {
	return &apiError{
		status: http.StatusForbidden, code: "AccessDenied",
		message: fmt.Sprintf("User: %s is not authorized to perform: %s on resource: %s", callerARN, action, roleARN),
	}
}
