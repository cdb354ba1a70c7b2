package fakests

import (
	"bytes"
	"cmp"
	"encoding/json"
	"encoding/xml"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// S3 is as much of Amazon S3 as tells a client whose credentials it has: it
// verifies signatures against the keys of a [Fake] and answers with what it
// found. Its buckets are addressed by path, exist as soon as they are named, and
// hold two objects, [S3Key] of whoever asks and [S3File]. Nothing can be written.
//
// It answers for every region, because a client that has to be told an endpoint
// is often not told a region. Presigned requests, chunked signatures and
// Signature Version 2 are refused.
type S3 struct {
	fake *Fake

	// OnAnswer, if set before the first request, is called after each answer.
	OnAnswer func(S3Request)

	mu       sync.Mutex
	requests []S3Request
}

// S3Request is one request and whose it was.
type S3Request struct {
	Time        time.Time `json:"time"`
	Method      string    `json:"method"`
	URI         string    `json:"uri"`
	Client      string    `json:"client"`      // User-Agent
	AccessKeyID string    `json:"accessKeyID"` // empty: refused
	ARN         string    `json:"arn"`         // of the role session or user
	Status      int       `json:"status"`
	Code        string    `json:"code"` // of an error
}

// S3Requests is the path at which anybody may read the requests so far, as JSON.
// No bucket can have such a name.
const S3Requests = "/-/requests"

// S3File is the name of an object with the caller's [S3Key] and ARN in a form that
// also programs for maps and tables read.
const S3File = "caller.csv"

// S3Key is the name of the object that the caller finds in every bucket.
func S3Key(accessKeyID string) string { return "caller-" + accessKeyID }

// S3 returns an S3 that knows the keys of this service.
func (f *Fake) S3() *S3 { return &S3{fake: f} }

// Requests returns the requests so far.
func (s *S3) Requests() []S3Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

var _ http.Handler = (*S3)(nil)

func (s *S3) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == S3Requests {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(s.Requests()) // the client may be gone
		return
	}
	seen := S3Request{Time: time.Now(), Method: r.Method, URI: r.RequestURI, Client: r.UserAgent()}
	caller, refused := s.authenticate(w, r)
	if refused == nil {
		seen.AccessKeyID, seen.ARN = caller.accessKeyID, caller.arn
		w.Header().Set("X-Fake-Caller", caller.accessKeyID+" "+caller.arn)
		refused = answerS3(w, r, caller)
	}
	seen.Status = http.StatusOK
	if refused != nil {
		seen.Status, seen.Code = refused.status, refused.code
		writeXML(w, refused.status, s3Error{Code: refused.code, Message: refused.message, Resource: r.URL.Path})
	}
	s.mu.Lock()
	s.requests = append(s.requests, seen)
	s.mu.Unlock()
	if s.OnAnswer != nil {
		s.OnAnswer(seen)
	}
}

func (s *S3) authenticate(w http.ResponseWriter, r *http.Request) (identity, *apiError) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return identity{}, &apiError{status: http.StatusBadRequest, code: "IncompleteBody", message: err.Error()}
	}
	signed := signable{Request: r, service: "s3", path: uriEncode(r.URL.Path, "/"), payload: r.Header.Get("X-Amz-Content-Sha256")}
	if signed.query, err = canonicalQuery(r.URL.RawQuery); err != nil {
		return identity{}, &apiError{status: http.StatusBadRequest, code: "InvalidURI", message: err.Error()}
	}
	caller, refused := s.fake.authenticate(signed, time.Now())
	switch {
	case refused == errMissingAuthenticationToken:
		return identity{}, &apiError{status: http.StatusForbidden, code: "AccessDenied", message: "Access Denied"}
	case refused == errInvalidClientTokenID:
		return identity{}, &apiError{
			status: http.StatusForbidden, code: "InvalidAccessKeyId",
			message: "The AWS Access Key Id you provided does not exist in our records.",
		}
	case refused != nil:
		return identity{}, refused
	case signed.payload != "UNSIGNED-PAYLOAD" && signed.payload != hexSHA256(body):
		return identity{}, &apiError{
			status: http.StatusBadRequest, code: "XAmzContentSHA256Mismatch",
			message: "The provided 'x-amz-content-sha256' header does not match what was computed.",
		}
	}
	return caller, nil
}

