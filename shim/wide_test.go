package shim

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/leak"
)

// pipeSize is what a pipe holds.
func pipeSize(t *testing.T, f *os.File) (size int) {
	t.Helper()
	conn, err := f.SyscallConn()
	if err == nil {
		cerr := conn.Control(func(fd uintptr) { size, err = unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0) })
		if cerr != nil {
			err = cerr
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return size
}

// becomes waits until a pipe holds as much.
func becomes(t *testing.T, f *os.File, want int) {
	t.Helper()
	for end := time.Now().Add(5 * wideTime); pipeSize(t, f) != want; time.Sleep(wideTime / 20) {
		if time.Now().After(end) {
			t.Fatalf("it holds %d bytes, not %d", pipeSize(t, f), want)
		}
	}
}

// TestWide has pipes made larger for a stream that carries much, and as they were
// once it is quiet.
func TestWide(t *testing.T) {
	leak.Check(t)
	path, reader := fifo(t)
	s, child := openOutput(t, path)
	before := pipeSize(t, child)
	if before >= widePipe {
		t.Skipf("a pipe holds %d bytes", before)
	}
	data := randomBytes(t, 4*wideAbove)
	for range 2 {
		go func() { _, _ = child.Write(data) }()
		got := make([]byte, len(data))
		if _, err := io.ReadFull(reader, got); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("other bytes, %v", err)
		}
		for _, f := range []*os.File{child, reader} {
			if size := pipeSize(t, f); size != widePipe {
				t.Errorf("it holds %d bytes meanwhile", size)
			}
		}
		becomes(t, child, before)
		becomes(t, reader, before)
	}
	if err := child.Close(); err != nil {
		t.Fatal(err)
	}
	if !s.drain() {
		t.Error("not drained")
	}
}

// TestWideUnread has a reader that comes late for what is in larger pipes, which
// stay as large until there is room.
func TestWideUnread(t *testing.T) {
	leak.Check(t)
	path, reader := fifo(t)
	_, child := openOutput(t, path)
	before := pipeSize(t, child)
	if before >= widePipe {
		t.Skipf("a pipe holds %d bytes", before)
	}
	data := randomBytes(t, 4*wideAbove+widePipe)
	written := make(chan error, 1)
	go func() {
		_, err := child.Write(data)
		written <- err
	}()
	got := make([]byte, len(data))
	if _, err := io.ReadFull(reader, got[:4*wideAbove]); err != nil {
		t.Fatal(err)
	}
	if err := <-written; err != nil { // both pipes have room for the rest
		t.Fatal(err)
	}
	time.Sleep(3 * wideTime / 2)
	if _, err := io.ReadFull(reader, got[4*wideAbove:]); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("other bytes, %v", err)
	}
	becomes(t, child, before)
	becomes(t, reader, before)
}

// TestWideAlready leaves alone what a client has made larger itself, and a file
// that is no pipe.
func TestWideAlready(t *testing.T) {
	leak.Check(t)
	path, reader := fifo(t)
	own, err := unix.FcntlInt(reader.Fd(), unix.F_SETPIPE_SZ, 2*widePipe)
	if err != nil {
		t.Skip(err)
	}
	if err := unix.SetNonblock(int(reader.Fd()), true); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{path, "file://" + filepath.Join(t.TempDir(), "out")} {
		s, child := openOutput(t, to)
		before := pipeSize(t, child)
		go func() {
			_, _ = child.Write(make([]byte, 4*wideAbove))
			_ = child.Close()
		}()
		if to == path {
			if _, err := io.CopyN(io.Discard, reader, 4*wideAbove); err != nil {
				t.Fatal(err)
			}
		}
		if !s.drain() {
			t.Error("not drained")
		}
		if p := s.out[0]; before < widePipe && (p.width.begun.IsZero() || p.width.dst != 0) {
			t.Errorf("%s: %+v", to, p.width)
		}
	}
	if size := pipeSize(t, reader); size != own {
		t.Errorf("a fifo that was made to hold %d bytes holds %d", own, size)
	}
}

// TestWideLine has the beginning of a line in the log in time though pipes are to
// be looked at later.
func TestWideLine(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(t.TempDir(), "log")
	s, stdout, stderr := logStreams(t, "log://"+path+"?max-size=0", quietLog())
	before := pipeSize(t, stdout)
	line := strings.Repeat("x", 99) + "\n"
	if _, err := stdout.WriteString(strings.Repeat(line, 4*wideAbove/len(line)) + "begun"); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(wideTime / 2); ; time.Sleep(partialTime / 10) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.HasSuffix(data, []byte(" stdout P begun\n")) {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the beginning of a line is not in the log")
		}
	}
	becomes(t, stdout, before)
	finish(t, s, stdout, stderr)
}
