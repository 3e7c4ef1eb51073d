package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	api "github.com/berthd/berth/api/berth/shim/v1"
	"github.com/berthd/berth/api/berth/shim/v1/shimttrpc"
	task "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/internal/attach"
)

// unCRI gives what one stream wrote from a log of format cri.
func unCRI(t *testing.T, path, stream string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(data)) {
		parts := strings.SplitN(line, " ", 4)
		if len(parts) != 4 {
			t.Fatalf("no entry: %q", line)
		}
		if parts[1] != stream {
			continue
		}
		if parts[2] == "P" {
			parts[3] = strings.TrimSuffix(parts[3], "\n")
		}
		out.WriteString(parts[3])
	}
	return out.String()
}

// shortVariable says how many containers TestOutputOfShortContainers runs each way.
const shortVariable = "BERTH_TEST_SHORT_CONTAINERS"

// TestOutputOfShortContainers runs containers that print 64 KiB and exit at once:
// every byte arrives, through fifo, file and log.
func TestOutputOfShortContainers(t *testing.T) {
	count := 30
	if text := os.Getenv(shortVariable); text != "" {
		var err error
		if count, err = strconv.Atoi(text); err != nil {
			t.Fatalf("%s: %v", shortVariable, err)
		}
	}
	const size = 64 << 10
	busybox, err := os.ReadFile(filepath.Join(rootfs, "bin", "busybox"))
	if err != nil {
		t.Fatal(err)
	}
	want := string(busybox[:size])
	for _, way := range []string{"fifo", "file", "log"} {
		t.Run(way, func(t *testing.T) {
			for i := range count {
				f := container(t, "head", "-c", strconv.Itoa(size), "/bin/busybox")
				path := filepath.Join(shortDir(t), "out")
				r := &task.CreateTaskRequest{Stdout: way + "://" + path}
				got := func() string { return unCRI(t, path, "stdout") }
				switch way {
				case "fifo":
					reader := newReader(t, path)
					got = reader.end
				case "file":
					got = func() string {
						data, err := os.ReadFile(path)
						if err != nil {
							t.Fatal(err)
						}
						return string(data)
					}
				}
				f.run(r)
				f.wait("", 0)
				if way != "fifo" { // whose reader may be behind
					if text := got(); text != want {
						t.Fatalf("container %d: %d bytes when its exit is told, want %d", i, len(text), size)
					}
				}
				f.delete("")
				if text := got(); text != want {
					t.Fatalf("container %d: %d bytes, want %d", i, len(text), size)
				}
				f.shutdown()
			}
		})
	}
}

// TestLog runs a container whose output the shim logs itself, twice, and an exec
// with another log.
func TestLog(t *testing.T) {
	f := container(t, "sh", "-c", "echo out; echo err >&2; sleep 1000")
	path := filepath.Join(t.TempDir(), "a", "log")
	uri := "log://" + path + "?format=cri&max-size=65536&max-files=2"
	for range 2 {
		f.run(&task.CreateTaskRequest{Stdout: uri, Stderr: uri})
		other := filepath.Join(t.TempDir(), "raw")
		f.exec("e1", &task.ExecProcessRequest{Stdout: "log://" + other + "?format=raw"}, "sh", "-c", "seq 1 1000; printf end >&2")
		f.startTask("e1")
		f.wait("e1", 0)
		data, err := os.ReadFile(other)
		if err != nil || strings.Count(string(data), "\n") != 1000 || !strings.Contains(string(data), "end") {
			t.Fatalf("%d bytes, %v", len(data), err)
		}
		f.delete("e1")
		f.kill("", unix.SIGKILL)
		f.wait("", 137)
		f.delete("")
	}
	if out, err := unCRI(t, path, "stdout"), unCRI(t, path, "stderr"); out != "out\nout\n" || err != "err\nerr\n" {
		t.Errorf("%q, %q", out, err)
	}
	f.shutdown()
}

// attachTo attaches to a process.
func (f *fixture) attachTo(exec string, input bool) (*net.UnixConn, *api.AttachResponse) {
	f.t.Helper()
	answer, err := shimttrpc.NewStreamsClient(f.conn).Attach(f.ctx(), &api.AttachRequest{Id: f.id, ExecId: exec, Input: input})
	if err != nil {
		f.t.Fatal(err)
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: answer.Socket, Net: "unix"})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	return conn, answer
}

