package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/leak"
)

// fake makes a runtime of a shell script, which finds its arguments in "$@" and
// its log in $LOG.
func fake(t *testing.T, script string) *CLI {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "fakerun")
	text := "#!/bin/sh\nLOG=$2\n: >\"$LOG\"\n" + script + "\n"
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	logs := filepath.Join(dir, "logs")
	if err := os.Mkdir(logs, 0o755); err != nil {
		t.Fatal(err)
	}
	return &CLI{Binary: path, Root: "/some/root", LogDir: logs}
}

// logs lists what is in the directory of logs.
func logs(t *testing.T, c *CLI) []string {
	t.Helper()
	entries, err := os.ReadDir(c.LogDir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestArguments compares the command line of every call.
func TestArguments(t *testing.T) {
	leak.Check(t)
	out := filepath.Join(t.TempDir(), "args")
	c := fake(t, `shift 4; echo "$@" >`+out+`; cat >>`+out)
	c.SystemdCgroup = true
	ctx := t.Context()
	for want, call := range map[string]func() error{
		"create --bundle /b --pid-file /p --console-socket /c --no-pivot --no-new-keyring id\n": func() error {
			return c.Create(ctx, "id", CreateOptions{Bundle: "/b", PIDFile: "/p", ConsoleSocket: "/c", NoPivot: true, NoNewKeyring: true})
		},
		"create --bundle /b --pid-file /p id\n": func() error { return c.Create(ctx, "id", CreateOptions{Bundle: "/b", PIDFile: "/p"}) },
		"start id\n":                            func() error { return c.Start(ctx, "id") },
		"exec --process /s --pid-file /p --detach --console-socket /c id\n": func() error {
			return c.Exec(ctx, "id", ExecOptions{Process: "/s", PIDFile: "/p", ConsoleSocket: "/c"})
		},
		"kill id 15\n":        func() error { return c.Kill(ctx, "id", unix.SIGTERM, false) },
		"kill --all id 9\n":   func() error { return c.Kill(ctx, "id", unix.SIGKILL, true) },
		"delete id\n":         func() error { return c.Delete(ctx, "id", false) },
		"delete --force id\n": func() error { return c.Delete(ctx, "id", true) },
		"pause id\n":          func() error { return c.Pause(ctx, "id") },
		"resume id\n":         func() error { return c.Resume(ctx, "id") },
		"update --resources /proc/self/fd/0 id\n{x}": func() error { return c.Update(ctx, "id", []byte("{x}")) },
	} {
		if err := call(); err != nil {
			t.Errorf("%s: %v", want, err)
			continue
		}
		got, err := os.ReadFile(out)
		if want = "--root /some/root --systemd-cgroup " + want; err != nil || string(got) != want {
			t.Errorf("ran %q, %v; want %q", got, err, want)
		}
	}
	if left := logs(t, c); len(left) != 0 {
		t.Errorf("logs are left: %v", left)
	}
}

func TestState(t *testing.T) {
	c := fake(t, `echo '{"id":"a","status":"running","pid":42,"bundle":"/b"}'`)
	if s, err := c.State(t.Context(), "a"); err != nil || s != (State{ID: "a", Status: "running", PID: 42, Bundle: "/b"}) {
		t.Fatalf("%+v, %v", s, err)
	}
	if s, err := fake(t, "echo garbage").State(t.Context(), "a"); err == nil || !strings.Contains(err.Error(), `fakerun state of "a"`) {
		t.Fatalf("%+v, %v", s, err)
	}
}

// TestFailure wants the exit code and the reason, wherever that was said.
func TestFailure(t *testing.T) {
	leak.Check(t)
	for _, c := range []struct {
		name, script string
		code         int
		signal       unix.Signal
		want         string
	}{
		{"log", `echo '{"level":"warning","msg":"w"}
{"level":"error","msg":"first"}
{"level":"error","msg":"the reason","time":"now"}
{"level":"info","msg":"i"}' >"$LOG"; echo other >&2; exit 3`, 3, 0, "fakerun start: exit status 3: the reason"},
		{"log without level error", `echo '{"level":"warning","msg":"w"}' >"$LOG"; echo said so >&2; exit 1`, 1, 0, "fakerun start: exit status 1: said so"},
		{"log that is no JSON", `printf 'plain\ntext\n' >"$LOG"; exit 1`, 1, 0, "fakerun start: exit status 1: text"},
		{"log of garbage", `head -c 300000 /dev/urandom >"$LOG"; echo '{"level":"error","msg":"at the end"}' >>"$LOG"; exit 1`, 1, 0, "fakerun start: exit status 1"},
		{"nothing said", "exit 255", 255, 0, "fakerun start: exit status 255"},
		{"signal", "kill -9 $$", -1, unix.SIGKILL, "fakerun start: killed by signal 9 (killed)"},
		{"no log", `rm "$LOG"; echo why >&2; exit 1`, 1, 0, "fakerun start: exit status 1: why"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cli := fake(t, c.script)
			err := cli.Start(t.Context(), "id")
			var failure *Error
			if !errors.As(err, &failure) {
				t.Fatalf("%v is no Error", err)
			}
			if failure.ExitCode != c.code || failure.Signal != c.signal || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("code %d, signal %d, %q; want %d, %d, %q", failure.ExitCode, failure.Signal, err, c.code, c.signal, c.want)
			}
			if len(err.Error()) > maxMessage+200 {
				t.Errorf("error of %d bytes", len(err.Error()))
			}
			for _, name := range logs(t, cli) {
				if name != LogFile {
					t.Errorf("left: %s", name)
				}
			}
		})
	}
}

