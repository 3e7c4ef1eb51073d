package obs

import (
	"io"
	"log/slog"
	"runtime"
	"time"
)

// Logger writes lines of text or, for format "json", objects to w. The level
// can be changed while it is in use.
func Logger(w io.Writer, level slog.Level, format string) (*slog.Logger, *slog.LevelVar) {
	v := new(slog.LevelVar)
	v.Set(level)
	o := &slog.HandlerOptions{Level: v}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, o)), v
	}
	return slog.New(slog.NewTextHandler(w, o)), v
}

// maxStacks bounds, in bytes, what Stacks gives.
const maxStacks = 4 << 20

// Stacks gives the stacks of all goroutines, cut at 4 MiB.
func Stacks() []byte {
	for size := 64 << 10; ; size *= 2 {
		buf := make([]byte, size)
		n := runtime.Stack(buf, true)
		if n < size || size >= maxStacks {
			return buf[:n]
		}
	}
}

// Took is the attribute for how long something took.
func Took(since time.Time) slog.Attr { return slog.Duration("took", time.Since(since)) }
