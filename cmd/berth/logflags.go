package main

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/pflag"

	"github.com/berthd/berth/runtime/spec"
)

// logFlags say how much of a log is kept.
type logFlags struct {
	sizeText string
	size     int64
	files    int
}

func (f *logFlags) register(flags *pflag.FlagSet) {
	flags.StringVar(&f.sizeText, "log-max-size", "", "with -d: `size` like 10m at which a file of the log is put aside (16m)")
	flags.IntVar(&f.files, "log-max-files", 0, "with -d: `number` of files of the log that are kept (4)")
}

// check reads the size, and refuses what would have no effect.
func (f *logFlags) check(detach bool) (err error) {
	if !detach && (f.sizeText != "" || f.files != 0) {
		return hint(errors.New("--log-max-size and --log-max-files are for what runs with -d: only that has a log"), "add -d")
	}
	if f.sizeText != "" {
		if f.size, err = spec.ParseSize(f.sizeText); err != nil {
			return fmt.Errorf("--log-max-size: %w", err)
		}
	}
	return nil
}

// parseWhen reads a point in time: RFC 3339, seconds since 1970, or a duration such
// as 10m, which is that long ago. Empty is none.
func parseWhen(flag, text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02"} {
		if at, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			return at, nil
		}
	}
	if seconds, err := strconv.ParseFloat(text, 64); err == nil && seconds > 0 {
		return time.Unix(0, int64(seconds*1e9)), nil
	}
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return now.Add(-ago), nil
	}
	return time.Time{}, fmt.Errorf("--%s %q is neither a time like 2006-01-02T15:04:05Z, nor seconds since 1970, nor a duration like 10m", flag, text)
}
