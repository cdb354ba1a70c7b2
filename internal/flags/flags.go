// Package flags parses command lines the way all programs of iam4kube do: one or
// two dashes, and for whatever is wrong one line that names the flag and says what
// it accepts. It does not know what the flags mean.
package flags

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Set is the flags of a program.
type Set struct {
	flags *flag.FlagSet
	only  []only
}

// only is flags that mean something with one value of another flag.
type only struct {
	names       []string
	flag, value string
}

// New returns an empty Set.
func New(program string) *Set {
	fs := flag.NewFlagSet(program, flag.ContinueOnError)
	fs.SetOutput(io.Discard) // Parse's error is the only line
	return &Set{flags: fs}
}

// ErrHelp is returned by Parse when help was asked for and printed.
var ErrHelp = flag.ErrHelp

// Parse reads the arguments, or prints all flags with their defaults to help.
func (s *Set) Parse(arguments []string, help io.Writer) error {
	err := s.flags.Parse(arguments)
	switch {
	case errors.Is(err, flag.ErrHelp):
		s.print(help)
		return ErrHelp
	case err != nil:
		return s.explain(err)
	case s.flags.NArg() > 0:
		return fmt.Errorf("unexpected argument %q, only flags are accepted (a switch is set as in --name=false)", s.flags.Arg(0))
	}
	return s.contradiction()
}

// Only makes Parse refuse these flags unless another flag has this value.
func (s *Set) Only(flag, value string, names ...string) {
	s.only = append(s.only, only{names, flag, value})
}

func (s *Set) contradiction() error {
	for _, o := range s.only {
		value := s.flags.Lookup(o.flag).Value.String()
		if value == o.value {
			continue
		}
		for _, name := range o.names {
			if s.Given(name) {
				return fmt.Errorf("--%s means nothing with --%s %s", name, o.flag, value)
			}
		}
	}
	return nil
}

// Given says whether the command line had the flag.
func (s *Set) Given(name string) bool {
	given := false
	s.flags.Visit(func(f *flag.Flag) { given = given || f.Name == name })
	return given
}

// explain adds what is accepted to the errors of package flag that do not come from
// a value.
func (s *Set) explain(err error) error {
	text := err.Error()
	if name, ok := strings.CutPrefix(text, "flag provided but not defined: "); ok {
		return fmt.Errorf("unknown flag %s, accepted are %s", name, strings.Join(s.names(), ", "))
	}
	if name, ok := strings.CutPrefix(text, "flag needs an argument: -"); ok {
		return fmt.Errorf("flag --%s needs a value: %s", name, s.flags.Lookup(name).Usage)
	}
	if what, ok := strings.CutPrefix(text, "bad flag syntax: "); ok {
		return fmt.Errorf("bad flag syntax %q, accepted are --NAME VALUE and --NAME=VALUE", what)
	}
	return err
}

func (s *Set) names() []string {
	var names []string
	s.flags.VisitAll(func(f *flag.Flag) { names = append(names, "--"+f.Name) })
	return names
}

func (s *Set) print(w io.Writer) {
	_, _ = fmt.Fprintf(w, "Flags of %s, with their defaults:\n", s.flags.Name())
	s.flags.VisitAll(func(f *flag.Flag) {
		_, _ = fmt.Fprintf(w, "  --%s %s\n        %s\n", f.Name, strconv.Quote(f.DefValue), f.Usage)
	})
}

// value is a flag whose parse function says in its error what it accepts.
type value[T any] struct {
	target *T
	parse  func(string) (T, error)
	text   string
	isBool bool
}

// Set implements flag.Value.
func (v *value[T]) Set(text string) error {
	parsed, err := v.parse(text)
	if err != nil {
		return err
	}
	*v.target, v.text = parsed, text
	return nil
}

// String implements flag.Value.
func (v *value[T]) String() string { return v.text }

// IsBoolFlag lets a bare --name mean true.
func (v *value[T]) IsBoolFlag() bool { return v.isBool }

func add[T any](s *Set, v *value[T], name, initial, usage string) {
	if err := v.Set(initial); err != nil {
		panic(fmt.Sprintf("default of --%s: %v", name, err))
	}
	s.flags.Var(v, name, usage)
}

// list is a flag that may be repeated, and whose value may be several, separated by
// commas. The first one takes the place of the default.
type list[T any] struct {
	value[[]T]
	given bool
}

// Set implements flag.Value.
func (l *list[T]) Set(text string) error {
	parsed, err := l.parse(text)
	if err != nil {
		return err
	}
	if l.given {
		parsed, text = append(*l.target, parsed...), l.text+","+text
	}
	*l.target, l.text, l.given = parsed, text, true
	return nil
}

func addList[T any](s *Set, target *[]T, name, initial, want string, parse func(string) (T, error), usage string) {
	l := &list[T]{value: value[[]T]{target: target, parse: func(text string) ([]T, error) {
		var all []T
		for word := range strings.SplitSeq(text, ",") {
			if word == "" {
				continue
			}
			one, err := parse(word)
			if err != nil {
				return nil, errors.New(want)
			}
			all = append(all, one)
		}
		return all, nil
	}}}
	if err := l.Set(initial); err != nil {
		panic(fmt.Sprintf("default of --%s: %v", name, err))
	}
	l.given = false
	s.flags.Var(l, name, usage)
}

