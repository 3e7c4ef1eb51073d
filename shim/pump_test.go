package shim

import (
	"bytes"
	"crypto/rand"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/leak"
)

// fifo makes a fifo and opens it for both directions.
func fifo(t *testing.T) (path string, end *os.File) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	end, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = end.Close() })
	return path, end
}

func quietLog() *slog.Logger { return slog.New(slog.DiscardHandler) }

// open opens streams with stdout at path and starts them; the container's end
// is returned.
func openOutput(t *testing.T, path string) (*streams, *os.File) {
	t.Helper()
	s, err := openStreams(place{dir: t.TempDir(), log: quietLog()}, streamPaths{stdout: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	child, err := duplicate(s.child.Out)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = child.Close() })
	s.start()
	return s, child
}

func randomBytes(t *testing.T, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

// TestPumpCarries splices more than the pipes hold.
func TestPumpCarries(t *testing.T) {
	leak.Check(t)
	path, reader := fifo(t)
	s, child := openOutput(t, path)
	if !s.out[0].splice {
		t.Fatal("pipe to fifo is not spliced")
	}
	data := randomBytes(t, 1<<20)
	go func() {
		_, _ = child.Write(data)
		_ = child.Close()
	}()
	got, err := io.ReadAll(reader)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if !s.drain() {
		t.Error("not drained")
	}
}

// TestManySmallWrites wants a fifo that nobody reads to hold as much of them as
// of large ones, so that an exit need not wait for a reader.
func TestManySmallWrites(t *testing.T) {
	leak.Check(t)
	path, reader := fifo(t)
	s, child := openOutput(t, path)
	const lines = 1000
	for range lines {
		if _, err := child.WriteString("0123456789\n"); err != nil {
			t.Fatal(err)
		}
		if s.out[0].pending() { // so that each is moved by itself
			time.Sleep(10 * time.Microsecond)
		}
	}
	if !s.settle() {
		t.Error("not settled")
	}
	if err := child.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(reader)
	if err != nil || len(got) != 11*lines {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// TestPumpToFile copies, to the end of what is there.
func TestPumpToFile(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(t.TempDir(), "dir", "log")
	data := randomBytes(t, 300<<10)
	for range 2 {
		s, child := openOutput(t, "file://"+path)
		if _, err := child.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := child.Close(); err != nil {
			t.Fatal(err)
		}
		if !s.drain() {
			t.Error("not drained")
		}
	}
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, append(data, data...)) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// TestFullDisk has a file that takes nothing: the writer must not notice.
func TestFullDisk(t *testing.T) {
	leak.Check(t)
	s, child := openOutput(t, "/dev/full")
	for range 4 {
		if _, err := child.Write(make([]byte, 100<<10)); err != nil {
			t.Fatal(err)
		}
	}
	if err := child.Close(); err != nil {
		t.Fatal(err)
	}
	if !s.drain() {
		t.Error("not drained")
	}
}

// TestSettle knows what is written from what is read, with a writer that stays.
func TestSettle(t *testing.T) {
	leak.Check(t)
	path, reader := fifo(t)
	s, child := openOutput(t, path)
	data := randomBytes(t, 48<<10)
	if _, err := child.Write(data); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if !s.settle() {
		t.Error("not settled")
	}
	if took := time.Since(start); took > settleTime/2 {
		t.Errorf("settling took %s", took)
	}
	got := make([]byte, len(data))
	if _, err := io.ReadFull(reader, got); err != nil || !bytes.Equal(got, data) {
		t.Error(err)
	}
	// With nobody reading, more than the fifo holds can't settle.
	if _, err := child.Write(make([]byte, 100<<10)); err != nil {
		t.Fatal(err)
	}
	if s.settle() {
		t.Error("settled beside a full fifo")
	}
}

// TestClosedWhileIdle ends pumps that wait, in either direction.
func TestClosedWhileIdle(t *testing.T) {
	leak.Check(t)
	out, _ := fifo(t)
	in, _ := fifo(t)
	s, err := openStreams(place{dir: t.TempDir(), log: quietLog()}, streamPaths{stdin: in, stdout: out, stderr: out})
	if err != nil {
		t.Fatal(err)
	}
	s.start()
	s.close()
	s.close()
}

// TestOpenFails leaves nothing open.
func TestOpenFails(t *testing.T) {
	leak.Check(t)
	good, _ := fifo(t)
	for _, paths := range []streamPaths{
		{stdin: "/no/such", stdout: good},
		{stdin: good, stdout: "/no/such"},
		{stdin: good, stdout: good, stderr: "/no/such"},
		{stdin: good, stdout: "other:///x"},
		{stdout: "file:///dev/null/x"},
		{stdout: "fifo://host" + good},
	} {
		if s, err := openStreams(place{dir: t.TempDir(), log: quietLog()}, paths); err == nil {
			s.close()
			t.Errorf("%+v: no error", paths)
		}
	}
}

// TestConsole takes a pty as runtimes send it, and refuses what is none.
func TestConsole(t *testing.T) {
	leak.Check(t)
	for _, count := range []int{0, 1, 2} {
		s, err := openStreams(place{dir: t.TempDir(), log: quietLog()}, streamPaths{terminal: true})
		if err != nil {
			t.Fatal(err)
		}
		master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
		if err != nil {
			t.Fatal(err)
		}
		fd := int(master.Fd()) // once: it makes the terminal blocking, for the streams too
		fds := make([]int, count)
		for i := range fds {
			fds[i] = fd
		}
		send(t, s.socket(), fds)
		err = s.attach()
		if (err == nil) != (count == 1) {
			t.Errorf("%d descriptors: %v", count, err)
		}
		if err == nil {
			s.start()
			if err := s.console.resize(90, 40); err != nil {
				t.Error(err)
			}
			size, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
			if err != nil || size.Col != 90 || size.Row != 40 {
				t.Errorf("%+v, %v", size, err)
			}
		}
		s.close()
		if err := master.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// send sends descriptors to a console socket.
func send(t *testing.T, path string, fds []int) {
	t.Helper()
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(socket)
	if err := unix.Connect(socket, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if err := unix.Sendmsg(socket, []byte("/dev/ptmx"), rights, nil, 0); err != nil {
		t.Fatal(err)
	}
}

// TestLongBundlePath has a console socket that does not fit beside the bundle.
func TestLongBundlePath(t *testing.T) {
	leak.Check(t)
	dir := filepath.Join(t.TempDir(), string(bytes.Repeat([]byte("x"), 100)))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	c, err := listenConsole(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.path) > maxSocketPath {
		t.Errorf("socket at %s", c.path)
	}
	temp := c.temp
	c.close()
	if _, err := os.Stat(temp); err == nil {
		t.Error("directory is left")
	}
}

// BenchmarkPump moves a stream from pipe to fifo.
func BenchmarkPump(b *testing.B) {
	path := filepath.Join(b.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		b.Fatal(err)
	}
	reader, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer reader.Close()
	s, err := openStreams(place{dir: b.TempDir(), log: quietLog()}, streamPaths{stdout: path})
	if err != nil {
		b.Fatal(err)
	}
	defer s.close()
	child, err := duplicate(s.child.Out)
	if err != nil {
		b.Fatal(err)
	}
	defer child.Close()
	s.start()
	in, out := make([]byte, 64<<10), make([]byte, 64<<10)
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := child.Write(in); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(reader, out); err != nil {
			b.Fatal(err)
		}
	}
}

// inTime is when something should have happened.
func inTime() time.Time { return time.Now().Add(drainTime) }

// lines collects what is logged.
type lines struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (l *lines) log() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// Write takes a line.
func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(p)
}

func (l *lines) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.String()
}
