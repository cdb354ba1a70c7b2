package program

import (
	"slices"
	"sync/atomic"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// withFirst returns a logger whose first line, whatever it says, has these fields too. A
// line of their own would be one more than the one that explains a failed start.
func withFirst(log *zap.Logger, fields ...zap.Field) *zap.Logger {
	return log.WithOptions(zap.WrapCore(func(core zapcore.Core) zapcore.Core {
		return firstLine{core, fields, &atomic.Bool{}}
	}))
}

type firstLine struct {
	zapcore.Core
	fields  []zap.Field
	written *atomic.Bool
}

// With implements zapcore.Core.
func (f firstLine) With(fields []zap.Field) zapcore.Core {
	return firstLine{f.Core.With(fields), f.fields, f.written}
}

// Check implements zapcore.Core.
func (f firstLine) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if f.Enabled(entry.Level) {
		return checked.AddCore(entry, f)
	}
	return checked
}

// Write implements zapcore.Core.
func (f firstLine) Write(entry zapcore.Entry, fields []zap.Field) error {
	if f.written.CompareAndSwap(false, true) {
		fields = slices.Concat(fields, f.fields)
	}
	return f.Core.Write(entry, fields)
}
