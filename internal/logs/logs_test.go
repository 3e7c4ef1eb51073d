package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
)

func open(t *testing.T) (*Store, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "a b", "logs")
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, dir
}

// write appends to a log the way a shim does: by the address that Prepare gave.
func write(t *testing.T, uri, text string) {
	t.Helper()
	u, err := url.Parse(uri)
	if err != nil || u.Scheme != "file" && u.Scheme != "log" {
		t.Fatalf("address %q: %v", uri, err)
	}
	f, err := os.OpenFile(u.Path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

// text is what is in a batch.
func text(b Batch) string {
	var out strings.Builder
	for _, e := range b.Entries {
		out.Write(e.Data)
	}
	return out.String()
}

func prepare(t *testing.T, s *Store, ns, id string) string {
	t.Helper()
	uri, err := s.Prepare(ns, id, Options{Plain: true})
	if err != nil {
		t.Fatal(err)
	}
	return uri
}

func TestPrepare(t *testing.T) {
	s, dir := open(t)
	uri := prepare(t, s, "ns", "c1")
	write(t, uri, "one\n")
	if again := prepare(t, s, "ns", "c1"); again != uri {
		t.Errorf("address %q, then %q", uri, again)
	}
	path := filepath.Join(dir, "ns", "c1", File)
	for p, want := range map[string]fs.FileMode{dir: 0o700, filepath.Dir(path): 0o700, filepath.Join(dir, "ns"): 0o700, path: 0o640} {
		if info, err := os.Stat(p); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: mode %v, error %v, want %v", p, info.Mode(), err, want)
		}
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "one\n" {
		t.Errorf("a second Prepare left %q, error %v", b, err)
	}
}

func TestBadNamesReachNothing(t *testing.T) {
	s, dir := open(t)
	outside := filepath.Join(filepath.Dir(dir), "outside")
	if err := os.Mkdir(outside, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(outside, File), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "ns"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "ns", "link")); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	gone := func(context.Context, string, string) (bool, error) { return false, nil }
	for _, c := range []struct {
		ns, id string
		want   error
	}{
		{"ns", "", errdefs.ErrInvalidArgument},
		{"ns", "..", errdefs.ErrInvalidArgument},
		{"ns", "../../outside", errdefs.ErrInvalidArgument},
		{"..", "outside", errdefs.ErrInvalidArgument},
		{"", "c1", errdefs.ErrFailedPrecondition},
		{"ns", "link", nil}, // any error will do
	} {
		_, prepareErr := s.Prepare(c.ns, c.id, Options{})
		readErr := s.Read(ctx, c.ns, c.id, ReadOptions{Tail: -1}, func(b Batch) error { t.Errorf("read %v", b); return nil })
		for _, err := range []error{prepareErr, readErr} {
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("%q/%q: error %v, want %v", c.ns, c.id, err, c.want)
			}
		}
		if err := s.Remove(ctx, c.ns, c.id, gone); c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("remove %q/%q: error %v, want %v", c.ns, c.id, err, c.want)
		}
	}
	if b, err := os.ReadFile(filepath.Join(outside, File)); err != nil || string(b) != "secret" {
		t.Errorf("what is outside is now %q, error %v", b, err)
	}
}

func TestReadTail(t *testing.T) {
	s, _ := open(t)
	long := strings.Repeat("x", 100<<10) + "\n"
	for i, c := range []struct {
		text string
		tail int64
		want string
	}{
		{"", -1, ""}, {"", 5, ""},
		{"a\nb\nc\n", -1, "a\nb\nc\n"}, {"a\nb\nc\n", 0, ""}, {"a\nb\nc\n", 1, "c\n"},
		{"a\nb\nc\n", 2, "b\nc\n"}, {"a\nb\nc\n", 3, "a\nb\nc\n"}, {"a\nb\nc\n", 9, "a\nb\nc\n"},
		{"a\nb", 1, "b"}, {"a\nb", 2, "a\nb"}, {"\n\n\n", 2, "\n\n"},
		{long + long + "end\n", 2, long + "end\n"}, {long + long, 1, long},
	} {
		id := fmt.Sprintf("c%d", i)
		write(t, prepare(t, s, "ns", id), c.text)
		var got bytes.Buffer
		err := s.Read(t.Context(), "ns", id, ReadOptions{Tail: c.tail}, func(b Batch) error { got.WriteString(text(b)); return nil })
		if err != nil || got.String() != c.want {
			t.Errorf("tail %d of %d bytes: %d bytes, error %v, want %d bytes", c.tail, len(c.text), got.Len(), err, len(c.want))
		}
	}
}

