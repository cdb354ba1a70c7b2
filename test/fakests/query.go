package fakests

import (
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"unicode/utf8"
)

const (
	apiVersion = "2011-06-15"

	actionAssumeRole                = "AssumeRole"
	actionAssumeRoleWithWebIdentity = "AssumeRoleWithWebIdentity"
	actionGetCallerIdentity         = "GetCallerIdentity"

	minDuration     = 900
	defaultDuration = 3600
	maxDuration     = 43200
)

// parameters of each action that the fake knows how to honour.
var parameters = map[string][]string{
	actionAssumeRole:                {"RoleArn", "RoleSessionName", "DurationSeconds", "ExternalId", "SourceIdentity"},
	actionAssumeRoleWithWebIdentity: {"RoleArn", "RoleSessionName", "DurationSeconds", "WebIdentityToken"},
	actionGetCallerIdentity:         nil,
}

// parseQuery reads the form of a request and checks what does not depend on who
// asks: the protocol, the action and the names of the parameters.
func parseQuery(r *http.Request, body []byte) (url.Values, *apiError) {
	mediaType, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	switch {
	case r.Method != http.MethodPost:
		return nil, errMethodNotAllowed
	case r.URL.Path != "/" || r.URL.RawQuery != "" || mediaType != "application/x-www-form-urlencoded":
		return nil, errMissingAction
	}
	query, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, errMalformedBody
	}
	if !query.Has("Action") {
		return query, errMissingAction
	}
	action, version := query.Get("Action"), query.Get("Version")
	if !query.Has("Version") {
		version = "NO_VERSION_SPECIFIED"
	}
	known, ok := parameters[action]
	if !ok || version != apiVersion {
		return query, errInvalidAction(action, version)
	}
	for name, values := range query {
		if len(values) > 1 {
			return query, errParameter(name, "is given more than once")
		}
		isMember := action == actionAssumeRole && memberPattern.MatchString(name) ||
			action == actionAssumeRoleWithWebIdentity && policyMemberPattern.MatchString(name)
		if name != "Action" && name != "Version" && !slices.Contains(known, name) && !isMember {
			return query, errParameter(name, "is unknown or not modelled for "+action)
		}
	}
	return query, nil
}

// assumeRequest are the parameters of both actions that assume a role.
type assumeRequest struct {
	role        string
	sessionName string
	externalID  *string // nil: not given
	token       string  // of AssumeRoleWithWebIdentity
	duration    int     // seconds

	tags           []Tag
	transitive     []string
	sourceIdentity string
	policies       []string
}

// Patterns as the API reference has them; an "arn" is any text that XML can hold.
var (
	sessionNamePattern = constraint{"roleSessionName", 2, 64, regexp.MustCompile(`\A[\w+=,.@-]*\z`), `[\w+=,.@-]*`}
	externalIDPattern  = constraint{"externalId", 2, 1224, regexp.MustCompile(`\A[\w+=,.@:/-]*\z`), `[\w+=,.@:\/-]*`}
	arnPattern         = constraint{
		"roleArn", 20, 2048,
		regexp.MustCompile(`\A[\x09\x0A\x0D\x20-\x7E\x{85}\x{A0}-\x{D7FF}\x{E000}-\x{FFFD}\x{10000}-\x{10FFFF}]+\z`),
		`[\u0009\u000A\u000D\u0020-\u007E\u0085\u00A0-\uD7FF\uE000-\uFFFD\u10000-\u10FFFF]+`,
	}
	tokenPattern = constraint{"webIdentityToken", 4, 20000, regexp.MustCompile(``), ``}
)

// parseAssumeRequest checks the parameters and names all violations at once.
func parseAssumeRequest(query url.Values) (*assumeRequest, *apiError) {
	var violations []string
	required := func(parameter string, c constraint) string {
		if !query.Has(parameter) {
			violations = append(violations, fmt.Sprintf("Value null at '%s' failed to satisfy constraint: Member must not be null", c.member))
			return ""
		}
		violations = append(violations, c.check(query.Get(parameter))...)
		return query.Get(parameter)
	}
	req := &assumeRequest{
		role:        required("RoleArn", arnPattern),
		sessionName: required("RoleSessionName", sessionNamePattern),
		duration:    defaultDuration,
	}
	if query.Get("Action") == actionAssumeRoleWithWebIdentity {
		req.token = required("WebIdentityToken", tokenPattern)
	}
	if query.Has("ExternalId") {
		id := required("ExternalId", externalIDPattern)
		req.externalID = &id
	}
	if query.Has("SourceIdentity") {
		req.sourceIdentity = required("SourceIdentity", sourceIdentityPattern)
	}
	violations = append(violations, req.parseSession(query)...)
	if query.Has("DurationSeconds") {
		var wrong string
		req.duration, wrong = parseDuration(query.Get("DurationSeconds"))
		if wrong != "" {
			violations = append(violations, fmt.Sprintf("Value '%s' at 'durationSeconds' failed to satisfy constraint: %s",
				query.Get("DurationSeconds"), wrong))
		}
	}
	if len(violations) > 0 {
		return nil, errValidation(violations)
	}
	if _, err := parseRoleARN(req.role); err != nil {
		return nil, errInvalidARN
	}
	if err := req.checkSession(); err != nil {
		return nil, err
	}
	return req, nil
}

func parseDuration(value string) (seconds int, wrong string) {
	seconds, err := strconv.Atoi(value)
	switch {
	case err != nil:
		return 0, "Member must be an integer"
	case seconds < minDuration:
		return 0, "Member must have value greater than or equal to " + strconv.Itoa(minDuration)
	case seconds > maxDuration:
		return 0, "Member must have value less than or equal to " + strconv.Itoa(maxDuration)
	}
	return seconds, ""
}

// constraint is what the API model demands of a string.
type constraint struct {
	member   string // as validation messages spell it
	min, max int    // characters
	pattern  *regexp.Regexp
	shown    string // the pattern as messages spell it
}

func (c constraint) check(value string) (violations []string) {
	violated := func(what string, limit any) {
		violations = append(violations, fmt.Sprintf("Value '%s' at '%s' failed to satisfy constraint: Member must %s%v",
			value, c.member, what, limit))
	}
	if utf8.RuneCountInString(value) > c.max {
		violated("have length less than or equal to ", c.max)
	}
	if !c.pattern.MatchString(value) {
		violated("satisfy regular expression pattern: ", c.shown)
	}
	if utf8.RuneCountInString(value) < c.min {
		violated("have length greater than or equal to ", c.min)
	}
	return violations
}
