package sys

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// start runs a command that nobody but the test waits for.
func start(t *testing.T, argv ...string) int {
	t.Helper()
	path, err := exec.LookPath(argv[0])
	if err != nil {
		t.Fatal(err)
	}
	pid, err := syscall.ForkExec(path, argv, &syscall.ProcAttr{Env: os.Environ()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if unix.Kill(pid, unix.SIGKILL) == nil {
			_, _ = unix.Wait4(pid, nil, 0, nil)
		}
	})
	return pid
}

// open makes a handle with or without a pidfd.
func open(t *testing.T, pid int, pidfd bool) *Process {
	t.Helper()
	p, err := OpenProcess(pid)
	if !pidfd {
		p, err = newProcess(pid, -1, unix.ENOSYS)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func TestProcess(t *testing.T) {
	for _, pidfd := range []bool{true, false} {
		t.Run("pidfd "+strconv.FormatBool(pidfd), func(t *testing.T) {
			t.Run("code", func(t *testing.T) {
				p := open(t, start(t, "sh", "-c", "exit 7"), pidfd)
				status, err := p.Wait(t.Context())
				if err != nil || !status.Exited() || status.ExitStatus() != 7 {
					t.Fatalf("status %v, %v", status, err)
				}
				if _, err := p.Wait(t.Context()); !errors.Is(err, ErrNotChild) {
					t.Fatalf("second wait: %v", err)
				}
				if err := p.Signal(unix.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
					t.Fatalf("signal of a reaped process: %v", err)
				}
			})
			t.Run("signal", func(t *testing.T) {
				p := open(t, start(t, "sleep", "1000"), pidfd)
				if !p.Alive() {
					t.Fatal("not alive")
				}
				if err := p.Signal(unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
				if err := p.Exited(t.Context()); err != nil {
					t.Fatal(err)
				}
				if p.Alive() || !Zombie(p.PID()) {
					t.Fatal("a zombie counts as alive")
				}
				status, err := p.Wait(t.Context())
				if err != nil || status.Signal() != unix.SIGKILL {
					t.Fatalf("status %v, %v", status, err)
				}
			})
			t.Run("cancel", func(t *testing.T) {
				p := open(t, start(t, "sleep", "1000"), pidfd)
				for range 3 {
					ctx, cancel := context.WithCancel(t.Context())
					done := make(chan error)
					go func() { done <- p.Exited(ctx) }()
					cancel()
					if err := <-done; !errors.Is(err, context.Canceled) {
						t.Fatal(err)
					}
				}
				if err := p.Signal(unix.SIGTERM); err != nil {
					t.Fatal(err)
				}
				if status, err := p.Wait(t.Context()); err != nil || status.Signal() != unix.SIGTERM {
					t.Fatalf("status %v, %v", status, err)
				}
			})
			t.Run("not a child", func(t *testing.T) {
				p := open(t, os.Getppid(), pidfd)
				ctx, cancel := context.WithCancel(t.Context())
				cancel()
				if _, err := p.Wait(ctx); !errors.Is(err, context.Canceled) {
					t.Fatal(err)
				}
			})
		})
	}
}

func TestOpenNoProcess(t *testing.T) {
	pid := start(t, "true")
	if _, err := unix.Wait4(pid, nil, 0, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenProcess(pid); !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	if _, err := ReadStat(pid); !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
}

func TestParseStat(t *testing.T) {
	const rest = " 1 3 3 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 88442 8245248 219 18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 1 1 1 1 1 1 1 256\n"
	for _, comm := range []string{"sh", "a b", "((", "))", ") R 9 9", "", "\xff\n"} {
		s, err := parseStat([]byte("42 (" + comm + ") Z" + rest))
		want := Stat{PID: 42, Comm: comm, State: 'Z', PPID: 1, Session: 3, Threads: 1, StartTime: 88442, ExitCode: 256}
		if err != nil || s != want {
			t.Errorf("%q: %+v, %v", comm, s, err)
		}
	}
	for _, bad := range []string{"", "42", "42 (sh", "42 (sh)", "42 (sh) S 1", "42 )sh( S" + rest, "x (sh) S" + rest, "42 (sh) SS" + rest} {
		if s, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, s)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("1 (a) S 1"))
	f.Fuzz(func(t *testing.T, line []byte) { _, _ = parseStat(line) })
}

// TestStatOddName reads a process that is named to mislead.
func TestStatOddName(t *testing.T) {
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	odd := filepath.Join(t.TempDir(), "x) Z 1 (y")
	if err := os.Symlink(sleep, odd); err != nil {
		t.Fatal(err)
	}
	pid := start(t, odd, "1000")
	s, err := ReadStat(pid)
	if err != nil || s.PPID != os.Getpid() || s.PID != pid || s.Dead() {
		t.Fatalf("%+v, %v", s, err)
	}
	if !Alive(pid, s.StartTime) || Alive(pid, s.StartTime+1) {
		t.Fatal("alive does not heed the start time")
	}
}

func TestChildren(t *testing.T) {
	if got, err := Children(os.Getpid()); err != nil || HasChildren() != (len(got) > 0) {
		t.Errorf("has children: %v, of %v, %v", HasChildren(), got, err)
	}
	a, b := start(t, "sleep", "1000"), start(t, "true")
	p := open(t, b, true)
	if err := p.Exited(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, list := range map[string]func(int) ([]int, error){"children": Children, "by parent": childrenByParent} {
		got, err := list(os.Getpid())
		if err != nil || !slices.Contains(got, a) || !slices.Contains(got, b) {
			t.Errorf("%s: %v, %v; want %d and the zombie %d", name, got, err, a, b)
		}
	}
	if !HasChildren() {
		t.Error("has no children")
	}
}

func TestSession(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	pid := cmd.Process.Pid
	if got, err := Session(pid); err != nil || !slices.Equal(got, []int{pid}) {
		t.Errorf("%v, %v; want %d", got, err, pid)
	}
	p := open(t, pid, true)
	if err := p.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := p.Exited(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := Session(pid); err != nil || len(got) > 0 {
		t.Errorf("%v, %v; it has ended", got, err)
	}
}

func TestBootID(t *testing.T) {
	if id, err := BootID(); err != nil || len(id) != 36 {
		t.Fatal(id, err)
	}
}

func TestInitOfNamespace(t *testing.T) {
	if first, err := InitOfNamespace(start(t, "sleep", "1000")); err != nil || first {
		t.Fatal(first, err)
	}
	if os.Getuid() != 0 {
		t.Skip("a pid namespace needs root")
	}
	pid, err := syscall.ForkExec("/bin/sleep", []string{"sleep", "1000"}, &syscall.ProcAttr{Sys: &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = unix.Kill(pid, unix.SIGKILL)
		_, _ = unix.Wait4(pid, nil, 0, nil)
	}()
	if first, err := InitOfNamespace(pid); err != nil || !first {
		t.Fatal(first, err)
	}
}

func TestOOMScore(t *testing.T) {
	pid := start(t, "sleep", "1000")
	before, err := OOMScore(pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := SetOOMScore(pid, before+3); err != nil {
		t.Fatal(err)
	}
	if got, err := OOMScore(pid); err != nil || got != min(before+3, MaxOOMScore) {
		t.Fatal(got, err)
	}
	if err := SetOOMScore(1<<22+1, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
}

func TestPeerCredentials(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	got, err := PeerCredentials(server.(*net.UnixConn))
	want := Credentials{PID: os.Getpid(), UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
	if err != nil || got != want {
		t.Fatalf("%+v, %v; want %+v", got, err, want)
	}
}

func TestSubreaper(t *testing.T) {
	if err := SetSubreaper(); err != nil {
		t.Fatal(err)
	}
	var on int32
	if err := unix.Prctl(unix.PR_GET_CHILD_SUBREAPER, uintptr(ptr(&on)), 0, 0, 0); err != nil || on != 1 {
		t.Fatal(on, err)
	}
}

func ptr(p *int32) unsafe.Pointer { return unsafe.Pointer(p) }
