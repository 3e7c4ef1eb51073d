package shim

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	api "github.com/berthd/berth/api/berth/shim/v1"
	task "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/internal/attach"
)

// visitor is an attached client.
type visitor struct {
	t    *testing.T
	conn *net.UnixConn
	in   *attach.Reader
	out  *attach.Writer
	seen map[attach.Kind]*bytes.Buffer
}

// logged creates the task "c" with its output in a log.
func (b *bench) logged(query string) {
	b.t.Helper()
	uri := "log://" + filepath.Join(b.bundle, "log") + query
	if _, err := b.Create(b.ctx(), &task.CreateTaskRequest{Id: "c", Bundle: b.bundle, Stdout: uri, Stderr: uri}); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(b.attached.Wait)
}

// visit attaches to the task.
func (b *bench) visit(input bool) *visitor {
	b.t.Helper()
	answer, err := b.Attach(b.ctx(), &api.AttachRequest{Id: "c", Input: input})
	if err != nil {
		b.t.Fatal(err)
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: answer.Socket, Net: "unix"})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	return &visitor{t: b.t, conn: conn, in: attach.NewReader(conn), out: attach.NewWriter(conn), seen: map[attach.Kind]*bytes.Buffer{}}
}

// read reads a frame.
func (v *visitor) read() (attach.Kind, error) {
	kind, data, err := v.in.Read()
	if err == nil {
		if v.seen[kind] == nil {
			v.seen[kind] = &bytes.Buffer{}
		}
		v.seen[kind].Write(data)
	}
	return kind, err
}

func (v *visitor) text(kind attach.Kind) string {
	if v.seen[kind] == nil {
		return ""
	}
	return v.seen[kind].String()
}

// expect reads until output has come.
func (v *visitor) expect(want string) {
	v.t.Helper()
	for !strings.Contains(v.text(attach.Stdout), want) {
		if _, err := v.read(); err != nil {
			v.t.Fatalf("%v; wanted %q, have %q", err, want, v.text(attach.Stdout))
		}
	}
}

// end reads to the end.
func (v *visitor) end() {
	v.t.Helper()
	for {
		if _, err := v.read(); err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
				v.t.Error(err)
			}
			return
		}
	}
}

func (v *visitor) say(kind attach.Kind, data []byte) {
	v.t.Helper()
	if err := v.out.Write(kind, data); err != nil {
		v.t.Fatal(err)
	}
}

// TestAttach has several clients see what is written from now on, and the exit.
func TestAttach(t *testing.T) {
	for _, format := range []string{"cri", "raw", "json"} {
		b := newBench(t, `read x; echo "got $x"; echo oops >&2; seq 1 20000; printf end; exit 7`)
		b.logged("?input=true&format=" + format)
		if err := b.start(""); err != nil {
			t.Fatal(err)
		}
		one, two := b.visit(true), b.visit(false)
		one.say(attach.Input, []byte("hello\n"))
		one.end()
		two.end()
		for _, v := range []*visitor{one, two} {
			out := v.text(attach.Stdout)
			if !strings.HasPrefix(out, "got hello\n1\n2\n") || !strings.HasSuffix(out, "\n20000\nend") || strings.Count(out, "\n") != 20001 {
				t.Errorf("%s: %d bytes", format, len(out))
			}
			if got := v.text(attach.Stderr); got != "oops\n" {
				t.Errorf("stderr %q", got)
			}
			if status, at, err := attach.DecodeExit([]byte(v.text(attach.Exit))); err != nil || status != 7 || at.IsZero() {
				t.Errorf("%d %v %v", status, at, err)
			}
		}
	}
}

