package role

import (
	"fmt"
	"strings"
)

// AnnotationAllowed of a namespace says which roles its ServiceAccounts may have.
const AnnotationAllowed = "iam.amazonaws.com/allowedRoles"

// maxAllowed is how long the annotation may be: all of it is kept, for every namespace.
const maxAllowed = 16 << 10

// Allowed is a namespace's list of patterns of role ARNs. Each * in the last part of an ARN
// matches any run of characters; in the parts before, which say whose role it is, it stands
// for a whole part or not at all. The zero value allows no role.
type Allowed struct {
	patterns [][]string
	// wrong is the first word that is no pattern, cut; it matches nothing.
	wrong string
}

// arnParts are arn, partition, service, region, account and resource.
const arnParts = 6

// ParseAllowed reads the annotation: patterns with commas or white space between. What is no
// pattern matches nothing, and Wrong tells of it.
func ParseAllowed(annotation string) *Allowed {
	a := &Allowed{}
	if len(annotation) > maxAllowed {
		a.wrong = fmt.Sprintf("the annotation is over %d bytes", maxAllowed)
		return a
	}
	separator := func(r rune) bool { return r == ',' || r == ' ' || r == '\t' || r == '\n' || r == '\r' }
	for _, word := range strings.FieldsFunc(strings.Clone(annotation), separator) {
		parts := strings.SplitN(word, ":", arnParts)
		switch {
		case word == "*":
			a.patterns = append(a.patterns, nil)
		case isPattern(parts):
			a.patterns = append(a.patterns, parts)
		case a.wrong == "":
			a.wrong = fmt.Sprintf("%.128q is not the ARN of a role, with or without *", word)
		}
	}
	return a
}

func isPattern(parts []string) bool {
	if len(parts) != arnParts || parts[0] != "arn" || parts[5] == "" {
		return false
	}
	for _, part := range parts[1:5] {
		if strings.Contains(part, "*") && part != "*" {
			return false
		}
	}
	return true
}

// Allows reports whether one of the patterns matches the ARN of a role.
func (a *Allowed) Allows(arn string) bool {
	parts := strings.SplitN(arn, ":", arnParts)
	for _, pattern := range a.patterns {
		if pattern == nil || matches(pattern, parts) {
			return true
		}
	}
	return false
}

// Wrong is what of the annotation is no pattern, empty if all of it is.
func (a *Allowed) Wrong() string { return a.wrong }

func matches(pattern, parts []string) bool {
	for i, part := range parts {
		if i == arnParts-1 {
			return glob(pattern[i], part)
		}
		if pattern[i] != part && pattern[i] != "*" {
			return false
		}
	}
	return false
}

// glob matches text with a pattern in which * stands for any run of characters.
func glob(pattern, text string) bool {
	pieces := strings.Split(pattern, "*")
	last := len(pieces) - 1
	if last == 0 {
		return pattern == text
	}
	if !strings.HasPrefix(text, pieces[0]) {
		return false
	}
	text = text[len(pieces[0]):]
	for _, piece := range pieces[1:last] {
		_, after, found := strings.Cut(text, piece)
		if !found {
			return false
		}
		text = after
	}
	return len(text) >= len(pieces[last]) && strings.HasSuffix(text, pieces[last])
}