// TestAttachTerminal sees, feeds and resizes a terminal whose output goes to a log.
// The last words arrive although the shim leaves at once.
func TestAttachTerminal(t *testing.T) {
	f := newFixture(t, func(id string) any {
		sp := spec(id, "sh")
		sp["process"].(map[string]any)["terminal"] = true
		return sp
	})
	path := filepath.Join(t.TempDir(), "log")
	f.create(&task.CreateTaskRequest{Terminal: true, Stdout: "log://" + path + "?input=true"})
	conn, answer := f.attachTo("", true) // before the start, so as to see all
	f.startTask("")
	if !answer.Terminal || !answer.Input {
		t.Errorf("%v", answer)
	}
	out := attach.NewWriter(conn)
	for _, frame := range []struct {
		kind attach.Kind
		data []byte
	}{{attach.Resize, attach.EncodeSize(91, 37)}, {attach.Input, []byte("stty size; exit 9\n")}} {
		if err := out.Write(frame.kind, frame.data); err != nil {
			t.Fatal(err)
		}
	}
	f.wait("", 9)
	f.delete("")
	f.shutdown()
	var seen bytes.Buffer
	in := attach.NewReader(conn)
	for {
		kind, data, err := in.Read()
		if err != nil {
			t.Fatalf("%v after %q", err, seen.String())
		}
		if kind == attach.Exit {
			if status, _, err := attach.DecodeExit(data); status != 9 || err != nil {
				t.Error(status, err)
			}
			break
		}
		seen.Write(data)
	}
	if !strings.Contains(seen.String(), "37 91") {
		t.Errorf("%q", seen.String())
	}
	if log := unCRI(t, path, "stdout"); log != seen.String() {
		t.Errorf("the log has %q, the client %q", log, seen.String())
	}
}

// TestLogger has a logger keep the output of a container, and of one whose logger
// fails to start nothing is left.
func TestLogger(t *testing.T) {
	dir := shortDir(t)
	program := filepath.Join(dir, "logger")
	text := "#!/bin/sh\ncat <&3 >\"$2/out\" & cat <&4 >\"$2/err\" &\nprintf x >&5; exec 5>&-; wait; echo $CONTAINER_NAMESPACE/$CONTAINER_ID >\"$2/id\"\n"
	if err := os.WriteFile(program, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	f := container(t, "sh", "-c", "seq 1 5000; echo err >&2")
	if _, err := f.tryCreate(&task.CreateTaskRequest{Stdout: "binary-v2:///bin/true"}); err == nil || !strings.Contains(err.Error(), "/bin/true") {
		t.Errorf("a logger that fails: %v", err)
	}
	for _, scheme := range []string{"binary", "binary-v2"} {
		f.run(&task.CreateTaskRequest{Stdout: scheme + "://" + program + "?dir=" + dir})
		f.wait("", 0)
		f.delete("")
		for name, want := range map[string]string{"err": "err\n", "id": namespace + "/" + f.id + "\n"} {
			if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
				t.Errorf("%s: %q, %v", name, got, err)
			}
		}
		out, err := os.ReadFile(filepath.Join(dir, "out"))
		if err != nil || !strings.HasSuffix(string(out), "\n5000\n") || strings.Count(string(out), "\n") != 5000 {
			t.Errorf("%d bytes, %v", len(out), err)
		}
	}
	f.shutdown()
}

// TestNobodyReads has a container write megabytes while its reader is away: it goes
// on to its end, and the next reader gets everything.
func TestNobodyReads(t *testing.T) {
	c := newClientIO(t)
	f := container(t, "sh", "-c", "echo one; while [ ! -e /tmp/go ]; do sleep 0.01; done; seq 1 500000; exit 4")
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
	out := c.stdout.end()
	if lines := strings.Count(out, "\n"); lines != 500001 || !strings.HasSuffix(out, "\n500000\n") {
		t.Errorf("%d lines, the last is %q", lines, out[max(0, len(out)-20):])
	}
	f.delete("")
	f.shutdown()
}

// TestThroughput prints, where it is asked for, how fast output moves and what the
// shim needs for it.
func TestThroughput(t *testing.T) {
	text := os.Getenv("BERTH_TEST_THROUGHPUT")
	if text == "" {
		t.Skip("BERTH_TEST_THROUGHPUT is not set (to a number of MiB)")
	}
	size, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	work := t.TempDir()
	lines := strings.Repeat(strings.Repeat("0123456789abcde", 5)+"....\n", 512<<10/80+1)[:512<<10]
	if err := os.WriteFile(filepath.Join(work, "lines"), []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, way := range []string{"fifo", "file", "raw", "cri", "json"} {
		f := container(t, "sh", "-c", fmt.Sprintf("for i in $(seq 1 %d); do cat /tmp/lines /tmp/lines; done", size))
		f.setMount(work, "/tmp")
		path := filepath.Join(t.TempDir(), "out")
		r := &task.CreateTaskRequest{Stdout: "log://" + path + "?max-size=67108864&format=" + way}
		done := make(chan int64, 1)
		switch way {
		case "fifo":
			if err := unix.Mkfifo(path, 0o700); err != nil {
				t.Fatal(err)
			}
			r.Stdout = path
			go func() {
				file, err := os.Open(path)
				if err != nil {
					return
				}
				defer file.Close()
				n, _ := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{file}, make([]byte, 64<<10))
				done <- n
			}()
		case "file":
			r.Stdout = "file://" + path
		}
		f.create(r)
		before := f.memory("Anonymous")
		begin := time.Now()
		f.startTask("")
		f.wait("", 0)
		took := time.Since(begin)
		after := f.memory("Anonymous")
		f.delete("")
		if way == "fifo" {
			if n := <-done; n != int64(size)<<20 {
				t.Errorf("%d bytes", n)
			}
			took = time.Since(begin)
		}
		t.Logf("%-5s %d MiB in %v: %.0f MiB/s; private memory %d KiB before, %d KiB after", way, size, took.Round(time.Millisecond), float64(size)/took.Seconds(), before, after)
		f.shutdown()
	}
}