// TestOutputBounded has a runtime that prints without end.
func TestOutputBounded(t *testing.T) {
	leak.Check(t)
	err := fake(t, `trap '' PIPE; yes 0123456789 >&2; exit 1`).Start(t.Context(), "id")
	var failure *Error
	if !errors.As(err, &failure) || len(failure.Message) > maxMessage+3 || !strings.Contains(failure.Message, "0123456789") {
		t.Fatalf("%.200v", err)
	}
}

// TestDeadline kills a runtime that hangs, with its children.
func TestDeadline(t *testing.T) {
	leak.Check(t)
	pids := filepath.Join(t.TempDir(), "pids")
	c := fake(t, `sleep 1000 & echo $$ $! >`+pids+`.tmp; mv `+pids+`.tmp `+pids+`; wait`)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Create(ctx, "id", CreateOptions{Bundle: "/b", PIDFile: "/p"}) }()
	var shell, child int
	for {
		data, err := os.ReadFile(pids)
		if err == nil {
			if _, err := fmt.Sscan(string(data), &shell, &child); err != nil {
				t.Fatal(err)
			}
			break
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	err := <-done
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "fakerun create: context canceled") {
		t.Fatal(err)
	}
	if err := unix.Kill(shell, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("the runtime is still there: %v", err)
	}
	// The grandchild was killed too; who reaps it is not ours to say.
	for {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", child))
		if err != nil || strings.Contains(string(data), ") Z ") {
			break
		}
		time.Sleep(time.Millisecond)
	}
	// A context that ended before starts nothing.
	if err := os.Remove(pids); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(ctx, "id"); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if _, err := os.Stat(pids); err == nil {
		t.Error("was started")
	}
}

func TestMissing(t *testing.T) {
	c := &CLI{Binary: "no-such-runtime", LogDir: t.TempDir()}
	err := c.Start(t.Context(), "id")
	var missing *MissingError
	if !errors.As(err, &missing) || !errors.Is(err, exec.ErrNotFound) {
		t.Fatal(err)
	}
	for _, want := range []string{`"no-such-runtime"`, "PATH", "install it, or", "binary_name", "runtime.binary"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q lacks %q", err, want)
		}
	}
	c.Binary = "/no/such/runtime"
	if err := c.Start(t.Context(), "id"); !errors.As(err, &missing) || !strings.Contains(err.Error(), "/no/such/runtime") {
		t.Fatal(err)
	}
}

