package flags

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// program has one flag of each kind.
type program struct {
	set                       *Set
	text, choice, file, where string
	duration                  time.Duration
	number                    int
	rate                      float64
	on, off                   bool
	port                      uint16
	ips                       []netip.Addr
	to                        []netip.AddrPort
}

func newProgram() *program {
	p := &program{set: New("program")}
	p.set.String(&p.text, "text", "initial", "any text")
	p.set.Choice(&p.choice, "choice", "a", []string{"a", "b"}, "one of two")
	p.set.File(&p.file, "file", "a file")
	p.set.Address(&p.where, "where", ":8080", "an address")
	p.set.Duration(&p.duration, "duration", "15s", time.Second, time.Hour, "a time")
	p.set.Int(&p.number, "number", "20", 1, 100, "a number")
	p.set.Float(&p.rate, "rate", "10", 0.5, 1000, "a rate")
	p.set.Bool(&p.on, "on", "true", "a switch")
	p.set.Bool(&p.off, "off", "false", "a switch")
	p.set.Port(&p.port, "port", "80", "a port")
	p.set.IPs(&p.ips, "ip", "192.0.2.1,2001:db8::1", "addresses")
	p.set.AddrPorts(&p.to, "to", "", "addresses with a port")
	return p
}

func (p *program) parse(arguments ...string) error {
	return p.set.Parse(arguments, &bytes.Buffer{})
}

func TestDefaults(t *testing.T) {
	p := newProgram()
	if err := p.parse(); err != nil {
		t.Fatal(err)
	}
	got := *p
	got.set = nil
	want := program{
		text: "initial", choice: "a", where: ":8080", duration: 15 * time.Second, number: 20, rate: 10, on: true, port: 80,
		ips: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// One dash or two, the value behind = or as the next argument.
func TestAccepted(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		value string
		check func(*program) bool
	}{
		{"text", "", func(p *program) bool { return p.text == "" }},
		{"text", "a = -b\n", func(p *program) bool { return p.text == "a = -b\n" }},
		{"choice", "b", func(p *program) bool { return p.choice == "b" }},
		{"file", file, func(p *program) bool { return p.file == file }},
		{"file", "", func(p *program) bool { return p.file == "" }},
		{"where", "127.0.0.1:0", func(p *program) bool { return p.where == "127.0.0.1:0" }},
		{"where", "[::1]:65535", func(p *program) bool { return p.where == "[::1]:65535" }},
		{"duration", "1s", func(p *program) bool { return p.duration == time.Second }},
		{"duration", "1h", func(p *program) bool { return p.duration == time.Hour }},
		{"duration", "1m30s", func(p *program) bool { return p.duration == 90*time.Second }},
		{"number", "1", func(p *program) bool { return p.number == 1 }},
		{"number", "100", func(p *program) bool { return p.number == 100 }},
		{"rate", "0.5", func(p *program) bool { return p.rate == 0.5 }},
		{"rate", "1e3", func(p *program) bool { return p.rate == 1000 }},
		{"port", "1", func(p *program) bool { return p.port == 1 }},
		{"port", "65535", func(p *program) bool { return p.port == 65535 }},
		{"ip", "169.254.169.254", func(p *program) bool { return fmt.Sprint(p.ips) == "[169.254.169.254]" }},
		{"ip", "fd00:EC2:0::254,10.0.0.1", func(p *program) bool { return fmt.Sprint(p.ips) == "[fd00:ec2::254 10.0.0.1]" }},
		{"ip", "", func(p *program) bool { return len(p.ips) == 0 }},
		{"ip", ",10.0.0.1,", func(p *program) bool { return fmt.Sprint(p.ips) == "[10.0.0.1]" }},
		{"to", "10.96.0.7:80", func(p *program) bool { return fmt.Sprint(p.to) == "[10.96.0.7:80]" }},
		{"to", "[fd00::7]:65535,10.96.0.7:1", func(p *program) bool { return fmt.Sprint(p.to) == "[[fd00::7]:65535 10.96.0.7:1]" }},
	} {
		for _, arguments := range [][]string{
			{"-" + tc.name, tc.value}, {"--" + tc.name, tc.value}, {"-" + tc.name + "=" + tc.value}, {"--" + tc.name + "=" + tc.value},
		} {
			p := newProgram()
			if err := p.parse(arguments...); err != nil || !tc.check(p) {
				t.Errorf("%q: %v, %+v", arguments, err, p)
			}
		}
	}
	for _, argument := range []string{"-off", "--off", "-off=true", "--off=1", "--off=T"} {
		if p := newProgram(); p.parse(argument) != nil || !p.off {
			t.Errorf("%q does not switch on", argument)
		}
	}
	for _, argument := range []string{"-on=false", "--on=0"} {
		if p := newProgram(); p.parse(argument) != nil || p.on {
			t.Errorf("%q does not switch off", argument)
		}
	}
}

// The first one takes the place of the default, the others are added.
func TestListsMayBeRepeated(t *testing.T) {
	p := newProgram()
	if err := p.parse("--ip", "10.0.0.1", "--to=10.96.0.7:80", "-ip=10.0.0.2,10.0.0.3", "--ip", "10.0.0.1", "-to", "[fd00::7]:80"); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(p.ips, p.to); got != "[10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.1] [10.96.0.7:80 [fd00::7]:80]" {
		t.Errorf("got %s", got)
	}
}

// Given is about the command line, not about the value.
func TestGiven(t *testing.T) {
	p := newProgram()
	if err := p.parse("--number", "20", "-ip=", "--off=false"); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"number": true, "ip": true, "off": true, "to": false, "on": false, "text": false, "unknown": false} {
		if got := p.set.Given(name); got != want {
			t.Errorf("%s: got %t", name, got)
		}
	}
}