// Port adds a flag that accepts the number of a TCP port.
func (s *Set) Port(target *uint16, name, initial, usage string) {
	add(s, &value[uint16]{target: target, parse: func(text string) (uint16, error) {
		n, err := strconv.ParseUint(text, 10, 16)
		if err != nil || n == 0 {
			return 0, wantNumber(1, math.MaxUint16)
		}
		return uint16(n), nil
	}}, name, initial, usage)
}

// IPs adds a flag that accepts IP addresses, and may be repeated.
func (s *Set) IPs(target *[]netip.Addr, name, initial, usage string) {
	addList(s, target, name, initial, "want an IP address, such as 169.254.169.254 or fd00:ec2::254", func(text string) (netip.Addr, error) {
		ip, err := netip.ParseAddr(text)
		if err == nil && (ip.Zone() != "" || ip.Is4In6() || ip.IsUnspecified()) {
			err = errors.ErrUnsupported
		}
		return ip, err
	}, usage)
}

// AddrPorts adds a flag that accepts IP addresses with a port, and may be repeated.
func (s *Set) AddrPorts(target *[]netip.AddrPort, name, initial, usage string) {
	addList(s, target, name, initial, "want IP:PORT, such as 10.96.0.7:80 or [fd00::7]:80", func(text string) (netip.AddrPort, error) {
		to, err := netip.ParseAddrPort(text)
		if err == nil && (to.Port() == 0 || to.Addr().Zone() != "" || to.Addr().Is4In6() || to.Addr().IsUnspecified()) {
			err = errors.ErrUnsupported
		}
		return to, err
	}, usage)
}

// Strings adds a flag that accepts any text, and may be repeated.
func (s *Set) Strings(target *[]string, name, usage string) {
	addList(s, target, name, "", "", func(text string) (string, error) { return text, nil }, usage)
}

// String adds a flag that accepts any text.
func (s *Set) String(target *string, name, initial, usage string) {
	add(s, &value[string]{target: target, parse: func(text string) (string, error) { return text, nil }}, name, initial, usage)
}

// Choice adds a flag that accepts one of the choices.
func (s *Set) Choice(target *string, name, initial string, choices []string, usage string) {
	accepted := strings.Join(choices, ", ")
	add(s, &value[string]{target: target, parse: func(text string) (string, error) {
		if !slices.Contains(choices, text) {
			return "", errors.New("want one of " + accepted)
		}
		return text, nil
	}}, name, initial, usage+": "+accepted)
}

// File adds a flag that accepts the path of a file that can be read, or nothing.
func (s *Set) File(target *string, name, usage string) {
	add(s, &value[string]{target: target, parse: func(text string) (string, error) {
		if text == "" {
			return "", nil
		}
		f, err := os.Open(text)
		if err != nil {
			return "", fmt.Errorf("want a readable file: %w", err)
		}
		defer func() { _ = f.Close() }()
		if info, err := f.Stat(); err != nil || info.IsDir() {
			return "", errors.New("want a readable file, not a directory")
		}
		return text, nil
	}}, name, "", usage)
}

// Address adds a flag that accepts what a TCP listener can listen on.
func (s *Set) Address(target *string, name, initial, usage string) {
	add(s, &value[string]{target: target, parse: func(text string) (string, error) {
		host, port, err := net.SplitHostPort(text)
		if number, portErr := strconv.ParseUint(port, 10, 16); err != nil || portErr != nil || number > math.MaxUint16 ||
			host != "" && net.ParseIP(host) == nil {
			return "", errors.New("want [IP]:PORT, such as :8080 or 127.0.0.1:8080")
		}
		return text, nil
	}}, name, initial, usage)
}

// Duration adds a flag that accepts a duration from least to most.
func (s *Set) Duration(target *time.Duration, name, initial string, least, most time.Duration, usage string) {
	add(s, &value[time.Duration]{target: target, parse: func(text string) (time.Duration, error) {
		d, err := time.ParseDuration(text)
		if err != nil || d < least || d > most {
			return 0, fmt.Errorf("want a duration from %v to %v, such as 15s or 1h", least, most)
		}
		return d, nil
	}}, name, initial, usage)
}

// Int adds a flag that accepts a whole number from least to most.
func (s *Set) Int(target *int, name, initial string, least, most int, usage string) {
	add(s, &value[int]{target: target, parse: func(text string) (int, error) {
		n, err := strconv.Atoi(text)
		if err != nil || n < least || n > most {
			return 0, wantNumber(least, most)
		}
		return n, nil
	}}, name, initial, usage)
}

func wantNumber(least, most int) error {
	return fmt.Errorf("want a whole number from %d to %d", least, most)
}

// Float adds a flag that accepts a number from least to most.
func (s *Set) Float(target *float64, name, initial string, least, most float64, usage string) {
	add(s, &value[float64]{target: target, parse: func(text string) (float64, error) {
		n, err := strconv.ParseFloat(text, 64)
		if err != nil || !(n >= least && n <= most) { // not n < least: NaN is neither
			return 0, fmt.Errorf("want a number from %v to %v", least, most)
		}
		return n, nil
	}}, name, initial, usage)
}

// Bool adds a switch.
func (s *Set) Bool(target *bool, name, initial, usage string) {
	add(s, &value[bool]{target: target, isBool: true, parse: func(text string) (bool, error) {
		b, err := strconv.ParseBool(text)
		if err != nil {
			return false, errors.New("want true or false")
		}
		return b, nil
	}}, name, initial, usage)
}
