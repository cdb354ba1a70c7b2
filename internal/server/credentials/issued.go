package credentials

import (
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/iam4kube/iam4kube/internal/server/sts"
)

// Issued is the credentials that are handed out until the next refresh.
type Issued struct {
	*sts.Credentials
	// documents hold the secrets in clear text. They are unexported so that no encoder
	// sees them.
	documents *[forms]atomic.Pointer[[]byte]
}

// Form is a protocol's form of a document.
type Form int

// Forms.
const (
	// FormMetadata is that of EC2's metadata service, FormContainer that of the container
	// credentials protocol.
	FormMetadata Form = iota
	FormContainer
	forms
)

func newIssued(c *sts.Credentials) *Issued {
	return &Issued{Credentials: c, documents: &[forms]atomic.Pointer[[]byte]{}}
}

// Document is what render makes of the credentials, with the secrets in clear text. It
// is made when it is first asked for and then kept: do not change it, and pass the same
// render for a form every time.
func (i *Issued) Document(form Form, render func(*sts.Credentials) []byte) []byte {
	if document := i.documents[form].Load(); document != nil {
		return *document
	}
	document := render(i.Credentials)
	i.documents[form].Store(&document) // of those who come at once, the last one's stays
	return document
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
