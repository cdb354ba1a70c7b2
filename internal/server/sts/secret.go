package sts

import (
	"fmt"
	"io"
)

// Secret is a string that no log, dump or error shows: every way to format or
// marshal it gives a fixed text. Reveal is the only way to its content.
type Secret string

const redacted = "REDACTED"

// Reveal returns the content.
func (s Secret) Reveal() string { return string(s) }

// String implements fmt.Stringer, for those who call it themselves.
func (Secret) String() string { return redacted }

// Format keeps every verb of fmt away from the content. Without it, a verb that does
// not fit a string, such as %d, shows it.
func (Secret) Format(state fmt.State, _ rune) { _, _ = io.WriteString(state, redacted) }

// MarshalText keeps the encoders of JSON, YAML and XML away from the content.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
