// Package finding is what the plugin says of one thing that it has looked at: how it is, what
// it is called when it is broken, and what to do. It owns the names and remedies of what
// only somebody outside of the server can see; those of the server's own pieces are of
// package diagnosis. It does not look at anything itself.
package finding

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/iam4kube/iam4kube/internal/server/diagnosis"
)

// State is how something is.
type State string

const (
	// OK was seen.
	OK State = "ok"
	// Warning works, and may surprise.
	Warning State = "warning"
	// Broken keeps pods from their credentials.
	Broken State = "broken"
	// Unseen could not be looked at: it may be well or not.
	Unseen State = "cannot-see"
	// Skipped was not looked at, because something before it is broken.
	Skipped State = "skipped"
)

// Finding is one line of the plugin's answer.
type Finding struct {
	// Link is what was looked at, in the order of a request or of the set-up.
	Link  string `json:"link"`
	State State  `json:"state"`
	// Piece is what is broken: a piece or refusal of package diagnosis, or one of Pieces.
	Piece  string `json:"piece,omitempty"`
	Text   string `json:"text,omitempty"`
	Remedy string `json:"remedy,omitempty"`
	Docs   string `json:"docs,omitempty"`
}

// docs is where links lead.
const docs = "https://github.com/iam4kube/iam4kube/blob/main/docs/"

// Good says that all is well.
func Good(format string, values ...any) Finding {
	return Finding{State: OK, Text: fmt.Sprintf(format, values...)}
}

// Hidden says what could not be seen and why.
func Hidden(format string, values ...any) Finding {
	return Finding{State: Unseen, Text: fmt.Sprintf(format, values...)}
}

// Is says that the piece is broken.
func (p Piece) Is(format string, values ...any) Finding {
	return Finding{State: Broken, Piece: p.Name, Text: fmt.Sprintf(format, values...), Remedy: p.Remedy, Docs: docs + p.docs}
}

// May says that the piece may surprise.
func (p Piece) May(format string, values ...any) Finding {
	f := p.Is(format, values...)
	f.State = Warning
	return f
}

// Of is what the server would tell. Its text holds the remedy.
func Of(d diagnosis.Diagnosis) Finding {
	name := string(d.Missing)
	if name == "" {
		name = string(d.Refusal)
	}
	return Finding{State: Broken, Piece: name, Text: d.Text, Docs: docs + "troubleshooting.md#answers-and-events"}
}

// Told is what the server has told in an event, in its words. One of another version may have
// reasons of which it is not known here whether they are good.
func Told(reason, text string) Finding {
	piece, known := reasonPieces[diagnosis.Reason(reason)]
	if !known {
		return Hidden("what the servers' event %s means, use the plugin of their version: %s", reason, text)
	}
	return Finding{State: Broken, Piece: piece, Text: text, Docs: docs + "troubleshooting.md#answers-and-events"}
}

// reasonPieces are what the reasons of events are about.
var reasonPieces = map[diagnosis.Reason]string{
	diagnosis.AnnotationInvalid:      string(diagnosis.BadAnnotation),
	diagnosis.RoleMissing:            string(diagnosis.RoleAnnotation),
	diagnosis.RoleDenied:             string(diagnosis.Denied),
	diagnosis.CredentialsUnavailable: string(diagnosis.Credentials),
	diagnosis.AccountMissing:         string(diagnosis.ServiceAccount),
	diagnosis.AddressAmbiguous:       string(diagnosis.SinglePod),
	diagnosis.TokenMissing:           string(diagnosis.TokenRequired),
	diagnosis.RoleNotAllowed:         string(diagnosis.NotAllowed),
	diagnosis.HostNetwork:            string(diagnosis.NodeAddress),
	diagnosis.IssuerUnpublished:      Unpublished.Name, // on the server's own pods
}

// Worst is the state of them all: Broken before Unseen before Warning before OK.
func Worst(findings []Finding) State {
	worst := OK
	for _, f := range findings {
		switch {
		case f.State == Broken:
			return Broken
		case f.State == Unseen, f.State == Warning && worst == OK:
			worst = f.State
		}
	}
	return worst
}

// marks begin a line.
var marks = map[State]struct{ mark, color string }{
	OK: {"✓", "32"}, Warning: {"‼", "33"}, Broken: {"×", "31"}, Unseen: {"?", "36"}, Skipped: {"·", "2"},
}

// Printer writes findings for people.
type Printer struct {
	Out   io.Writer
	Color bool
}

// Print writes one finding, with remedy and link if it is not well.
func (p Printer) Print(f Finding) {
	m := marks[f.State]
	mark, text := m.mark, f.Text
	if p.Color {
		mark = "\x1b[" + m.color + "m" + mark + "\x1b[0m"
	}
	if f.State == Unseen {
		text = "cannot see: " + text
	}
	_, _ = fmt.Fprintf(p.Out, "%s %s: %s\n", mark, f.Link, text)
	if f.State != Broken && f.State != Warning {
		return
	}
	for _, line := range []string{f.Remedy, f.Docs} {
		if line != "" {
			_, _ = fmt.Fprintf(p.Out, "    %s\n", line)
		}
	}
}

// JSON writes a value as `-o json` shows it.
func JSON(out io.Writer, value any) error {
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(value)
}

// List joins names, the first few of many.
func List(names []string) string {
	const most = 5
	if len(names) > most {
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", len(names)-most)
	}
	return strings.Join(names, ", ")
}
