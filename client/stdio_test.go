package client

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berthd/berth/internal/leak"
)

// fifoClient is a client good for NewStdio only.
func fifoClient(t *testing.T) *Client {
	t.Helper()
	return &Client{fifoDir: filepath.Join(t.TempDir(), "fifo")}
}

func newStdio(t *testing.T, c *Client, streams Streams) *Stdio {
	t.Helper()
	s, err := c.NewStdio("x", streams)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if entries, err := os.ReadDir(c.fifoDir); err != nil || len(entries) > 0 {
			t.Errorf("left: %v, %v", entries, err)
		}
	})
	return s
}

func openWriter(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestStdioWaitsForTheFirstWriter(t *testing.T) {
	leak.Check(t)
	var out buffer
	s := newStdio(t, fifoClient(t), Streams{Out: &out})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("the output ended before anybody wrote: %v", err)
	}
	_, path, _ := s.paths()
	w := openWriter(t, path)
	if _, err := io.WriteString(w, "late"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if err := s.Drain(t.Context()); err != nil || out.String() != "late" {
		t.Errorf("got %q, %v", out.String(), err)
	}
}

func TestStdioEndsWithoutOutput(t *testing.T) {
	var out buffer
	s := newStdio(t, fifoClient(t), Streams{Out: &out})
	_, path, _ := s.paths()
	openWriter(t, path).Close()
	if err := s.Drain(t.Context()); err != nil || out.Len() != 0 {
		t.Errorf("got %q, %v", out.String(), err)
	}
}

func TestStdioCloseBeforeAnything(t *testing.T) {
	leak.Check(t)
	var out buffer
	s := newStdio(t, fifoClient(t), Streams{In: strings.NewReader("x"), Out: &out, Err: &out})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Drain(t.Context()); err != nil {
		t.Error(err)
	}
}

// failingWriter fails as a closed pipe does.
type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestStdioGoesOnReadingWhenNobodyListens(t *testing.T) {
	var failures atomic.Int32
	s := newStdio(t, fifoClient(t), Streams{Out: failingWriter{}, Failed: func(err error) {
		if errors.Is(err, io.ErrClosedPipe) {
			failures.Add(1)
		}
	}})
	_, path, _ := s.paths()
	w := openWriter(t, path)
	if _, err := w.Write(make([]byte, 1<<20)); err != nil { // blocks if nobody reads
		t.Fatal(err)
	}
	w.Close()
	if err := s.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if failures.Load() != 1 {
		t.Errorf("told %d times", failures.Load())
	}
}

func TestStdioFeed(t *testing.T) {
	leak.Check(t)
	s := newStdio(t, fifoClient(t), Streams{In: strings.NewReader(strings.Repeat("i", 200<<10))})
	path, _, _ := s.paths()
	r, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ended := make(chan struct{})
	s.feed(func() { close(ended) })
	s.feed(func() { t.Error("fed twice") })
	data, err := io.ReadAll(r) // ends when the client's end is closed
	if err != nil || len(data) != 200<<10 {
		t.Errorf("%d bytes, %v", len(data), err)
	}
	<-ended
}

func TestStdioFeedIsCutOffByClose(t *testing.T) {
	leak.Check(t)
	s := newStdio(t, fifoClient(t), Streams{In: strings.NewReader(strings.Repeat("i", 200<<10))})
	s.feed(func() { t.Error("the end of input was told, but nobody read it") })
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestStdioDirectoriesArePrivate(t *testing.T) {
	c := fifoClient(t)
	s := newStdio(t, c, Streams{In: strings.NewReader("")})
	for _, dir := range []string{c.fifoDir, s.dir} {
		info, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o700 {
			t.Errorf("%s has mode %v", dir, info.Mode())
		}
	}
}