func answerS3(w http.ResponseWriter, r *http.Request, caller identity) *apiError {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return &apiError{
			status: http.StatusNotImplemented, code: "NotImplemented",
			message: "A header you provided implies functionality that is not implemented",
		}
	}
	bucket, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	query := r.URL.Query()
	mine := S3Key(caller.accessKeyID)
	content := "caller,arn\n" + mine + "," + caller.arn + "\n"
	switch {
	case bucket == "":
		writeXML(w, http.StatusOK, s3Buckets{OwnerID: caller.account(), Names: []string{strings.ToLower(mine)}})
	case key == "" && query.Has("location"):
		writeXML(w, http.StatusOK, s3Location{})
	case key == "" && query.Has("uploads"):
		writeXML(w, http.StatusOK, s3Uploads{Bucket: bucket, Key: mine, UploadID: "1", Initiated: s3Time, Class: "STANDARD"})
	case key == "":
		list := s3List{Name: bucket, Prefix: query.Get("prefix"), Delimiter: query.Get("delimiter"), MaxKeys: 1000}
		for _, name := range []string{mine, S3File} {
			if strings.HasPrefix(name, list.Prefix) {
				list.Objects = append(list.Objects, s3Object{
					Key: name, LastModified: s3Time, ETag: `"0"`, Size: len(content), Class: "STANDARD",
				})
			}
		}
		list.KeyCount = len(list.Objects)
		writeXML(w, http.StatusOK, list)
	case key == mine || key == S3File:
		w.Header().Set("ETag", `"0"`)
		http.ServeContent(w, r, key, time.Unix(0, 0), bytes.NewReader([]byte(content)))
	default:
		return &apiError{status: http.StatusNotFound, code: "NoSuchKey", message: "The specified key does not exist."}
	}
	return nil
}

// canonicalQuery sorts the parameters by name and encodes them anew.
func canonicalQuery(raw string) (string, error) {
	var parameters [][2]string
	for parameter := range strings.SplitSeq(raw, "&") {
		if parameter == "" {
			continue
		}
		name, value, _ := strings.Cut(parameter, "=")
		name, err := url.QueryUnescape(name)
		if err != nil {
			return "", err
		}
		if value, err = url.QueryUnescape(value); err != nil {
			return "", err
		}
		parameters = append(parameters, [2]string{uriEncode(name, ""), uriEncode(value, "")})
	}
	slices.SortFunc(parameters, func(a, b [2]string) int {
		return cmp.Or(strings.Compare(a[0], b[0]), strings.Compare(a[1], b[1]))
	})
	encoded := make([]string, len(parameters))
	for i, p := range parameters {
		encoded[i] = p[0] + "=" + p[1]
	}
	return strings.Join(encoded, "&"), nil
}

// uriEncode encodes each byte but those that RFC 3986 calls unreserved, and those to keep.
func uriEncode(s, keep string) string {
	const unreserved = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
	const hexDigits = "0123456789ABCDEF"
	var encoded strings.Builder
	for i := range len(s) {
		if strings.IndexByte(unreserved+keep, s[i]) >= 0 {
			encoded.WriteByte(s[i])
			continue
		}
		encoded.WriteString("%" + hexDigits[s[i]>>4:s[i]>>4+1] + hexDigits[s[i]&15:s[i]&15+1])
	}
	return encoded.String()
}

// s3Time is when everything here was last changed.
const s3Time = "2026-01-02T15:04:05.000Z"

type s3Error struct {
	XMLName  xml.Name `xml:"Error"`
	Code     string
	Message  string
	Resource string
}

type s3Buckets struct {
	XMLName xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ ListAllMyBucketsResult"`
	OwnerID string   `xml:"Owner>ID"`
	Names   []string `xml:"Buckets>Bucket>Name"`
}

// s3Location is empty for us-east-1.
type s3Location struct {
	XMLName xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ LocationConstraint"`
}

type s3Uploads struct {
	XMLName     xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ ListMultipartUploadsResult"`
	Bucket      string
	IsTruncated bool
	Key         string `xml:"Upload>Key"`
	UploadID    string `xml:"Upload>UploadId"`
	Class       string `xml:"Upload>StorageClass"`
	Initiated   string `xml:"Upload>Initiated"`
}

type s3List struct {
	XMLName     xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ ListBucketResult"`
	Name        string
	Prefix      string
	Delimiter   string `xml:",omitempty"`
	MaxKeys     int
	KeyCount    int
	IsTruncated bool
	Objects     []s3Object `xml:"Contents"`
}

type s3Object struct {
	Key          string
	LastModified string
	ETag         string
	Size         int
	Class        string `xml:"StorageClass"`
}

func writeXML(w http.ResponseWriter, status int, document any) {
	body := xmlAnswer(status, document).body
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	_, _ = w.Write(append([]byte(xml.Header), body...)) // the client may be gone
}
