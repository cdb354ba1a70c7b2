package credentials

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/iam4kube/iam4kube/internal/server/sts"
)

// Issued is the answer that hands credentials out, with what is not secret of them.
type Issued struct {
	AccessKeyID        string
	Expiration, Issued time.Time
	// document holds the secrets in clear text. It is unexported so that no encoder
	// sees it.
	document []byte
}

// Document is the JSON of EC2's metadata service for an instance role, with the
// secrets in clear text. It is made once per refresh; do not change it.
func (i *Issued) Document() []byte { return i.document }

// expirationFormat is the only one that every SDK reads: no fraction, and Z.
const expirationFormat = "2006-01-02T15:04:05Z"

func newIssued(c *sts.Credentials) *Issued {
	// The fields and their order are those of
	// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-metadata-security-credentials.html
	document, err := json.MarshalIndent(struct {
		Code, LastUpdated, Type, AccessKeyId, SecretAccessKey, Token, Expiration string
	}{
		"Success", c.Issued.UTC().Format(expirationFormat), "AWS-HMAC",
		c.AccessKeyID, c.SecretAccessKey.Reveal(), c.SessionToken.Reveal(),
		c.Expiration.UTC().Format(expirationFormat),
	}, "", "  ")
	if err != nil {
		panic(err) // strings always marshal
	}
	// Cloned because MarshalIndent returns a slice with room for as much again.
	return &Issued{AccessKeyID: c.AccessKeyID, Expiration: c.Expiration, Issued: c.Issued, document: bytes.Clone(document)}
}

// valid reports whether the credentials can be handed out; nil cannot.
func (i *Issued) valid(now time.Time) bool {
	return i != nil && i.Expiration.After(now)
}

// String shows neither the secrets nor the document.
func (i Issued) String() string {
	return fmt.Sprintf("%s, valid until %s", i.AccessKeyID, i.Expiration.Format(time.RFC3339))
}

// Format is String for every verb of fmt: some would show the document.
func (i Issued) Format(state fmt.State, _ rune) { _, _ = io.WriteString(state, i.String()) }
