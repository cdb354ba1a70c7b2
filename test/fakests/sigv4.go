package fakests

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	sigV4Algorithm  = "AWS4-HMAC-SHA256"
	sigV4Terminator = "aws4_request"
	sigV4Time       = "20060102T150405Z" // "ISO 8601 basic format"
	sigV4Date       = "20060102"

	// maxSkew is how far X-Amz-Date may be from the service's clock, either way.
	maxSkew = 15 * time.Minute
)

// signable is a request with what the services of AWS sign differently.
type signable struct {
	*http.Request
	service string // its name in a credential scope
	region  string // empty: any
	path    string // canonical
	query   string // canonical
	payload string // its hash, or what the service has in place of one
}

// authenticate returns who signed the request. The order of the checks is the
// one that AWS's front end is known to have: a request that is wrong in two
// ways gets the error of the first.
func (f *Fake) authenticate(r signable, now time.Time) (identity, *apiError) {
	header := r.Header.Get("Authorization")
	if header == "" {
		return identity{}, errMissingAuthenticationToken
	}
	auth, err := parseAuthorization(header, r.Header.Get("X-Amz-Date"))
	if err != nil {
		return identity{}, err
	}
	for _, check := range []func() *apiError{
		func() *apiError { return auth.checkTime(now) },
		func() *apiError { return auth.checkSignedHeaders(r.Header) },
		func() *apiError { return auth.checkScope(r.service, r.region) },
	} {
		if err := check(); err != nil {
			return identity{}, err
		}
	}

	f.mu.Lock()
	caller, known := f.identities[auth.accessKeyID]
	f.mu.Unlock()
	if !known {
		return identity{}, errInvalidClientTokenID
	}
	if err := caller.checkToken(r.Header.Get("X-Amz-Security-Token"), now); err != nil {
		return identity{}, err
	}
	canonical := auth.canonical(r)
	toSign := auth.stringToSign(canonical)
	if !hmac.Equal([]byte(auth.sign(toSign, caller.secret)), []byte(auth.signature)) {
		// AWS repeats the request, and so the session token.
		return identity{}, errSignatureDoesNotMatch(
			"The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details.\n\n" +
				"The Canonical String for this request should have been\n'" + canonical + "'\n\nThe String-to-Sign should have been\n'" + toSign + "'\n")
	}
	return caller, nil
}

// checkToken: a temporary key needs the token it was issued with, a long-term
// key must come without one.
func (id identity) checkToken(token string, now time.Time) *apiError {
	if id.session == nil {
		if token != "" {
			return errInvalidClientTokenID
		}
		return nil
	}
	if !hmac.Equal([]byte(token), []byte(id.session.SessionToken)) {
		return errInvalidClientTokenID
	}
	if !now.Before(id.session.Expiration) {
		return errExpiredToken
	}
	return nil
}

// authorization is the content of an Authorization header.
type authorization struct {
	accessKeyID   string
	scope         [4]string // date, region, service, terminator
	signedHeaders []string  // lower case, sorted
	signature     string
	time          time.Time // X-Amz-Date
}

// parseAuthorization reads
//
//	AWS4-HMAC-SHA256 Credential=ID/DATE/REGION/SERVICE/aws4_request, SignedHeaders=a;b, Signature=HEX
func parseAuthorization(header, amzDate string) (*authorization, *apiError) {
	algorithm, rest, _ := strings.Cut(header, " ")
	if algorithm != sigV4Algorithm {
		return nil, errIncompleteSignature(fmt.Sprintf("Unsupported AWS 'algorithm': '%s'.", algorithm))
	}
	fields := map[string]string{}
	for _, field := range strings.FieldsFunc(rest, func(r rune) bool { return r == ',' || r == ' ' }) {
		name, value, ok := strings.Cut(field, "=")
		if !ok {
			return nil, errIncompleteSignature(fmt.Sprintf(
				"'%s' not a valid key=value pair (missing equal-sign) in Authorization header: '%s'.", field, header))
		}
		fields[name] = value
	}
	var missing strings.Builder
	for _, name := range []string{"Credential", "Signature", "SignedHeaders"} {
		if fields[name] == "" {
			missing.WriteString("Authorization header requires '" + name + "' parameter. ")
		}
	}
	if amzDate == "" {
		missing.WriteString("Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header. ")
	}
	if missing.Len() > 0 {
		return nil, errIncompleteSignature(missing.String() + "Authorization=" + header)
	}
	at, err := time.Parse(sigV4Time, amzDate)
	if err != nil {
		return nil, errIncompleteSignature(fmt.Sprintf(
			"Date must be in ISO-8601 'basic format'. Got '%s'. See http://en.wikipedia.org/wiki/ISO_8601", amzDate))
	}
	credential := strings.Split(fields["Credential"], "/")
	if len(credential) != 5 {
		return nil, errIncompleteSignature(fmt.Sprintf(
			"Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term, got '%s'", fields["Credential"]))
	}
	signed := strings.Split(strings.ToLower(fields["SignedHeaders"]), ";")
	slices.Sort(signed)
	return &authorization{
		accessKeyID:   credential[0],
		scope:         [4]string(credential[1:]),
		signedHeaders: signed,
		signature:     fields["Signature"],
		time:          at,
	}, nil
}

