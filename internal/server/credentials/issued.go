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
	// document holds the secrets in clear text. It is unexported so that no encoder
	// sees it.
	document *atomic.Pointer[[]byte]
}

func newIssued(c *sts.Credentials) *Issued {
	return &Issued{Credentials: c, document: &atomic.Pointer[[]byte]{}}
}

// Document is what render makes of the credentials, with the secrets in clear text. It
// is made when it is first asked for and then kept: do not change it, and pass the same
// render every time.
func (i *Issued) Document(render func(*sts.Credentials) []byte) []byte {
	if document := i.document.Load(); document != nil {
		return *document
	}
	document := render(i.Credentials)
	i.document.Store(&document) // of those who come at once, the last one's stays
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