// A flag of another mode is a mistake of whoever gave it, whatever its value.
func TestOnly(t *testing.T) {
	for _, tc := range []struct {
		arguments []string
		want      string
	}{
		{[]string{"--number=7"}, ""},
		{[]string{"--choice=b", "--text=x"}, ""},
		{[]string{"--choice=b"}, ""},
		{[]string{"--text=x"}, "--text means nothing with --choice a"},
		{[]string{"--text=initial", "--choice=a"}, "--text means nothing with --choice a"},
		{[]string{"--choice=b", "--number=20"}, "--number means nothing with --choice b"},
	} {
		p := newProgram()
		p.set.Only("choice", "a", "number", "rate")
		p.set.Only("choice", "b", "text")
		if err := p.parse(tc.arguments...); fmt.Sprint(err) != tc.want && (err != nil || tc.want != "") {
			t.Errorf("%q: got %v, want %s", tc.arguments, err, tc.want)
		}
	}
}

// What is wrong names the flag and says what it accepts.
func TestRefused(t *testing.T) {
	for _, tc := range []struct {
		arguments []string
		want      []string
	}{
		{[]string{"--choice=c"}, []string{"choice", `"c"`, "a, b"}},
		{[]string{"--choice", ""}, []string{"choice", "a, b"}},
		{[]string{"--choice=A"}, []string{"choice", "a, b"}},
		{[]string{"--file=/does/not/exist"}, []string{"file", "readable file"}},
		{[]string{"--file=" + t.TempDir()}, []string{"file", "readable file"}},
		{[]string{"--where=8080"}, []string{"where", "[IP]:PORT"}},
		{[]string{"--where="}, []string{"where", "[IP]:PORT"}},
		{[]string{"--where=localhost:8080"}, []string{"where", "[IP]:PORT"}},
		{[]string{"--where=:http"}, []string{"where", "[IP]:PORT"}},
		{[]string{"--where=:65536"}, []string{"where", "[IP]:PORT"}},
		{[]string{"--where=:-1"}, []string{"where", "[IP]:PORT"}},
		{[]string{"--where=::1:80"}, []string{"where", "[IP]:PORT"}},
		{[]string{"--where=:"}, []string{"where", "[IP]:PORT"}},
		{[]string{"--duration=15"}, []string{"duration", "from 1s to 1h", "15s"}},
		{[]string{"--duration=999ms"}, []string{"duration", "from 1s to 1h"}},
		{[]string{"--duration=1h1ns"}, []string{"duration", "from 1s to 1h"}},
		{[]string{"--duration=-5s"}, []string{"duration", "from 1s to 1h"}},
		{[]string{"--duration=99999999h"}, []string{"duration", "from 1s to 1h"}},
		{[]string{"--number=0"}, []string{"number", "from 1 to 100"}},
		{[]string{"--number=101"}, []string{"number", "from 1 to 100"}},
		{[]string{"--number=1.5"}, []string{"number", "whole number"}},
		{[]string{"--number=99999999999999999999"}, []string{"number", "from 1 to 100"}},
		{[]string{"--rate=0.4"}, []string{"rate", "from 0.5 to 1000"}},
		{[]string{"--rate=NaN"}, []string{"rate", "from 0.5 to 1000"}},
		{[]string{"--rate=Inf"}, []string{"rate", "from 0.5 to 1000"}},
		{[]string{"--port=0"}, []string{"port", "whole number from 1 to 65535"}},
		{[]string{"--port=65536"}, []string{"port", "from 1 to 65535"}},
		{[]string{"--port=http"}, []string{"port", "from 1 to 65535"}},
		{[]string{"--ip=host"}, []string{"ip", `"host"`, "an IP address, such as 169.254.169.254 or fd00:ec2::254"}},
		{[]string{"--ip=10.0.0.0/8"}, []string{"ip", "an IP address"}},
		{[]string{"--ip=10.0.0.1:80"}, []string{"ip", "an IP address"}},
		{[]string{"--ip=10.0.0.1 10.0.0.2"}, []string{"ip", "an IP address"}},
		{[]string{"--ip=10.0.0.1, 10.0.0.2"}, []string{"ip", "an IP address"}},
		{[]string{"--ip=010.0.0.1"}, []string{"ip", "an IP address"}},
		{[]string{"--ip=fe80::1%eth0"}, []string{"ip", "an IP address"}},
		{[]string{"--ip=::ffff:10.0.0.1"}, []string{"ip", "an IP address"}},
		{[]string{"--ip=0.0.0.0"}, []string{"ip", "an IP address"}},
		{[]string{"--ip=::"}, []string{"ip", "an IP address"}},
		{[]string{"--ip=10.0.0.1", "--ip=x"}, []string{"ip", `"x"`, "an IP address"}},
		{[]string{"--to=10.96.0.7"}, []string{"to", `"10.96.0.7"`, "IP:PORT, such as 10.96.0.7:80 or [fd00::7]:80"}},
		{[]string{"--to=:80"}, []string{"to", "IP:PORT"}},
		{[]string{"--to=10.96.0.7:0"}, []string{"to", "IP:PORT"}},
		{[]string{"--to=10.96.0.7:65536"}, []string{"to", "IP:PORT"}},
		{[]string{"--to=10.96.0.7:http"}, []string{"to", "IP:PORT"}},
		{[]string{"--to=fd00::7:80"}, []string{"to", "IP:PORT"}},
		{[]string{"--to=[fe80::7%eth0]:80"}, []string{"to", "IP:PORT"}},
		{[]string{"--to=[::ffff:10.96.0.7]:80"}, []string{"to", "IP:PORT"}},
		{[]string{"--to=0.0.0.0:80"}, []string{"to", "IP:PORT"}},
		{[]string{"--to"}, []string{"--to", "needs a value", "addresses with a port"}},
		{[]string{"--on=maybe"}, []string{"on", "true or false"}},
		{[]string{"--on", "false"}, []string{`"false"`, "--name=false"}},
		{[]string{"--choice"}, []string{"--choice", "needs a value", "a, b"}},
		{[]string{"-duration"}, []string{"--duration", "needs a value", "a time"}},
		{[]string{"--unknown"}, []string{"-unknown", "--choice, --duration, --file, --ip, --number"}},
		{[]string{"--unknown=1"}, []string{"-unknown", "--choice"}},
		{[]string{"--Choice=a"}, []string{"-Choice", "--choice"}},
		{[]string{"---choice=a"}, []string{"---choice=a", "--NAME=VALUE"}},
		{[]string{"--=a"}, []string{"--=a", "--NAME=VALUE"}},
		{[]string{"argument"}, []string{`"argument"`}},
		{[]string{"--choice", "a", "argument"}, []string{`"argument"`}},
		{[]string{"--", "--choice=a"}, []string{`"--choice=a"`}},
		{[]string{"-"}, []string{`"-"`}},
		{[]string{""}, []string{`""`}},
	} {
		err := newProgram().parse(tc.arguments...)
		if err == nil {
			t.Errorf("%q is accepted", tc.arguments)
			continue
		}
		for _, part := range tc.want {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%q: %q does not say %q", tc.arguments, err, part)
			}
		}
	}
}

func TestHelpNamesEveryFlagWithItsDefault(t *testing.T) {
	for _, argument := range []string{"-h", "--h", "-help", "--help"} {
		var out bytes.Buffer
		// The defaults, not what was set before.
		if err := newProgram().set.Parse([]string{"--number=7", "--ip=10.0.0.1", argument}, &out); !errors.Is(err, ErrHelp) {
			t.Fatal(err)
		}
		for _, line := range []string{
			`--choice "a"`, `--duration "15s"`, `--file ""`, `--ip "192.0.2.1,2001:db8::1"`, `--number "20"`, `--off "false"`, `--on "true"`,
			`--rate "10"`, `--text "initial"`, `--where ":8080"`, "one of two: a, b",
		} {
			if !strings.Contains(out.String(), line) {
				t.Errorf("%s does not say %s: %s", argument, line, out.String())
			}
		}
	}
}

// A default that its own flag would refuse is a mistake of the program.
func TestDefaultIsChecked(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	var n int
	New("program").Int(&n, "number", "0", 1, math.MaxInt, "a number")
}
