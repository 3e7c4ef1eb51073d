package shim

import (
	"fmt"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// The schemes of a stdio string; a plain path is a fifo's.
const (
	schemeFifo     = "fifo"
	schemeFile     = "file"
	schemeLog      = "log"
	schemeBinary   = "binary"
	schemeBinaryV2 = "binary-v2"
)

// schemes are those that a stdout string may have.
var schemes = []string{schemeFifo, schemeFile, schemeLog, schemeBinary, schemeBinaryV2}

// target is a stdio string taken apart. The zero value is no stream.
type target struct {
	text   string // as it came
	scheme string
	path   string
	query  string
}

// parseTarget takes a stdio string apart. "" stays without a path.
func parseTarget(text string) (target, error) {
	if !strings.Contains(text, "://") {
		return target{text: text, scheme: schemeFifo, path: text}, nil
	}
	u, err := url.Parse(text)
	if err != nil {
		return target{}, fmt.Errorf("stdio %q: %w", text, errdefs.ErrInvalidArgument)
	}
	t := target{text: text, path: u.Path, query: u.RawQuery}
	for _, known := range schemes {
		if u.Scheme == known {
			t.scheme = known
		}
	}
	switch {
	case t.scheme == "":
		return target{}, fmt.Errorf("stdio %q: scheme %q is not one of %s: %w", text, u.Scheme, strings.Join(schemes, ", "), errdefs.ErrNotImplemented)
	case u.Host != "" || !filepath.IsAbs(u.Path):
		return target{}, fmt.Errorf("stdio %q: path is not absolute: %w", text, errdefs.ErrInvalidArgument)
	}
	return t, nil
}

// outputs takes the strings of both output streams apart. That of stdout decides
// for both, unless it is a fifo's.
func (p streamPaths) outputs() (stdout, stderr target, err error) {
	if stdout, err = parseTarget(p.stdout); err != nil || p.terminal {
		return stdout, target{}, err
	}
	if stdout.scheme != schemeFifo {
		return stdout, stdout, nil
	}
	if stderr, err = parseTarget(p.stderr); err == nil && stderr.scheme != schemeFifo {
		err = fmt.Errorf("stderr %q: that of stdout decides on the scheme, and is %q: %w", p.stderr, p.stdout, errdefs.ErrInvalidArgument)
	}
	return stdout, stderr, err
}

// pairs are the parameters of the query in the order in which they stand.
func (t target) pairs() ([][2]string, error) {
	var pairs [][2]string
	for part := range strings.SplitSeq(t.query, "&") {
		if part == "" {
			continue
		}
		key, value, _ := strings.Cut(part, "=")
		k, err := url.QueryUnescape(key)
		if err == nil {
			value, err = url.QueryUnescape(value)
		}
		if err != nil {
			return nil, fmt.Errorf("stdio %q: %v: %w", t.text, err, errdefs.ErrInvalidArgument)
		}
		pairs = append(pairs, [2]string{k, value})
	}
	return pairs, nil
}

// Bounds of the parameters of a log:// address.
const (
	defaultLogSize  = 16 << 20
	minLogSize      = 1 << 10
	defaultLogFiles = 4
	maxLogFiles     = 1000
)

// logOptions are the parameters of a log:// address.
type logOptions struct {
	format logFormat
	size   int64 // bytes after which a file is put aside; 0: never
	files  int   // how many files there are at most, the current one included
	input  bool  // there is an input, for those who attach
}

// logOptions reads the parameters of a log:// address.
func (t target) logOptions() (logOptions, error) {
	o := logOptions{size: defaultLogSize, files: defaultLogFiles}
	pairs, err := t.pairs()
	if err != nil {
		return o, err
	}
	wrong := func(format string, args ...any) (logOptions, error) {
		return o, fmt.Errorf("stdio %q: %s: %w", t.text, fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
	}
	for _, pair := range pairs {
		key, value := pair[0], pair[1]
		switch key {
		case "format":
			var known bool
			if o.format, known = logFormats[value]; !known {
				return wrong("format %q is none of cri, json and raw", value)
			}
		case "max-size":
			o.size, err = strconv.ParseInt(value, 10, 64)
			if err != nil || o.size < minLogSize && o.size != 0 {
				return wrong("max-size %q is neither 0 nor a number of bytes from %d", value, minLogSize)
			}
		case "max-files":
			o.files, err = strconv.Atoi(value)
			if err != nil || o.files < 1 || o.files > maxLogFiles {
				return wrong("max-files %q is no number from 1 to %d", value, maxLogFiles)
			}
		case "input":
			if o.input, err = strconv.ParseBool(value); err != nil {
				return wrong("input %q is neither true nor false", value)
			}
		default:
			return wrong("a log has no option %q, but format, max-size, max-files and input", key)
		}
	}
	return o, nil
}
