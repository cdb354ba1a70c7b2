package fakests

import (
	"encoding/hex"
	"encoding/xml"
	"net/http"
	"time"
)

const namespace = "https://sts.amazonaws.com/doc/2011-06-15/"

type errorResponse struct {
	XMLName   xml.Name `xml:"ErrorResponse"`
	Namespace string   `xml:"xmlns,attr"`
	Type      string   `xml:"Error>Type"`
	Code      string   `xml:"Error>Code"`
	Message   string   `xml:"Error>Message"`
	RequestID string   `xml:"RequestId"`
}

type assumeRoleResponse struct {
	XMLName   xml.Name     `xml:"AssumeRoleResponse"`
	Namespace string       `xml:"xmlns,attr"`
	Result    assumeResult `xml:"AssumeRoleResult"`
	RequestID string       `xml:"ResponseMetadata>RequestId"`
}

type webIdentityResponse struct {
	XMLName   xml.Name     `xml:"AssumeRoleWithWebIdentityResponse"`
	Namespace string       `xml:"xmlns,attr"`
	Result    assumeResult `xml:"AssumeRoleWithWebIdentityResult"`
	RequestID string       `xml:"ResponseMetadata>RequestId"`
}

type callerIdentityResponse struct {
	XMLName   xml.Name `xml:"GetCallerIdentityResponse"`
	Namespace string   `xml:"xmlns,attr"`
	ARN       string   `xml:"GetCallerIdentityResult>Arn"`
	UserID    string   `xml:"GetCallerIdentityResult>UserId"`
	Account   string   `xml:"GetCallerIdentityResult>Account"`
	RequestID string   `xml:"ResponseMetadata>RequestId"`
}

type assumeResult struct {
	AssumedRoleID string       `xml:"AssumedRoleUser>AssumedRoleId"`
	ARN           string       `xml:"AssumedRoleUser>Arn"`
	Credentials   *credentials `xml:"Credentials"`
	// of a web identity only
	Subject  string `xml:"SubjectFromWebIdentityToken,omitempty"`
	Audience string `xml:"Audience,omitempty"`
	Provider string `xml:"Provider,omitempty"`
}

type credentials struct {
	AccessKeyID     string `xml:"AccessKeyId"`
	SecretAccessKey string `xml:"SecretAccessKey"`
	SessionToken    string `xml:"SessionToken,omitempty"`
	Expiration      string `xml:"Expiration,omitempty"`
}

// precision of Expiration.
func (f *Fake) precision() time.Duration {
	if f.cfg.FractionalSeconds {
		return time.Millisecond
	}
	return time.Second
}

func (f *Fake) assumeResult(i Issued) assumeResult {
	layout := "2006-01-02T15:04:05Z"
	if f.cfg.FractionalSeconds {
		layout = "2006-01-02T15:04:05.000Z"
	}
	return assumeResult{
		AssumedRoleID: uniqueID("AROA", i.RoleARN) + ":" + i.SessionName,
		ARN:           i.ARN(),
		Credentials: &credentials{
			AccessKeyID:     i.AccessKeyID,
			SecretAccessKey: i.SecretAccessKey,
			SessionToken:    i.SessionToken,
			Expiration:      i.Expiration.UTC().Format(layout),
		},
	}
}

// answer is what goes back to the client.
type answer struct {
	status int
	body   []byte
	reset  bool // no answer, the connection is reset
}

func xmlAnswer(status int, document any) answer {
	body, err := xml.MarshalIndent(document, "", "  ")
	if err != nil {
		panic(err) // the documents are the structs above
	}
	return answer{status: status, body: append(body, '\n')}
}

func errorAnswer(e *apiError, requestID string) answer {
	doc := errorResponse{Namespace: e.namespace, Type: e.errorType(), Code: e.code, Message: e.message, RequestID: requestID}
	if doc.Namespace == "" {
		doc.Namespace = namespace
	}
	return xmlAnswer(e.status, doc)
}

func (a answer) write(w http.ResponseWriter, requestID string) {
	if a.reset {
		resetConnection(w)
		return
	}
	w.Header().Set("Content-Type", "text/xml")
	w.Header().Set("X-Amzn-RequestId", requestID)
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body) // the client may be gone
}

// resetConnection drops the connection without an answer: with TCP a reset, not
// an orderly end.
func resetConnection(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler) // not a plain connection: net/http drops it
	}
	if tcp, ok := conn.(interface{ SetLinger(sec int) error }); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}

// newRequestID is a UUID, as AWS sends.
func newRequestID() string {
	b := randomBytes(16)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80 // version 4, variant RFC 9562
	h := hex.EncodeToString(b)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// expiresIn replaces the end of a session, for the fault of that name.
func (i Issued) expiresIn(d time.Duration) Issued {
	i.Expiration = time.Now().Add(d)
	return i
}
