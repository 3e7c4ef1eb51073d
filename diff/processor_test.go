package diff

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/internal/leak"
	"github.com/berthd/berth/internal/mount"
)

// shell is a processor that is a shell script.
func shell(t *testing.T, id, accepts, returns, script string) Processor {
	t.Helper()
	path := filepath.Join(t.TempDir(), id)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return Processor{ID: id, Accepts: []string{accepts}, Returns: returns, Path: path}
}

const sealed = ociLayer + "+gzip+sealed"

// swap makes capitals of small letters and the other way round.
const swap = "tr a-zA-Z A-Za-z"

func swapped(data []byte) []byte {
	return bytes.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		}
		return r
	}, data)
}

// asciiLayer is a layer whose bytes are all ASCII, so that shell tools keep them.
func asciiLayer(t *testing.T) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	content := strings.Repeat("Content ", 4096)
	if err := w.WriteHeader(&tar.Header{Name: "File", Mode: 0o644, Size: int64(len(content)), Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(content)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func applyWith(t *testing.T, blob []byte, mediaType string, o Options) (string, Result, error) {
	t.Helper()
	dir := t.TempDir()
	result, err := Apply(t.Context(), bytes.NewReader(blob), mediaType, []mount.Mount{{Type: "bind", Source: dir, Options: []string{"rw", "rbind"}}}, o)
	return dir, result, err
}

// TestProcessor: a program undoes what is not built in, the next one follows, and
// what is built in comes last.
func TestProcessor(t *testing.T) {
	leak.Check(t)
	layer := asciiLayer(t)
	unseal := shell(t, "unseal", sealed, "step", `test "$(cat /proc/self/fd/3)" = key || exit 9; test "$X" = y || exit 8; test -z "$SECRET" || exit 7; `+swap)
	unseal.Env = []string{"X=y"}
	second := shell(t, "second", "step", ociLayer, "cat")
	t.Setenv("SECRET", "z")
	o := Options{Processors: []Processor{second, unseal}, Payloads: map[string][]byte{"unseal": []byte("key")}}
	dir, result, err := applyWith(t, swapped(layer), sealed, o)
	if err != nil {
		t.Fatal(err)
	}
	if result.Size != int64(len(layer)) || result.MediaType != ociLayer {
		t.Errorf("%+v, want %d bytes", result, len(layer))
	}
	if data, err := os.ReadFile(dir + "/File"); err != nil || string(data) != strings.Repeat("Content ", 4096) {
		t.Errorf("%d bytes, %v", len(data), err)
	}
	if _, _, err := applyWith(t, swapped(layer), sealed, Options{}); !errors.Is(err, errdefs.ErrNotImplemented) {
		t.Errorf("without it: %v", err)
	}
	if _, _, err := applyWith(t, layer, ociLayer, o); err != nil {
		t.Errorf("a layer that needs nothing: %v", err)
	}
}

// TestProcessorFails: the end of its output is the end of the layer only if the
// program says so.
func TestProcessorFails(t *testing.T) {
	leak.Check(t)
	layer := asciiLayer(t)
	for name, c := range map[string]struct {
		script, want string
		kind         error
	}{
		"at once":    {"echo no key >&2; exit 1", `exit status 1 (it says: "no key")`, nil},
		"at the end": {"cat; exit 4", "exit status 4", nil},
		"half way":   {"head -c 5000; exit 3", "exit status 3", nil},
		"truncated":  {"head -c 700; exec cat >/dev/null", "", nil},
		"hangs":      {"sleep 1000 & wait", "did not end within", context.DeadlineExceeded},
		"babbles":    {"while :; do echo lots of words >&2; done", "did not end within", context.DeadlineExceeded},
		"endless":    {"cat /dev/zero", "", nil},
		"not closed": {"cat; sleep 1000 & exit 0", "did not end within", context.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			p := shell(t, "p", sealed, ociLayer, c.script)
			p.Timeout = 300 * time.Millisecond
			start := time.Now()
			_, _, err := applyWith(t, layer, sealed, Options{Processors: []Processor{p}, MaxSize: 1 << 30})
			if err == nil || !strings.Contains(err.Error(), c.want) || c.kind != nil && !errors.Is(err, c.kind) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if took := time.Since(start); took > 10*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

// TestProcessorEndsWithItsLayer: a layer that fails does not wait for a program
// that has nothing to say, nor does one whose caller gave up.
func TestProcessorEndsWithItsLayer(t *testing.T) {
	leak.Check(t)
	p := shell(t, "p", sealed, ociLayer, "echo this is no tar, and more than a block of it; head -c 600000 /dev/zero | tr '\\0' x; sleep 1000 & wait")
	start := time.Now()
	if _, _, err := applyWith(t, nil, sealed, Options{Processors: []Processor{p}}); err == nil || time.Since(start) > 10*time.Second {
		t.Errorf("%v after %s", err, time.Since(start))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	hang := shell(t, "h", sealed, ociLayer, "sleep 1000 & wait")
	in, out := io.Pipe()
	go func() { <-ctx.Done(); out.Close() }()
	_, err := Apply(ctx, in, sealed, []mount.Mount{{Type: "bind", Source: t.TempDir(), Options: []string{"rbind"}}}, Options{Processors: []Processor{hang}})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

func TestProcessorRefused(t *testing.T) {
	leak.Check(t)
	p := shell(t, "p", sealed, ociLayer, "cat")
	ring := []Processor{shell(t, "a", sealed, "x", "cat"), shell(t, "b", "x", sealed, "cat")}
	if _, _, err := applyWith(t, asciiLayer(t), sealed, Options{Processors: ring}); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("a ring: %v", err)
	}
	if err := os.Chmod(p.Path, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, _, err := applyWith(t, asciiLayer(t), sealed, Options{Processors: []Processor{p}}); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("a program that anybody can write: %v", err)
	}
	p.Path += "-none"
	if _, _, err := applyWith(t, asciiLayer(t), sealed, Options{Processors: []Processor{p}}); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("a program that is not there: %v", err)
	}
	broken := errors.New("the blob can't be read")
	p = shell(t, "q", sealed, ociLayer, "cat")
	_, err := Apply(t.Context(), io.MultiReader(strings.NewReader("x"), failing{broken}), sealed,
		[]mount.Mount{{Type: "bind", Source: t.TempDir(), Options: []string{"rbind"}}}, Options{Processors: []Processor{p}})
	if !errors.Is(err, broken) {
		t.Error(err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