func TestReadFollows(t *testing.T) {
	s, _ := open(t)
	uri := prepare(t, s, "ns", "c1")
	write(t, uri, "before\n")
	synctest.Test(t, func(t *testing.T) {
		over := make(chan struct{})
		pieces := make(chan string, 16)
		done := make(chan error, 1)
		go func() {
			done <- s.Read(t.Context(), "ns", "c1", ReadOptions{Tail: 1, Ended: over}, func(b Batch) error {
				if b.Entries != nil {
					pieces <- text(b)
				}
				return nil
			})
		}()
		if got := <-pieces; got != "before\n" {
			t.Errorf("first %q", got)
		}
		time.Sleep(time.Hour) // fake time: the follower goes idle
		began := time.Now()
		write(t, uri, "later\n")
		if got := <-pieces; got != "later\n" {
			t.Errorf("then %q", got)
		}
		if took := time.Since(began); took > maxPause {
			t.Errorf("an idle follower took %v", took)
		}
		write(t, uri, "last\n")
		close(over)
		if err := <-done; err != nil {
			t.Error(err)
		}
		close(pieces)
		if got := <-pieces; got != "last\n" {
			t.Errorf("what was written right before the end: %q", got)
		}
	})
}

func TestReadEnds(t *testing.T) {
	s, _ := open(t)
	if err := s.Read(t.Context(), "ns", "none", ReadOptions{}, nil); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("no log: %v", err)
	}
	write(t, prepare(t, s, "ns", "c1"), "x\n")
	ctx, cancel := context.WithCancel(t.Context())
	err := s.Read(ctx, "ns", "c1", ReadOptions{Tail: -1, Ended: make(chan struct{})}, func(Batch) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	broken := errors.New("broken")
	if err := s.Read(t.Context(), "ns", "c1", ReadOptions{Tail: -1}, func(Batch) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("broken reader: %v", err)
	}
}

func TestRemoveAndSweep(t *testing.T) {
	s, dir := open(t)
	prepare(t, s, "ns", "kept")
	prepare(t, s, "ns", "gone")
	prepare(t, s, "other", "gone")
	if err := os.WriteFile(filepath.Join(dir, "stray"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	recorded := func(_ context.Context, _, id string) (bool, error) { return id == "kept", nil }
	if err := s.Remove(t.Context(), "ns", "kept", recorded); err != nil {
		t.Error(err)
	}
	failing := func(context.Context, string, string) (bool, error) { return false, errors.New("no database") }
	if err := s.Sweep(t.Context(), failing); err == nil {
		t.Error("a sweep that can't know said nothing")
	}
	var left []string
	list := func() {
		left = nil
		matches, err := filepath.Glob(filepath.Join(dir, "*", "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range matches {
			rel, _ := filepath.Rel(dir, m)
			left = append(left, rel)
		}
	}
	if list(); len(left) != 3 {
		t.Errorf("without knowledge it removed: left %v", left)
	}
	if err := s.Sweep(t.Context(), recorded); err != nil {
		t.Error(err)
	}
	if list(); len(left) != 1 || left[0] != "ns/kept" {
		t.Errorf("left %v", left)
	}
	if _, err := os.Stat(filepath.Join(dir, "other")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an empty namespace stays: %v", err)
	}
}
