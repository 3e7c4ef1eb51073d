package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	task "github.com/berthd/berth/api/runtime/task/v3"
)

// reader is a client's end of an output fifo.
type reader struct {
	t    *testing.T
	path string
	file *os.File

	mu      sync.Mutex
	data    []byte
	changed chan struct{}
	ended   chan struct{}
}

// newReader makes a fifo and reads it as clients do, who open it before Create.
func newReader(t *testing.T, path string) *reader {
	t.Helper()
	if err := unix.Mkfifo(path, 0o700); err != nil {
		t.Fatal(err)
	}
	r := &reader{t: t, path: path}
	r.open()
	t.Cleanup(r.close)
	return r
}

func (r *reader) open() {
	var err error
	if r.file, err = os.OpenFile(r.path, os.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
		r.t.Fatal(err)
	}
	r.changed, r.ended = make(chan struct{}), make(chan struct{})
	go r.read(r.file, r.ended)
}

// read collects. A fifo that no writer has opened yet reads as ended, so an end
// counts only once there was a writer.
func (r *reader) read(f *os.File, ended chan struct{}) {
	defer close(ended)
	buffer := make([]byte, 32<<10)
	for {
		n, err := f.Read(buffer)
		if err == io.EOF && !r.writerCame(f) {
			time.Sleep(time.Millisecond)
			continue
		}
		r.mu.Lock()
		r.data = append(r.data, buffer[:n]...)
		close(r.changed)
		r.changed = make(chan struct{})
		r.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// writerCame tells whether somebody wrote, or closed after having been there.
func (r *reader) writerCame(f *os.File) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.data) > 0 || hung(f)
}

// hung asks poll(2) whether the last writer left.
func hung(f *os.File) bool {
	conn, err := f.SyscallConn()
	if err != nil {
		return true
	}
	var fds [1]unix.PollFd
	if conn.Control(func(fd uintptr) {
		fds[0] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
		_, _ = unix.Poll(fds[:], 0)
	}) != nil {
		return true
	}
	return fds[0].Revents&unix.POLLHUP != 0
}

// close goes away.
func (r *reader) close() {
	_ = r.file.Close()
	<-r.ended
}

// text is what has been read.
func (r *reader) text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return string(r.data)
}

// until waits for a condition on what has been read.
func (r *reader) until(what string, ok func(text string) bool) {
	r.t.Helper()
	deadline := time.After(patience)
	for {
		r.mu.Lock()
		text, changed := string(r.data), r.changed
		r.mu.Unlock()
		if ok(text) {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			r.t.Fatalf("%s: read %q", what, text)
		}
	}
}

// expect waits for a text.
func (r *reader) expect(want string) {
	r.t.Helper()
	r.until("want "+want, func(text string) bool { return strings.Contains(text, want) })
}

// end waits for the end of the stream and returns everything.
func (r *reader) end() string {
	r.t.Helper()
	select {
	case <-r.ended:
	case <-time.After(patience):
		r.t.Fatalf("stream does not end after %q", r.text())
	}
	return r.text()
}

// clientIO are a client's fifos for one process.
type clientIO struct {
	t              *testing.T
	dir            string
	stdout, stderr *reader
}

func newClientIO(t *testing.T) *clientIO {
	t.Helper()
	dir := shortDir(t)
	return &clientIO{t: t, dir: dir, stdout: newReader(t, filepath.Join(dir, "out")), stderr: newReader(t, filepath.Join(dir, "err"))}
}

// stdin makes the stdin fifo. The client's end is opened once the shim has its
// own, as opening to write needs a reader.
func (c *clientIO) stdin() string {
	path := filepath.Join(c.dir, "in")
	if err := unix.Mkfifo(path, 0o700); err != nil {
		c.t.Fatal(err)
	}
	return path
}

func (c *clientIO) openStdin(path string) *os.File {
	c.t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = f.Close() })
	return f
}

