package services

import (
	"context"
	"io"
	"log/slog"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

// withTTRPCLog makes the ttrpc library, which logs by logrus, write what it has
// to say to the daemon's log.
func withTTRPCLog(ctx context.Context, to *slog.Logger) context.Context {
	l := logrus.New()
	l.SetOutput(io.Discard)
	l.AddHook(slogHook{to})
	return log.WithLogger(ctx, logrus.NewEntry(l))
}

// slogHook passes entries on. They are of the library's troubles with one
// connection, never of the daemon's: warnings.
type slogHook struct{ to *slog.Logger }

func (h slogHook) Levels() []logrus.Level {
	return []logrus.Level{logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel, logrus.WarnLevel}
}

func (h slogHook) Fire(e *logrus.Entry) error {
	attrs := make([]slog.Attr, 0, len(e.Data))
	for k, v := range e.Data {
		attrs = append(attrs, slog.Any(k, v))
	}
	h.to.LogAttrs(context.Background(), slog.LevelWarn, e.Message, attrs...)
	return nil
}