// TestContainerStdio hands files through, and captures nothing then.
func TestContainerStdio(t *testing.T) {
	dir := t.TempDir()
	open := func(name, text string) *os.File {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_RDWR, 0o600)
		if err == nil {
			_, err = f.WriteString(text)
		}
		if err == nil {
			_, err = f.Seek(0, 0)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	stdio := Stdio{In: open("in", "input"), Out: open("out", ""), Err: open("err", "")}
	if err := fake(t, "cat; echo error >&2").Create(t.Context(), "id", CreateOptions{Stdio: stdio}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"out": "input", "err": "error\n"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// TestEnvironment keeps what speaks to one process alone from the runtime.
func TestEnvironment(t *testing.T) {
	// Set by TestMain, as the environment is read once.
	if err := fake(t, `[ -z "$NOTIFY_SOCKET$GOMAXPROCS" ] && [ "$KEPT" = yes ] && [ -n "$PATH" ]`).Start(t.Context(), "id"); err != nil {
		t.Fatal(err)
	}
}

func TestMain(m *testing.M) {
	for name, value := range map[string]string{"NOTIFY_SOCKET": "/x", "GOMAXPROCS": "2", "KEPT": "yes"} {
		if err := os.Setenv(name, value); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

// TestBinaryMoves finds a runtime again that is elsewhere now, and says so when
// it is gone.
func TestBinaryMoves(t *testing.T) {
	c := fake(t, "exit 0")
	old := filepath.Dir(c.Binary)
	c.Binary = "fakerun"
	path := os.Getenv("PATH")
	t.Setenv("PATH", old+":"+path)
	if err := c.Start(t.Context(), "id"); err != nil {
		t.Fatal(err)
	}
	now := t.TempDir()
	if err := os.Rename(filepath.Join(old, "fakerun"), filepath.Join(now, "fakerun")); err != nil {
		t.Fatal(err)
	}
	var missing *MissingError
	if err := c.Start(t.Context(), "id"); !errors.As(err, &missing) {
		t.Fatal(err)
	}
	t.Setenv("PATH", now+":"+path)
	if err := c.Start(t.Context(), "id"); err != nil {
		t.Fatal(err)
	}
}

func FuzzLastError(f *testing.F) {
	f.Add([]byte(`{"level":"error","msg":"x"}` + "\nplain"))
	f.Fuzz(func(t *testing.T, log []byte) { clip(lastError(log)) })
}

// TestErrorSaysItOnce leaves out of an error what the runtime repeats.
func TestErrorSaysItOnce(t *testing.T) {
	for message, want := range map[string]string{
		"runc create failed: no such file": "runc create: exit status 1: no such file",
		"create failed: no such file":      "runc create: exit status 1: no such file",
		"runc start failed: no such file":  "runc create: exit status 1: runc start failed: no such file",
		"create failed: ":                  "runc create: exit status 1: create failed: ",
		"":                                 "runc create: exit status 1",
	} {
		err := &Error{Binary: "runc", Command: "create", ExitCode: 1, Message: message}
		if err.Error() != want {
			t.Errorf("%q: %s", message, err)
		}
	}
}

// TestFeatures asks without a root and a log, and tells no answer from a bad one.
func TestFeatures(t *testing.T) {
	leak.Check(t)
	script := func(body string) *CLI {
		path := filepath.Join(t.TempDir(), "fakerun")
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return &CLI{Binary: path, Root: "/some/root", SystemdCgroup: true}
	}
	if got, err := script(`[ "$*" = features ] && echo '{"a":1}'`).Features(t.Context()); err != nil || strings.TrimSpace(string(got)) != `{"a":1}` {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := script(`echo unknown command >&2; exit 1`).Features(t.Context()); err != nil || got != nil {
		t.Errorf("an old runtime: %q, %v", got, err)
	}
	for body, want := range map[string]string{
		"echo no json": "no JSON", "exec yes": "exit status 1", "kill -9 $$": "killed by signal 9", "": "no JSON",
	} {
		if got, err := script(body).Features(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q, %v, want %q", body, got, err, want)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if got, err := script("exec sleep 1000").Features(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a runtime that hangs: %q, %v", got, err)
	}
	if got := (&MissingError{Binary: "crun"}).Error(); !strings.Contains(got, "apt-get install crun)") {
		t.Error(got)
	}
	var missing *MissingError
	if _, err := (&CLI{Binary: "norunc"}).Features(t.Context()); !errors.As(err, &missing) {
		t.Errorf("no runtime: %v", err)
	}
}