// TestOutputComplete prints 64 KiB and exits at once, often: every byte is
// there when Delete has answered.
func TestOutputComplete(t *testing.T) {
	const rounds, size = 40, 64 << 10
	f := container(t, "sleep", "1000")
	f.run(&task.CreateTaskRequest{})
	for i := range rounds {
		id := fmt.Sprintf("e%d", i)
		c := newClientIO(t)
		f.exec(id, &task.ExecProcessRequest{Stdout: c.stdout.path, Stderr: c.stderr.path}, "sh", "-c",
			fmt.Sprintf("head -c %d /bin/busybox; head -c %d /bin/busybox >&2", size, size))
		f.startTask(id)
		f.wait(id, 0)
		f.delete(id)
		want, err := os.ReadFile(filepath.Join(rootfs, "bin", "busybox"))
		if err != nil {
			t.Fatal(err)
		}
		for name, r := range map[string]*reader{"stdout": c.stdout, "stderr": c.stderr} {
			if got := r.end(); got != string(want[:size]) {
				t.Fatalf("round %d: %s has %d bytes, want %d", i, name, len(got), size)
			}
		}
	}
	f.kill("", unix.SIGKILL)
	f.wait("", 137)
	f.delete("")
	f.shutdown()
}

// TestInitOutputComplete is the same for init, with a container each.
func TestInitOutputComplete(t *testing.T) {
	for range 5 {
		c := newClientIO(t)
		f := container(t, "sh", "-c", "seq 1 20000; echo end >&2")
		f.run(&task.CreateTaskRequest{Stdout: c.stdout.path, Stderr: c.stderr.path})
		f.wait("", 0)
		f.delete("")
		out := c.stdout.end()
		if lines := strings.Count(out, "\n"); lines != 20000 || !strings.HasSuffix(out, "\n20000\n") || c.stderr.end() != "end\n" {
			t.Fatalf("%d lines, stderr %q", lines, c.stderr.text())
		}
		f.shutdown()
	}
}

// TestStdin feeds a container and ends its input with CloseIO.
func TestStdin(t *testing.T) {
	c := newClientIO(t)
	f := container(t, "sh", "-c", "cat; echo done")
	path := c.stdin()
	f.create(&task.CreateTaskRequest{Stdin: path, Stdout: c.stdout.path})
	in := c.openStdin(path)
	f.startTask("")
	if _, err := in.WriteString("hello\n"); err != nil {
		t.Fatal(err)
	}
	c.stdout.expect("hello\n")
	// A client that goes away and comes back is no end of input.
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	in = c.openStdin(path)
	big := bytes.Repeat([]byte("0123456789abcde\n"), 1<<14) // more than a pipe holds
	sum := sha256.Sum256(append([]byte("hello\n"), big...))
	go func() {
		_, _ = in.Write(big)
		_, _ = f.task.CloseIO(f.ctx(), &task.CloseIORequest{Id: f.id, Stdin: true})
		_ = in.Close()
	}()
	f.wait("", 0)
	f.delete("")
	got := strings.TrimSuffix(c.stdout.end(), "done\n")
	if sha256.Sum256([]byte(got)) != sum {
		t.Fatalf("%d bytes came through, want %d", len(got), len(big)+6)
	}
	f.shutdown()
}

