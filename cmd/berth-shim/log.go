package main

import (
	"log/slog"
	"os"

	"github.com/containerd/log"
)

// maxLog bounds the log, which lies in memory (the daemon's state directory).
const maxLog = 256 << 10

// newLog makes the log on standard error, which the daemon has pointed at the
// bundle's shim.log.
func newLog(debug bool) *slog.Logger {
	level := slog.LevelInfo
	if debug {
		level = slog.LevelDebug
	}
	out := &boundedFile{os.Stderr}
	log.L.Logger.SetOutput(out) // what ttrpc says
	return slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: level}))
}

// boundedFile is a file opened for append that is begun anew when it gets too
// long. What is not a regular file is left as it is.
type boundedFile struct{ f *os.File }

// Write appends. That the log can't be cut is no reason not to write to it.
func (b *boundedFile) Write(p []byte) (int, error) {
	if info, err := b.f.Stat(); err == nil && info.Mode().IsRegular() && info.Size()+int64(len(p)) > maxLog {
		if b.f.Truncate(0) == nil {
			_, _ = b.f.WriteString("... older lines were dropped\n")
		}
	}
	return b.f.Write(p)
}
