package program

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/iam4kube/iam4kube/internal/flags"
)

// testConfig is wrong with the text that it has.
type testConfig struct{ wrong string }

func (c testConfig) Validate() error {
	if c.wrong != "" {
		return errors.New(c.wrong)
	}
	return nil
}

// start starts a program that does no more than run, and has run unless the arguments are wrong.
func start(t *testing.T, run func(*zap.Logger) error, arguments ...string) (status int, stdout, stderr string, ran bool) {
	t.Helper()
	p := Program[testConfig]{
		Name: "tested",
		Flags: func(f *flags.Set) func() testConfig {
			var cfg testConfig
			f.String(&cfg.wrong, "wrong", "", "what is wrong")
			return func() testConfig { return cfg }
		},
		Run: func(_ context.Context, _ testConfig, log *zap.Logger) error {
			ran = true
			return run(log)
		},
	}
	var out, errs bytes.Buffer
	status = p.Start(t.Context(), arguments, &out, &errs)
	return status, out.String(), errs.String(), ran
}

func succeed(*zap.Logger) error { return nil }

func TestStatus(t *testing.T) {
	fail := func(*zap.Logger) error { return errors.Join(errors.New("a"), errors.New("b")) }
	for _, tc := range []struct {
		name      string
		run       func(*zap.Logger) error
		arguments []string
		status    int
		stderr    string
		ran       bool
	}{
		{name: "success", run: succeed, ran: true},
		{"failure of two lines", fail, nil, 1, "tested: a; b\n", true},
		{"failure with a status", func(*zap.Logger) error { return fmt.Errorf("a: %w", &StatusError{113, errors.New("b")}) }, nil, 113, "tested: a: b\n", true},
		{"unknown flag", succeed, []string{"--un\nknown"}, 2, "tested: unknown flag -un; known, accepted are --log-encoding, --log-level, --version, --wrong\n", false},
		{"invalid", succeed, []string{"--wrong=--wrong is\nwrong"}, 2, "tested: --wrong is; wrong\n", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			status, stdout, stderr, ran := start(t, tc.run, tc.arguments...)
			if status != tc.status || stdout != "" || stderr != tc.stderr || ran != tc.ran {
				t.Errorf("status %d, stdout %q, stderr %q, ran %t", status, stdout, stderr, ran)
			}
		})
	}
}

// Help needs no configuration that is valid.
func TestHelpGoesToStdout(t *testing.T) {
	status, stdout, stderr, ran := start(t, succeed, "--wrong=yes", "--help")
	if status != 0 || stderr != "" || ran || !strings.Contains(stdout, `  --wrong ""`) || !strings.Contains(stdout, `  --log-level "info"`) {
		t.Errorf("status %d, stdout %q, stderr %q, ran %t", status, stdout, stderr, ran)
	}
}

func TestVersionGoesToStdout(t *testing.T) {
	status, stdout, stderr, ran := start(t, succeed, "--wrong=yes", "--version")
	if want := "tested unreleased, revision unknown, " + runtime.Version() + "\n"; status != 0 || stdout != want || stderr != "" || ran {
		t.Errorf("status %d, stdout %q, want %q, stderr %q, ran %t", status, stdout, want, stderr, ran)
	}
}

// What a log is of stands in its first line, whoever writes that and whatever the level.
func TestFirstLineHasTheVersion(t *testing.T) {
	const version = `"version":"unreleased","revision":"unknown","memory_limit":`
	run := func(log *zap.Logger) error {
		other := log.With(zap.String("key", "value"))
		log.Info("below the level")
		other.Warn("first")
		other.Warn("second")
		log.Warn("third")
		return nil
	}
	_, _, stderr, _ := start(t, run, "--log-level=warn")
	lines := strings.Split(strings.TrimSpace(stderr), "\n")
	if len(lines) != 3 || !strings.Contains(lines[0], `"msg":"first","key":"value",`+version) {
		t.Fatalf("got %q", lines)
	}
	if strings.Contains(lines[1]+lines[2], "version") || !strings.Contains(lines[1], `"key":"value"`) {
		t.Errorf("got %q", lines)
	}
}

func TestLogGoesToStderr(t *testing.T) {
	run := func(log *zap.Logger) error {
		log.Info("not this one")
		log.Warn("this one")
		return nil
	}
	_, stdout, stderr, _ := start(t, run, "--log-level=warn", "--log-encoding=json")
	if stdout != "" || strings.Contains(stderr, "not this one") || !strings.Contains(stderr, `"msg":"this one"`) {
		t.Errorf("stdout %q, stderr %q", stdout, stderr)
	}
}
