package sts

// Secret is a string that no log, dump or error shows: every way to format or
// marshal it gives a fixed text. Reveal is the only way to its content.
type Secret string

const redacted = "REDACTED"

// Reveal returns the content.
func (s Secret) Reveal() string { return string(s) }

// String keeps fmt's %v, %s, %q and %x away from the content.
func (Secret) String() string { return redacted }

// GoString keeps fmt's %#v away from the content.
func (Secret) GoString() string { return redacted }

// MarshalText keeps the encoders of JSON, YAML and XML away from the content.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