// TestAttachInput is one client's at a time; a client that hangs up leaves it to
// the next, EndInput ends it.
func TestAttachInput(t *testing.T) {
	b := newBench(t, `cat; echo over`)
	b.logged("?input=true")
	if err := b.start(""); err != nil {
		t.Fatal(err)
	}
	one := b.visit(true)
	if _, err := b.Attach(b.ctx(), &api.AttachRequest{Id: "c", Input: true}); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "another client") {
		t.Errorf("a second one: %v", err)
	}
	one.say(attach.Input, []byte("first\n"))
	one.expect("first\n")
	if err := one.conn.Close(); err != nil {
		t.Fatal(err)
	}
	var two *visitor
	eventually(t, "the input is free", func() bool {
		c, p, err := b.find("c", "")
		if err != nil {
			t.Fatal(err)
		}
		streams := c.streamsOf(p)
		streams.input.mu.Lock()
		defer streams.input.mu.Unlock()
		return !streams.input.taken
	})
	two = b.visit(true)
	big := bytes.Repeat([]byte("0123456789abcde\n"), 20_000)
	go func() {
		_ = two.out.Write(attach.Input, big)
		_ = two.out.Write(attach.EndInput, nil)
	}()
	two.end()
	if got := two.text(attach.Stdout); got != string(big)+"over\n" {
		t.Errorf("%d bytes", len(got))
	}
}

// TestAttachStuckInput has a client that sends what nobody reads, and goes: the
// input is free for the next.
func TestAttachStuckInput(t *testing.T) {
	b := newBench(t, `exec sleep 1000`)
	b.logged("?input=true")
	if err := b.start(""); err != nil {
		t.Fatal(err)
	}
	one := b.visit(true)
	_ = one.conn.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	if err := one.out.Write(attach.Input, make([]byte, 4<<20)); err == nil {
		t.Fatal("four megabytes went where nobody reads")
	}
	if err := one.conn.Close(); err != nil {
		t.Fatal(err)
	}
	b.attached.Wait()
	two := b.visit(true)
	if err := two.conn.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestAttachSlow cuts off a client that does not read, and tells it why; neither
// the container nor another client notices.
func TestAttachSlow(t *testing.T) {
	b := newBench(t, `read x; head -c 8000000 /dev/zero; echo done; read x`)
	b.logged("?input=true&format=raw")
	if err := b.start(""); err != nil {
		t.Fatal(err)
	}
	slow := b.visit(false)
	b2 := b.visit(true)
	b2.say(attach.Input, []byte("go\n"))
	log := filepath.Join(b.bundle, "log")
	for b2.seen[attach.Stdout] == nil || !bytes.HasSuffix(b2.seen[attach.Stdout].Bytes(), []byte("done\n")) {
		if kind, err := b2.read(); err != nil || kind == attach.Failure {
			// On a busy machine this one may fall behind as well.
			break
		}
	}
	eventually(t, "the log is complete", func() bool { return strings.HasSuffix(readFile(t, log), "done\n") })
	slow.end()
	if got := slow.text(attach.Failure); !strings.Contains(got, "512 KiB behind") {
		t.Errorf("%q", got)
	}
	if n := len(slow.text(attach.Stdout)); n == 0 || n > 4<<20 {
		t.Errorf("%d bytes before the cut", n)
	}
}

// TestAttachRefused names what is missing.
func TestAttachRefused(t *testing.T) {
	b := newBench(t, "exit 0")
	b.mustCreate()
	_, err := b.Attach(b.ctx(), &api.AttachRequest{Id: "c"})
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "neither a log nor a terminal") {
		t.Error(err)
	}
	if _, err := b.ReopenLog(b.ctx(), &api.ReopenLogRequest{Id: "c"}); !errdefs.IsFailedPrecondition(err) {
		t.Error(err)
	}
	if _, err := b.Attach(b.ctx(), &api.AttachRequest{Id: "other"}); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	b.end()

	b = newBench(t, "exec sleep 1000")
	b.logged("")
	if answer, err := b.Attach(b.ctx(), &api.AttachRequest{Id: "c", Input: true}); err != nil || answer.Input {
		t.Errorf("%v, %v: there is no input", answer, err)
	} else if conn, err := net.Dial("unix", answer.Socket); err == nil {
		_ = conn.Close()
	}
	if _, err := b.ReopenLog(b.ctx(), &api.ReopenLogRequest{Id: "c"}); err != nil {
		t.Error(err)
	}
	if err := b.kill(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := b.wait(""); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Attach(b.ctx(), &api.AttachRequest{Id: "c"}); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "has ended") {
		t.Error(err)
	}
	left, err := filepath.Glob(filepath.Join(b.bundle, "attach-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
	_ = os.Remove(filepath.Join(b.bundle, "log"))
}
