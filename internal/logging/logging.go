// Package logging owns how the programs log: one JSON object a line on stderr,
// with constant messages and the keys below, so that logs can be searched by
// them. Secrets have no key.
package logging

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"time"

	"github.com/go-logr/zapr"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"k8s.io/klog/v2"
)

// Keys of log fields.
const (
	AccessKeyID    = "access_key_id"
	Account        = "account"
	Address        = "address"
	ARN            = "arn"
	AuxAddress     = "aux_address"
	Cause          = "cause"
	Code           = "code"
	Drain          = "drain"
	DryRun         = "dry_run"
	Duration       = "duration"
	Endpoints      = "endpoints"
	Expiration     = "expiration"
	Failures       = "failures"
	Interfaces     = "interfaces"
	Issuer         = "issuer"
	KeyID          = "key_id"
	Kind           = "kind"
	Library        = "library"
	MemoryLimit    = "memory_limit"
	Missing        = "missing"
	Namespace      = "namespace"
	Node           = "node"
	Outcome        = "outcome"
	Pod            = "pod"
	Port           = "port"
	Proof          = "proof"
	Reason         = "reason"
	Refusal        = "refusal"
	Region         = "region"
	Removed        = "removed"
	Retry          = "retry_in"
	Revision       = "revision"
	RoleARN        = "role_arn"
	ServiceAccount = "service_account"
	SessionName    = "session_name"
	Silence        = "silence"
	Slices         = "endpointslices"
	SourceIP       = "source_ip"
	Status         = "status"
	Suppressed     = "suppressed"
	Taint          = "taint"
	UID            = "pod_uid"
	Value          = "value"
	Version        = "version"
	Webhook        = "webhook"
)

// Role returns the fields that identify a role and whose it is.
func Role(namespace, serviceAccount, arn, sessionName string) []zap.Field {
	return []zap.Field{
		zap.String(Namespace, namespace), zap.String(ServiceAccount, serviceAccount),
		zap.String(RoleARN, arn), zap.String(SessionName, sessionName),
	}
}

// Levels and Encodings are what New accepts.
var (
	Levels    = []string{"debug", "info", "warn", "error"}
	Encodings = []string{"json", "console"}
)

// New returns a logger that writes to w.
func New(w io.Writer, level, encoding string) (*zap.Logger, error) {
	var zapLevel zapcore.Level
	if err := zapLevel.Set(level); err != nil {
		return nil, fmt.Errorf("log level %q: %w", level, err)
	}
	cfg := zap.NewProductionEncoderConfig()
	cfg.TimeKey, cfg.EncodeTime = "time", zapcore.RFC3339NanoTimeEncoder
	encoder := zapcore.NewJSONEncoder(cfg)
	if encoding == "console" {
		encoder = zapcore.NewConsoleEncoder(cfg)
	}
	return zap.New(zapcore.NewCore(encoder, zapcore.Lock(zapcore.AddSync(w)), zapLevel)), nil
}

// Sampled returns a logger for lines that others can cause in any number: of the
// lines with one message it writes the first few of every second.
func Sampled(log *zap.Logger) *zap.Logger {
	const first = 10
	return log.WithOptions(zap.WrapCore(func(core zapcore.Core) zapcore.Core {
		return zapcore.NewSamplerWithOptions(core, time.Second, first, 0)
	}))
}

// ForHTTP returns a logger for http.Server.ErrorLog that writes through one which is Sampled.
func ForHTTP(sampled *zap.Logger) *log.Logger {
	return log.New(httpErrors{sampled}, "", 0)
}

type httpErrors struct{ log *zap.Logger }

// Write logs one line of net/http.
func (h httpErrors) Write(line []byte) (int, error) {
	h.log.Warn("HTTP server", zap.ByteString(Cause, bytes.TrimSpace(line)))
	return len(line), nil
}

// ClientGo is the value of the key Library in the lines of client-go, whose
// messages and other keys are its own.
const ClientGo = "client-go"

// TakeOverKlog lets client-go log through l. Call it once, before client-go is used.
func TakeOverKlog(l *zap.Logger) {
	klog.SetLogger(zapr.NewLogger(Sampled(l.With(zap.String(Library, ClientGo)))))
}
