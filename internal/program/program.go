// Package program is what all programs have in common: a command line that becomes a
// configuration, a logger, signals, parts that run together and end together, listeners,
// and an exit status with one line that explains it. It does not know what the parts do.
package program

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"go.uber.org/zap"

	"github.com/iam4kube/iam4kube/internal/buildinfo"
	"github.com/iam4kube/iam4kube/internal/flags"
	"github.com/iam4kube/iam4kube/internal/logging"
)

// Exit statuses.
const (
	exitFailure = 1
	exitUsage   = 2
)

// Config is a program's own configuration.
type Config interface {
	// Validate returns what is wrong with it as a whole, in terms of the flags.
	Validate() error
}

// Program is one that a main function starts.
type Program[C Config] struct {
	Name string
	// Flags adds the program's own flags and returns what makes a configuration of them
	// once they are parsed.
	Flags func(*flags.Set) (config func() C)
	// Run does the work until ctx ends.
	Run func(ctx context.Context, cfg C, log *zap.Logger) error
}

// Log is the flags of every program's logger.
type Log struct{ Level, Encoding string }

// StatusError is an error of Run with an exit status of its own.
type StatusError struct {
	Status int
	Err    error
}

// Error implements error.
func (f *StatusError) Error() string { return f.Err.Error() }

// Unwrap is the error itself.
func (f *StatusError) Unwrap() error { return f.Err }

// Main runs the program with what the operating system has given to the process, and
// returns its exit status. The first SIGTERM or SIGINT ends the context of Run, a second
// one the process.
func (p Program[C]) Main() (status int) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	context.AfterFunc(ctx, stop)
	return p.Start(ctx, os.Args[1:], os.Stdout, os.Stderr)
}

// Start runs the program until ctx ends and returns its exit status. Nothing runs if the
// arguments are wrong.
func (p Program[C]) Start(ctx context.Context, arguments []string, stdout, stderr io.Writer) (status int) {
	cfg, settings, err := p.Parse(arguments, stdout)
	switch {
	case errors.Is(err, flags.ErrHelp):
		return 0
	case err != nil:
		return p.say(stderr, exitUsage, err)
	}
	log, err := logging.New(stderr, settings.Level, settings.Encoding)
	if err != nil {
		return p.say(stderr, exitUsage, err)
	}
	memory, err := memlimit.Set() // of the cgroup: what is over it ends the process
	if err != nil {
		log.Warn("the garbage collector does not know the memory limit; set GOMEMLIMIT", zap.Error(err))
	}
	log = withFirst(log, zap.String(logging.Version, buildinfo.Version()), zap.String(logging.Revision, buildinfo.Revision()), zap.Int64(logging.MemoryLimit, memory))
	logging.TakeOverKlog(log)
	err = p.Run(ctx, cfg, log)
	if failure, ok := errors.AsType[*StatusError](err); ok {
		return p.say(stderr, failure.Status, err)
	}
	if err != nil {
		return p.say(stderr, exitFailure, err)
	}
	return 0
}

// Parse makes the configuration of the arguments, or says what is wrong with them. Help
// or version that was asked for is printed, and the error is flags.ErrHelp.
func (p Program[C]) Parse(arguments []string, stdout io.Writer) (cfg C, log Log, err error) {
	var version bool
	f := flags.New(p.Name)
	f.Bool(&version, "version", "false", "print name, version, revision and the version of Go, and exit")
	f.Choice(&log.Level, "log-level", "info", logging.Levels, "least level that is logged")
	f.Choice(&log.Encoding, "log-encoding", "json", logging.Encodings, "form of a log line")
	config := p.Flags(f)
	if err := f.Parse(arguments, stdout); err != nil {
		return cfg, log, err
	}
	if version {
		_, _ = fmt.Fprintf(stdout, "%s %s, revision %s, %s\n", p.Name, buildinfo.Version(), buildinfo.Revision(), runtime.Version())
		return cfg, log, flags.ErrHelp
	}
	cfg = config()
	return cfg, log, cfg.Validate()
}

// say prints the one line that explains the exit status.
func (p Program[C]) say(stderr io.Writer, status int, err error) int {
	_, _ = fmt.Fprintf(stderr, "%s: %s\n", p.Name, strings.ReplaceAll(err.Error(), "\n", "; "))
	return status
}
