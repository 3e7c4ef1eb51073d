package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/api/services/introspection/v1/introspectiongrpc"
	"github.com/berthd/berth/internal/leak"
)

// asBerthd makes this test binary the daemon itself.
const asBerthd = "BERTHD_TEST_MAIN"

func TestMain(m *testing.M) {
	if dir := os.Getenv(asBoxShim); dir != "" {
		if err := boxShimMain(dir, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv(asBerthd) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// patience bounds every wait of the tests.
const patience = 30 * time.Second

// place is a machine's worth of directories for daemons.
type place struct{ root, state, socket string }

func newPlace(t *testing.T) *place {
	t.Helper()
	leak.Check(t)
	if os.Getuid() != 0 {
		t.Skip("the daemon has to run as root")
	}
	dir, err := os.MkdirTemp("", t.Name()) // shorter than TempDir, for socket paths; package leak knows by the name whose it is
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return &place{filepath.Join(dir, "root"), filepath.Join(dir, "state"), filepath.Join(dir, "state", "berth.sock")}
}

func (p *place) args(more ...string) []string {
	return append([]string{"--root", p.root, "--state", p.state}, more...)
}

// command is a run of berthd that has not started.
func command(ctx context.Context, t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), asBerthd+"=1", "PATH="+shimDir(t)+":"+os.Getenv("PATH"))
	cmd.WaitDelay = time.Second
	return cmd
}

// shimDir is a directory with a berth-shim that does nothing: no test here
// starts a task.
func shimDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "berth-shim"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// fails runs berthd and gives what it says; it has to fail within the time that
// a start may take.
func fails(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(patience, func() { cmd.Process.Kill() })
	defer timer.Stop()
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("berthd %v: %v, want exit code 1; it said %s", cmd.Args[1:], err, out.String())
	}
	return out.String()
}

// output is what a daemon writes, for waiting on.
type output struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{}
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.changed)
	o.changed = make(chan struct{})
	return o.text.Write(p)
}

// await returns once the output has the text, after the first skip bytes.
func (o *output) await(t *testing.T, text string, skip int) {
	t.Helper()
	limit := time.After(patience)
	for {
		o.mu.Lock()
		all, changed := o.text.String(), o.changed
		o.mu.Unlock()
		if strings.Contains(all[skip:], text) {
			return
		}
		select {
		case <-changed:
		case <-limit:
			t.Fatalf("no %q in: %s", text, all)
		}
	}
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// running is a daemon that has said it is ready.
type running struct {
	*exec.Cmd
	*grpc.ClientConn
	out      *output
	logPipe  *os.File // where its output is read from
	notified chan string
	took     time.Duration // from its start to READY
}

// pipe makes the daemon's output go to out, and gives the end that is its own.
func (r *running) pipe(t *testing.T) *os.File {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Stdout, r.Stderr, r.logPipe = write, write, read
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		_, _ = io.Copy(r.out, read) // until it has ended, or the test closes it
	}()
	t.Cleanup(func() { <-drained; read.Close() })
	return write
}

// start runs a daemon until the test ends.
func (p *place) start(t *testing.T, more ...string) *running {
	t.Helper()
	n, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: filepath.Join(t.TempDir(), "notify")})
	if err != nil {
		t.Fatal(err)
	}
	r := &running{
		Cmd: command(context.Background(), t, p.args(more...)...), // Cleanup ends it
		out: &output{changed: make(chan struct{})}, notified: make(chan string, 16),
	}
	logWrite := r.pipe(t)
	r.Env = append(r.Env, "NOTIFY_SOCKET="+n.LocalAddr().String())
	r.Cancel = func() error { return r.Process.Kill() }
	done := make(chan struct{})
	go func() {
		defer close(done)
		for buf := make([]byte, 4096); ; {
			k, err := n.Read(buf)
			if err != nil {
				return
			}
			r.notified <- string(buf[:k])
		}
	}()
	began := time.Now()
	if err := errors.Join(r.Start(), logWrite.Close()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if r.ProcessState == nil {
			if err := r.stop(syscall.SIGTERM); err != nil {
				t.Errorf("berthd ended with %v: %s", err, r.out.String())
			}
		}
		n.Close()
		<-done
	})
	r.awaitNotice(t, "READY=1")
	r.took = time.Since(began)
	r.ClientConn, err = grpc.NewClient("unix://"+p.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.ClientConn.Close() })
	return r
}

func (r *running) awaitNotice(t *testing.T, want string) {
	t.Helper()
	select {
	case got := <-r.notified:
		if first, _, _ := strings.Cut(got, "\n"); first != want {
			t.Fatalf("systemd was told %q, want %q", got, want)
		}
	case <-time.After(patience):
		t.Fatalf("systemd was not told %s; berthd said: %s", want, r.out.String())
	}
}

// stop ends the daemon by a signal and waits for it.
func (r *running) stop(s syscall.Signal) error {
	if err := r.Process.Signal(s); err != nil {
		return err
	}
	timer := time.AfterFunc(patience, func() { r.Process.Kill() })
	defer timer.Stop()
	return r.Wait()
}

// uuid asks the daemon who it is.
func (r *running) uuid(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := introspectiongrpc.NewIntrospectionClient(r).Server(ctx, &emptypb.Empty{})
	if err != nil {
		t.Fatal(err)
	}
	if s.GetPid() != uint64(r.Process.Pid) {
		t.Errorf("pid %d answers, want %d", s.GetPid(), r.Process.Pid)
	}
	return s.GetUuid()
}

func mode(t *testing.T, path string) string {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Error(err)
		return ""
	}
	return fmt.Sprintf("%04o", info.Mode().Perm())
}