// TestReaderGoesAway wants a container to go on when nobody reads it, and the
// next reader to get what follows.
func TestReaderGoesAway(t *testing.T) {
	c := newClientIO(t)
	f := container(t, "sh", "-c", "echo one; while [ ! -e /tmp/go ]; do sleep 0.01; done; echo two; exit 4")
	work := t.TempDir()
	f.setMount(work, "/tmp")
	f.run(&task.CreateTaskRequest{Stdout: c.stdout.path})
	c.stdout.expect("one\n")
	c.stdout.close()
	if err := os.WriteFile(filepath.Join(work, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f.wait("", 4)
	c.stdout.open()
	c.stdout.expect("two\n")
	f.delete("")
	f.shutdown()
}

// TestSlowReader has a reader that stopped reading: the exit is told
// nevertheless.
func TestSlowReader(t *testing.T) {
	dir := shortDir(t)
	path := filepath.Join(dir, "out")
	if err := unix.Mkfifo(path, 0o700); err != nil {
		t.Fatal(err)
	}
	stuck, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer stuck.Close()
	f := container(t, "head", "-c", "131072", "/bin/busybox") // fills both pipes
	f.run(&task.CreateTaskRequest{Stdout: path})
	f.wait("", 0)
	go func() { _, _ = io.Copy(io.Discard, stuck) }() // so that delete need not wait for its bound
	f.delete("")
	f.shutdown()
}

// TestFile appends both streams to a file whose directory is missing.
func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b", "log")
	f := container(t, "sh", "-c", "echo out; echo err >&2")
	for range 2 {
		f.run(&task.CreateTaskRequest{Stdout: "file://" + path, Stderr: "file://" + path})
		f.wait("", 0)
		f.delete("")
	}
	data, err := os.ReadFile(path)
	if text := string(data); err != nil || strings.Count(text, "out\n") != 2 || strings.Count(text, "err\n") != 2 || len(text) != 16 {
		t.Fatalf("%q, %v", text, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o644 {
		t.Fatal(info.Mode(), err)
	}
	if info, err := os.Stat(filepath.Dir(path)); err != nil || info.Mode().Perm() != 0o755 {
		t.Fatal(info.Mode(), err)
	}
	f.shutdown()
}

// TestBadStdio wants clear errors, and a create that works afterwards.
func TestBadStdio(t *testing.T) {
	f := container(t, "true")
	for text, want := range map[string]codes.Code{
		"other:///bin/true":    codes.Unimplemented,
		"binary:///no/such":    codes.Unknown,
		"log:///dev/null/x":    codes.Unknown,
		"fifo:///no/such/fifo": codes.Unknown,
		"file://relative/path": codes.InvalidArgument,
		"fifo://%zz":           codes.InvalidArgument,
	} {
		_, err := f.tryCreate(&task.CreateTaskRequest{Stdout: text})
		code(t, text, err, want)
		_, name, _ := strings.Cut(text, "//")
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: error does not name it: %v", text, err)
		}
	}
	f.run(&task.CreateTaskRequest{})
	f.wait("", 0)
	f.delete("")
	f.shutdown()
}

// TestTerminal runs a shell on a pty.
func TestTerminal(t *testing.T) {
	c := newClientIO(t)
	f := newFixture(t, func(id string) any {
		sp := spec(id, "sh")
		sp["process"].(map[string]any)["terminal"] = true
		return sp
	})
	path := c.stdin()
	f.create(&task.CreateTaskRequest{Terminal: true, Stdin: path, Stdout: c.stdout.path})
	in := c.openStdin(path)
	if _, err := f.task.ResizePty(f.ctx(), &task.ResizePtyRequest{Id: f.id, Width: 97, Height: 31}); err != nil {
		t.Fatal(err)
	}
	f.startTask("")
	say := func(line string) {
		if _, err := in.WriteString(line + "\n"); err != nil {
			t.Fatal(err)
		}
	}
	say("stty size")
	c.stdout.expect("31 97")
	if _, err := f.task.ResizePty(f.ctx(), &task.ResizePtyRequest{Id: f.id, Width: 80, Height: 24}); err != nil {
		t.Fatal(err)
	}
	say("stty size")
	c.stdout.expect("24 80")

	// An exec on a terminal of its own.
	e := newClientIO(t)
	f.exec("e1", &task.ExecProcessRequest{Terminal: true, Stdout: e.stdout.path}, "sh", "-c", "tty; seq 1 3000; exit 6")
	f.startTask("e1")
	f.wait("e1", 6)
	f.delete("e1")
	if out := e.stdout.end(); !strings.Contains(out, "/dev/pts/") || !strings.HasSuffix(out, "\r\n3000\r\n") {
		t.Fatalf("exec printed %q", out)
	}
	say("exit 5")
	f.wait("", 5)
	f.delete("")
	c.stdout.end()
	f.shutdown()
}

// setMount adds a bind mount to the container's spec.
func (f *fixture) setMount(source, destination string) {
	f.t.Helper()
	sp := spec(f.id)
	data, err := os.ReadFile(filepath.Join(f.bundle, "config.json"))
	if err == nil {
		err = json.Unmarshal(data, &sp)
	}
	if err != nil {
		f.t.Fatal(err)
	}
	sp["mounts"] = append(sp["mounts"].([]any), map[string]any{"destination": destination, "type": "bind", "source": source, "options": []string{"bind"}})
	if data, err = json.Marshal(sp); err == nil {
		err = os.WriteFile(filepath.Join(f.bundle, "config.json"), data, 0o600)
	}
	if err != nil {
		f.t.Fatal(err)
	}
}
