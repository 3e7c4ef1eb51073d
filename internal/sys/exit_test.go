package sys

import (
	"errors"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// TestExitStatus reads the status of a child before and after it is reaped. A
// kernel before 6.15 can't tell afterwards; it must then say so.
func TestExitStatus(t *testing.T) {
	p := open(t, start(t, "sleep", "1000"), true)
	if status, ok := p.ExitStatus(); ok {
		t.Fatalf("a living process has status %v", status)
	}
	if err := p.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.Exited(t.Context()); err != nil {
		t.Fatal(err)
	}
	if status, ok := p.ExitStatus(); !ok || status.Signal() != unix.SIGTERM {
		t.Fatalf("zombie: %v %v", status, ok)
	}
	if _, err := p.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if status, ok := p.ExitStatus(); ok && status.Signal() != unix.SIGTERM {
		t.Fatalf("reaped: %v", status)
	} else if !ok {
		t.Log("this kernel keeps no status of a reaped process")
	}
}

// TestExitStatusOfOrphan reads the status of a process that pid 1 reaps, or
// whoever is the subreaper, which may be this test.
func TestExitStatusOfOrphan(t *testing.T) {
	sh := exec.Command("sh", "-c", "(sleep 1000; exit 9) >/dev/null & echo $!; read x")
	in, err := sh.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := sh.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := sh.Start(); err != nil {
		t.Fatal(err)
	}
	var buf [32]byte
	n, err := out.Read(buf[:])
	if err != nil {
		t.Fatal(err)
	}
	pid := 0
	for _, c := range buf[:n] {
		if c >= '0' && c <= '9' {
			pid = pid*10 + int(c-'0')
		}
	}
	p := open(t, pid, true)
	_ = in.Close()
	if err := sh.Wait(); err != nil {
		t.Log(err) // read met the end of its input
	}
	children, err := Children(pid)
	if err != nil || len(children) != 1 {
		t.Fatal(children, err)
	}
	sleeper, err := os.FindProcess(children[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := sleeper.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := p.Exited(t.Context()); err != nil {
		t.Fatal(err)
	}
	if status, ok := p.ExitStatus(); ok && status.ExitStatus() != 9 {
		t.Fatalf("status %v", status)
	} else if !ok {
		t.Log("this kernel keeps no status of a reaped process")
	}
	_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // ours if the test is a subreaper
}

// TestPeek asks for a status twice before it takes it.
func TestPeek(t *testing.T) {
	for _, c := range []struct {
		script string
		code   int
		signal unix.Signal
	}{{"exit 7", 7, -1}, {"exit 0", 0, -1}, {"kill -9 $$", -1, unix.SIGKILL}, {"kill -TERM $$", -1, unix.SIGTERM}} {
		cmd := exec.Command("sh", "-c", c.script)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		p, err := OpenProcess(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			ws, err := p.Peek(t.Context())
			if err != nil || ws.Exited() && ws.ExitStatus() != c.code || ws.Signaled() && ws.Signal() != c.signal || ws.Exited() == ws.Signaled() {
				t.Errorf("%s: peek: %v, %v", c.script, ws, err)
			}
		}
		ws, err := p.Wait(t.Context())
		if err != nil || ws.Exited() != (c.code >= 0) {
			t.Errorf("%s: wait: %v, %v", c.script, ws, err)
		}
		if _, err := p.Peek(t.Context()); !errors.Is(err, ErrNotChild) {
			t.Errorf("%s: peek at what was reaped: %v", c.script, err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}