func (a *authorization) checkTime(now time.Time) *apiError {
	now = now.UTC()
	const minutes = int(maxSkew / time.Minute)
	if oldest := now.Add(-maxSkew); a.time.Before(oldest) {
		return errSignatureDoesNotMatch(fmt.Sprintf("Signature expired: %s is now earlier than %s (%s - %d min.)",
			a.time.Format(sigV4Time), oldest.Format(sigV4Time), now.Format(sigV4Time), minutes))
	}
	if newest := now.Add(maxSkew); a.time.After(newest) {
		return errSignatureDoesNotMatch(fmt.Sprintf("Signature not yet current: %s is still later than %s (%s + %d min.)",
			a.time.Format(sigV4Time), newest.Format(sigV4Time), now.Format(sigV4Time), minutes))
	}
	return nil
}

// checkSignedHeaders: host and every X-Amz- header of the request must be
// covered by the signature, or they could be changed on the way.
func (a *authorization) checkSignedHeaders(header http.Header) *apiError {
	if !slices.Contains(a.signedHeaders, "host") {
		return errSignatureDoesNotMatch("'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.")
	}
	for name := range header {
		name = strings.ToLower(name)
		if strings.HasPrefix(name, "x-amz-") && !slices.Contains(a.signedHeaders, name) {
			return errSignatureDoesNotMatch(fmt.Sprintf("'%s' must be a 'SignedHeader' in the AWS Authorization.", name))
		}
	}
	return nil
}

// checkScope names everything that is wrong with the scope at once, as AWS does.
func (a *authorization) checkScope(service, region string) *apiError {
	var wrong []string
	if region != "" && a.scope[1] != region {
		wrong = append(wrong, fmt.Sprintf("Credential should be scoped to a valid region, not '%s'.", a.scope[1]))
	}
	if a.scope[2] != service {
		wrong = append(wrong, fmt.Sprintf("Credential should be scoped to correct service: '%s'.", service))
	}
	if a.scope[3] != sigV4Terminator {
		wrong = append(wrong, fmt.Sprintf("Credential should be scoped with a valid terminator: '%s', not '%s'.", sigV4Terminator, a.scope[3]))
	}
	if date := a.time.Format(sigV4Date); a.scope[0] != date {
		wrong = append(wrong, fmt.Sprintf(
			"Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '%s' != '%s', from '%s'.",
			a.scope[0], date, a.time.Format(sigV4Time)))
	}
	if len(wrong) > 0 {
		return errSignatureDoesNotMatch(strings.Join(wrong, " "))
	}
	return nil
}

// canonical is the canonical request.
func (a *authorization) canonical(r signable) string {
	var canonical strings.Builder
	canonical.WriteString(r.Method + "\n" + r.path + "\n" + r.query + "\n")
	for _, name := range a.signedHeaders {
		canonical.WriteString(name + ":" + canonicalValue(r.Request, name) + "\n")
	}
	canonical.WriteString("\n" + strings.Join(a.signedHeaders, ";") + "\n" + r.payload)
	return canonical.String()
}

func (a *authorization) stringToSign(canonical string) string {
	return strings.Join([]string{
		sigV4Algorithm,
		a.time.Format(sigV4Time),
		strings.Join(a.scope[:], "/"),
		hexSHA256([]byte(canonical)),
	}, "\n")
}

// sign computes the signature that the request ought to have.
func (a *authorization) sign(toSign, secret string) string {
	key := []byte("AWS4" + secret)
	for _, part := range a.scope {
		key = hmacSHA256(key, part)
	}
	return hex.EncodeToString(hmacSHA256(key, toSign))
}

// canonicalValue is a header's values joined by commas, runs of spaces made one.
// net/http keeps host and content-length outside of the header map.
func canonicalValue(r *http.Request, name string) string {
	values := r.Header.Values(name)
	switch name {
	case "host":
		values = []string{r.Host}
	case "content-length":
		values = []string{strconv.FormatInt(r.ContentLength, 10)}
	}
	trimmed := make([]string, len(values))
	for i, value := range values {
		trimmed[i] = strings.Join(strings.Fields(value), " ")
	}
	return strings.Join(trimmed, ",")
}

func hmacSHA256(key []byte, message string) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(message))
	return mac.Sum(nil)
}

func hexSHA256(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
