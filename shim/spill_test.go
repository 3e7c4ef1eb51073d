package shim

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/leak"
)

// openReader opens a fifo as a client does.
func openReader(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// TestSpill has a reader that goes and one that comes: the writer is never
// blocked, and the second gets what the first did not read, in order.
func TestSpill(t *testing.T) {
	leak.Check(t)
	path, reader := fifo(t)
	s, child := openOutput(t, path)
	data := randomBytes(t, 5<<20)
	go func() { _, _ = child.Write(data[:1<<20]) }()
	first := make([]byte, 300<<10)
	if _, err := io.ReadFull(reader, first); err != nil {
		t.Fatal(err)
	}
	if err := reader.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first megabyte is taken", func() bool { return !s.out[0].pending() })
	if _, err := child.Write(data[1<<20 : 4<<20]); err != nil { // nobody reads
		t.Fatal(err)
	}
	second := openReader(t, path)
	go func() {
		_, _ = child.Write(data[4<<20:])
		_ = child.Close()
	}()
	rest, err := io.ReadAll(second)
	if got := append(first, rest...); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes, want %d, %v", len(got), len(data), err)
	}
	if !s.drain() {
		t.Error("not drained")
	}
}

// TestSpillSurvivesExit keeps the output of a process that has ended until a
// reader comes, and passes on its end.
func TestSpillSurvivesExit(t *testing.T) {
	leak.Check(t)
	for _, size := range []int{100, 300 << 10} {
		path := filepath.Join(t.TempDir(), "fifo")
		if err := unix.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
		s, child := openOutput(t, path)
		data := randomBytes(t, size)
		if _, err := child.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := child.Close(); err != nil {
			t.Fatal(err)
		}
		if !s.settle() {
			t.Error("not settled although there is room")
		}
		got, err := io.ReadAll(openReader(t, path))
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		if !s.drain() {
			t.Error("not drained")
		}
	}
}

// TestSpillReaderBack has a reader that leaves what the fifo holds unread: the next
// one gets it, also when the process has ended in between.
func TestSpillReaderBack(t *testing.T) {
	leak.Check(t)
	path, reader := fifo(t)
	s, child := openOutput(t, path)
	write(t, child, "kept in the fifo\n")
	eventually(t, "it is in the fifo", func() bool { return !s.out[0].pending() })
	if err := reader.Close(); err != nil {
		t.Fatal(err)
	}
	write(t, child, "kept in the spill\n")
	if err := child.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(openReader(t, path))
	if err != nil || string(got) != "kept in the fifo\nkept in the spill\n" {
		t.Errorf("%q, %v", got, err)
	}
	if !s.drain() {
		t.Error("not drained")
	}
}

// TestSpillAfterEnd has a reader that goes after the end, before it has read it.
func TestSpillAfterEnd(t *testing.T) {
	leak.Check(t)
	path, reader := fifo(t)
	s, child := openOutput(t, path)
	write(t, child, "unread\n")
	if err := child.Close(); err != nil {
		t.Fatal(err)
	}
	if !s.out[0].drain(inTime()) {
		t.Fatal("not ended")
	}
	if err := reader.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(openReader(t, path))
	if err != nil || string(got) != "unread\n" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestSpillFull writes more than is kept: the writer goes on, the oldest output is
// kept, and what was dropped is counted.
func TestSpillFull(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	notes := &lines{}
	s, err := openStreams(place{dir: t.TempDir(), log: notes.log()}, streamPaths{stdout: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	child, err := duplicate(s.child.Out)
	if err != nil {
		t.Fatal(err)
	}
	s.start()
	data := randomBytes(t, spillSize+3<<20)
	if _, err := child.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := child.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(openReader(t, path))
	// What was still in the container's pipe when the reader came follows.
	if err != nil || len(got) < spillSize || !bytes.Equal(got[:spillSize], data[:spillSize]) || !bytes.HasSuffix(data, got[spillSize:]) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if !s.drain() {
		t.Error("not drained")
	}
	if text := notes.text(); strings.Count(text, "\n") != 2 || !strings.Contains(text, fmt.Sprintf("lost_bytes=%d", len(data)-len(got))) {
		t.Errorf("%s", text)
	}
}

// TestSpillUnread has nobody come at all: Delete need not wait.
func TestSpillUnread(t *testing.T) {
	leak.Check(t)
	path, reader := fifo(t)
	s, child := openOutput(t, path)
	if err := reader.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := child.Write(make([]byte, 200<<10)); err != nil {
		t.Fatal(err)
	}
	if err := child.Close(); err != nil {
		t.Fatal(err)
	}
	until := inTime()
	if !s.drain() || inTime().Sub(until) > drainTime/2 {
		t.Error("not drained at once")
	}
}

// TestSlowReaderIsWaitedFor has a reader that is there and reads nothing: it is no
// matter for the spill.
func TestSlowReaderIsWaitedFor(t *testing.T) {
	leak.Check(t)
	path, reader := fifo(t)
	s, child := openOutput(t, path)
	written := make(chan struct{})
	data := randomBytes(t, 1<<20)
	go func() {
		defer close(written)
		_, _ = child.Write(data)
		_ = child.Close()
	}()
	if within(settleTime/5, written) {
		t.Error("the writer was not held up")
	}
	got, err := io.ReadAll(reader)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	<-written
	if !s.drain() {
		t.Error("not drained")
	}
}

// TestSpillRing goes around the file many times.
func TestSpillRing(t *testing.T) {
	leak.Check(t)
	s := newSpill(t.TempDir(), func(err error) { t.Error(err) })
	defer s.close()
	in, out := randomBytes(t, 7<<20), []byte(nil)
	buffer := make([]byte, 1<<20)
	var want []byte
	for range 12 {
		s.put(in)
		want = append(want, in...)
		for s.to-s.from > 8<<20 || s.to-s.from > 0 && len(want) == 12*len(in) {
			data, err := s.peek(buffer)
			if err != nil || len(data) == 0 {
				t.Fatal(len(data), err)
			}
			out = append(out, data...)
			s.took(len(data))
		}
	}
	if !bytes.Equal(out, want) || s.dropped != 0 {
		t.Errorf("%d bytes, want %d; %d dropped", len(out), len(want), s.dropped)
	}
	if info, err := s.file.Stat(); err != nil || info.Size() > spillSize {
		t.Errorf("a file of %d bytes, %v", info.Size(), err)
	}
}
