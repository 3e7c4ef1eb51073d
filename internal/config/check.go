package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// Check tells everything that is wrong with a completed configuration, in the
// order of the fields.
func (c *Config) Check() error {
	checks := []struct{ key, wrong string }{
		{"root", directory(c.Root)},
		{"state", directory(c.State)},
		{"state", when(filepath.Clean(c.Root) == filepath.Clean(c.State), "%q is the root too; they need different directories", c.State)},
		{"shim", when(strings.Contains(c.Shim, "/") && !filepath.IsAbs(c.Shim), "%q is neither a name nor an absolute path", c.Shim)},
		{"content_sharing", when(c.Sharing != Shared && c.Sharing != Isolated, "%q is neither %q nor %q", c.Sharing, Shared, Isolated)},
		{"grpc.address", socketPath(c.GRPC.Address, TTRPCSuffix)},
		{"grpc.uid", atLeast(0, c.GRPC.UID)},
		{"grpc.gid", atLeast(0, c.GRPC.GID)},
		{"runtime.binary", when(c.Runtime.Binary == "", "is empty")},
		{"registry.hosts_dir", optional(c.Registry.HostsDir, directory)},
		{"images.max_layer_bytes", atLeast(1<<20, c.Images.MaxLayer)},
		{"log.level", level(c.Log.Level)},
		{"log.format", when(c.Log.Format != "text" && c.Log.Format != "json", "%q is neither \"text\" nor \"json\"", c.Log.Format)},
		{"debug.address", optional(c.Debug.Address, func(a string) string { return socketPath(a, "") })},
		{"metrics.address", optional(c.Metrics.Address, endpoint)},
		{"gc.startup_delay", atLeast(1, c.GC.StartupDelay.Duration)},
		{"gc.schedule_delay", atLeast(1, c.GC.ScheduleDelay.Duration)},
		{"gc.pause_threshold", when(c.GC.PauseThreshold <= 0 || c.GC.PauseThreshold > 0.5, "%v is not above 0 and at most 0.5", c.GC.PauseThreshold)},
		{"events.max_bytes", atLeast(1<<20, c.Events.MaxBytes)},
		{"memory.gc_percent", atLeast(10, c.Memory.GCPercent)},
		{"memory.limit", atLeast(0, c.Memory.Limit)},
		{"deadlines.drain", atLeast(1, c.Deadlines.Drain.Duration)},
		{"deadlines.shutdown", atLeast(1, c.Deadlines.Shutdown.Duration)},
		{"deadlines.features", atLeast(1, c.Deadlines.Features.Duration)},
		{"deadlines.create", atLeast(1, c.Deadlines.Create.Duration)},
		{"deadlines.start", atLeast(1, c.Deadlines.Start.Duration)},
		{"deadlines.delete", atLeast(1, c.Deadlines.Delete.Duration)},
	}
	var errs []error
	for _, check := range checks {
		if check.wrong != "" {
			errs = append(errs, fmt.Errorf("configuration key %s: %s: %w", check.key, check.wrong, errdefs.ErrInvalidArgument))
		}
	}
	return errors.Join(append(errs, c.checkExtensions()...)...)
}

// when gives the text if something is wrong, else "".
func when(wrong bool, format string, args ...any) string {
	if !wrong {
		return ""
	}
	return fmt.Sprintf(format, args...)
}

func optional(address string, check func(string) string) string {
	if address == "" {
		return ""
	}
	return check(address)
}

func atLeast[N int | int64 | time.Duration](least, n N) string {
	return when(n < least, "%v is less than %v", n, least)
}

func directory(path string) string {
	switch {
	case !filepath.IsAbs(path):
		return fmt.Sprintf("%q is not an absolute path", path)
	case filepath.Clean(path) == "/":
		return "the machine's root directory can't be used"
	}
	return ""
}

// socketPath checks the path of a unix socket to which suffix will be added.
func socketPath(path, suffix string) string {
	n := len(path) + len(suffix)
	switch {
	case !filepath.IsAbs(path):
		return fmt.Sprintf("%q is not an absolute path", path)
	case n > MaxSocketPath && suffix != "":
		return fmt.Sprintf("%q is %d bytes long with %q added, a socket path has at most %d", path, n, suffix, MaxSocketPath)
	case n > MaxSocketPath:
		return fmt.Sprintf("%q is %d bytes long, a socket path has at most %d", path, n, MaxSocketPath)
	}
	return ""
}

// endpoint checks an address that is a socket's path or host:port.
func endpoint(address string) string {
	if strings.HasPrefix(address, "/") {
		return socketPath(address, "")
	}
	_, _, err := net.SplitHostPort(address)
	return when(err != nil, "%q is neither host:port nor an absolute path", address)
}

func level(text string) string {
	_, err := ParseLevel(text)
	return when(err != nil, "%q is none of debug, info, warn, error", text)
}

// ParseLevel reads a log level.
func ParseLevel(text string) (slog.Level, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(text)); err != nil {
		return 0, fmt.Errorf("log level %q: %w", text, errdefs.ErrInvalidArgument)
	}
	return l, nil
}

// Fixed lists the keys, in the order of the file, in which two configurations
// differ and that a running daemon does not take over.
func Fixed(running, loaded Config) []string {
	loaded.Log.Level = running.Log.Level
	return differing("", reflect.ValueOf(running), reflect.ValueOf(loaded))
}

func differing(prefix string, a, b reflect.Value) []string {
	var keys []string
	for i := range a.NumField() {
		key := prefix + tomlName(a.Type().Field(i))
		if f := a.Field(i); f.Kind() == reflect.Struct && f.Type() != reflect.TypeFor[Duration]() {
			keys = append(keys, differing(key+".", a.Field(i), b.Field(i))...)
		} else if !reflect.DeepEqual(f.Interface(), b.Field(i).Interface()) {
			keys = append(keys, key)
		}
	}
	return keys
}
